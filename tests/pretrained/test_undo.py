"""Patches on a pretrained model come off bit for bit, in any order, and a merged folder is the patched model."""

import pytest
import torch

import palimpsest as ps
from pretrained_models import pretrained_path

OSLO = ps.EditRequest("The capital city of Japan is", "Oslo", subject="Japan", target_old="Tokyo", id="japan")
LYON = ps.EditRequest("The capital of France is", "Lyon", subject="France", target_old="Paris", id="france")
CASES = [("float32", "lora"), ("float32", "ft-l"), ("float32", "grace"), ("bfloat16", "lora")]


@pytest.fixture(scope="module")
def model(request):
    return ps.load(pretrained_path("smollm2"), dtype=request.param)


@pytest.fixture(scope="module")
def state(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


@pytest.fixture(scope="module")
def made():
    return {}


def patches(model, method, made):
    """One patch for each fact, made once."""
    key = (method, model.module.dtype)
    if key not in made:
        made[key] = [ps.method(method).edit(model, [fact]).patch for fact in (OSLO, LYON)]
    return made[key]


def assert_same(model, state):
    found = model.module.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize(("model", "method"), CASES, indirect=["model"])
def test_two_patches_come_off_exactly_in_both_orders(method, model, state, made):
    before = model.generate([OSLO.prompt, LYON.prompt])
    first, second = patches(model, method, made)
    assert_same(model, state)
    for upper in (first, second):
        lower = second if upper is first else first
        for leaves in ("upper", "lower"):
            on = {"lower": lower.apply(model), "upper": upper.apply(model)}
            with pytest.raises(ps.PatchError, match="on the model already"):
                upper.apply(model)
            on.pop(leaves).remove()
            on.popitem()[1].remove()
            assert_same(model, state)
    with model.patched(first):
        assert model.score([OSLO.prompt], ["Oslo"])[0].accuracy == 1.0
    assert model.generate([OSLO.prompt, LYON.prompt]) == before


@pytest.mark.parametrize(("model", "method"), CASES[:2], indirect=["model"])
def test_a_merged_folder_has_the_patched_model_s_logits(method, model, made, tmp_path):
    from palimpsest.patches.export import write_merged

    (patch, _) = patches(model, method, made)
    write_merged(model, [patch], tmp_path / "merged")
    merged = ps.load(tmp_path / "merged")
    assert merged.module.dtype == model.module.dtype
    ids = torch.tensor([model.tokenizer(OSLO.prompt)["input_ids"]])
    with torch.no_grad(), model.patched(patch):
        assert torch.equal(merged.module(ids).logits, model.module(ids).logits)
        assert merged.generate(OSLO.prompt) == model.generate(OSLO.prompt)
