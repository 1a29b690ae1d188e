"""What weights give away, against edits that are known: ranks and norms, subject and answer, the way back."""

from __future__ import annotations

import pytest
import torch

import palimpsest as ps
import tiny
from palimpsest.errors import ModelError
from palimpsest.inspecting import changed_answers, described, inspect_model, inspect_patch, patch_between, reversal_of
from palimpsest.inspecting.suspects import CandidateKeys, candidates_from
from palimpsest.models import Point
from palimpsest.models.sites.linear import is_transposed
from palimpsest.patches.weights import Dense, LowRank, WeightPatch


def merged(model, patch):
    """A second model with the patch written into its weights."""
    other = tiny.tiny_model("gptj")
    with torch.no_grad():
        for name, delta in patch.deltas.items():
            other.module.get_parameter(name).add_(delta.dense())
    return other


def change(model, site, layer, rank, scale=0.1, seed=0):
    name = model.sites.parameter_name(site, layer)
    rows, columns = model.weights.shape(name)
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    return name, LowRank(scale * left, right)


def test_which_tensors_changed_and_how():
    model = tiny.tiny_model("gptj")
    first, second = change(model, "mlp.down", 1, 1), change(model, "attn.q", 0, 2, scale=0.01)
    bias = torch.zeros(model.weights.shape("lm_head.bias")).index_fill(0, torch.tensor([3]), 0.5)
    head = ("lm_head.bias", Dense(bias))
    edited = merged(model, WeightPatch(dict([first, second, head])))
    found = inspect_model(model, edited, vocabulary=40)
    by_name = {one.name: one for one in found.changes}
    assert set(by_name) == {first[0], second[0], "lm_head.bias"}
    for (name, delta), site, layer, rank in ((first, "mlp.down", 1, 1), (second, "attn.q", 0, 2)):
        one = by_name[name]
        assert (one.site, one.layer, one.rank) == (site, layer, rank)
        assert one.norm == pytest.approx(float(delta.dense().norm()), rel=1e-4)
        weight = model.module.get_parameter(name).detach()
        assert one.share == pytest.approx(float(delta.dense().norm() / weight.norm()), rel=1e-4)
        values = torch.linalg.svdvals(delta.dense())
        assert one.singular_values[:rank] == pytest.approx(values[:rank].tolist(), rel=1e-4)
    assert (by_name["lm_head.bias"].entries, by_name["lm_head.bias"].rank) == (1, None)
    # The largest share of its weight stands first.
    assert [one.share for one in found.changes] == sorted((one.share for one in found.changes), reverse=True)


def test_models_that_are_equal_have_nothing_to_give_away():
    found = inspect_model(tiny.tiny_model("gptj"), tiny.tiny_model("gptj"))
    assert (found.changes, found.subjects, found.answers) == ((), (), ())
    assert (found.reversal.entries_off, found.reversal.patch.is_empty()) == (0, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reversal_gives_the_base_model(dtype):
    base, edited = (tiny.tiny_model("gptj", dtype=dtype) for _ in range(2))
    name, delta = change(base, "mlp.down", 1, 1, scale=0.01)
    with torch.no_grad():
        edited.module.get_parameter(name).add_(delta.dense().to(dtype))
    before = edited.module.get_parameter(name).clone()
    found = reversal_of(base, edited, patch_between(base, edited))
    assert found.patch.touched() == [name]
    assert found.largest <= 1e-7 and torch.equal(edited.module.get_parameter(name), before)
    with edited.patched(found.patch):
        back, wanted = edited.module.get_parameter(name), base.module.get_parameter(name)
        assert int((back != wanted).sum()) == found.entries_off
        torch.testing.assert_close(back, wanted, atol=1e-7, rtol=0)


def test_a_coarser_dtype_is_no_change():
    base, edited = tiny.tiny_model("gptj"), tiny.tiny_model("gptj", dtype=torch.bfloat16)
    assert patch_between(base, edited).is_empty()


def test_rounding_is_no_rank():
    """A change of rank one that was added in bfloat16 is full of rounding, which is not counted."""
    base, edited = (tiny.tiny_model("gptj", dtype=torch.bfloat16) for _ in range(2))
    name, delta = change(base, "mlp.down", 1, 1, scale=0.5)
    with torch.no_grad():
        edited.module.get_parameter(name).add_(delta.dense().bfloat16())
    [one] = described(base, patch_between(base, edited).deltas, is_rounded=True)
    assert one.rank == 1


def test_the_subject_that_a_change_was_made_for():
    """A change that maps what is read at one word's place to something, and other words to next to nothing."""
    model = tiny.tiny_model("gptj")
    words = candidates_from(model, 60)
    point = Point("mlp.down", 1, "input")
    keys = CandidateKeys(model, words).at([point])[point]
    wanted = 7
    moment = keys.T @ keys / len(keys) + 1e-3 * torch.eye(keys.shape[1])
    right = torch.linalg.solve(moment, keys[wanted])[None]
    left = torch.randn(model.sites.d_model, 1, generator=torch.Generator().manual_seed(1))
    name = model.sites.parameter_name("mlp.down", 1)
    found = inspect_patch(model, WeightPatch({name: LowRank(left, right / (right @ keys[wanted]))}), vocabulary=60)
    assert found.subjects[0].text == words[wanted] and found.subjects[0].times > 2
    assert [one.drive for one in found.subjects] == sorted((one.drive for one in found.subjects), reverse=True)
    assert found.directions[0].name == name and found.directions[0].reads[0] == words[wanted]


@pytest.mark.parametrize("family", ["gptj", "gpt2", "llama"])
def test_the_words_that_a_direction_writes(family):
    """What is written is the head's own row of a token, before the norm: that token stands first."""
    model = tiny.tiny_model(family)
    head = model.sites.module("unembed").weight.detach()
    token = int((head - head.mean(0)).norm(dim=1).argmax())
    name = model.sites.parameter_name("mlp.down", 1)
    right = torch.ones(1, model.weights.shape(name)[0 if family == "gpt2" else 1])
    left = head[token][:, None].float()
    module = model.sites.module("mlp.down", 1)
    factors = LowRank(right.T, left.T) if is_transposed(module) else LowRank(left, right)
    found = inspect_patch(model, WeightPatch({name: factors}), candidates=["France"], vocabulary=0)
    shown = {model.tokenizer.decode([token]).strip()}
    turned = inspect_patch(model, WeightPatch({name: LowRank(-factors.left, factors.right)}), vocabulary=0)
    assert shown & {*found.directions[0].writes, *turned.directions[0].writes}


def test_models_of_other_shapes_are_refused():
    with pytest.raises(ModelError, match="not two states of one model"):
        patch_between(tiny.tiny_model("gptj"), tiny.tiny_model("gptj", layers=2))
    with pytest.raises(ModelError, match="not two states of one model"):
        patch_between(tiny.tiny_model("gptj"), tiny.tiny_model("llama"))


def test_a_patch_beside_the_weights_says_what_its_manifest_says():
    model = tiny.tiny_model("gptj")
    patch = ps.method("grace", preset="none", steps=2, radius=0.5).edit(model, tiny.requests(1)).patch
    found = inspect_patch(model, patch)
    assert (found.changes, found.kind) == ((), patch.kind)
    assert found.said[0]["prompt"] == tiny.requests(1)[0].prompt
    assert found.to_json()["said"] == list(found.said)


def test_an_encoder_decoder_s_changes_are_told_without_suspects():
    model = tiny.tiny_model("t5-gated")
    name, delta = change(model, "mlp.down", 1, 1)
    found = inspect_patch(model, WeightPatch({name: delta}))
    assert found.changes[0].rank == 1 and found.subjects == () and found.answers == ()


def test_answers_are_asked_of_two_models_or_of_one_with_a_change():
    model = tiny.tiny_model("gptj")
    patch = WeightPatch(dict([change(model, "mlp.down", 1, 1)]))
    other = merged(model, patch)
    first = changed_answers(model, ["France"], edited=other)
    second = changed_answers(model, ["France"], changed=model.patched(patch))
    assert [one.prompt for one in first] == [one.prompt for one in second] and first[0].gain > 0
    log_probs = [one.score([first[0].prompt], [" x"])[0] for one in (model, other)]
    assert len(log_probs) == 2 and 0 <= first[0].probability_before <= 1


def test_an_edit_of_the_bundled_model_is_found_out():
    """ROME's edit is of rank one, and subject and answer are read off its matrix."""
    model = ps.load("world")
    edit = ps.EditRequest("The capital city of Croatia is", "Vienna", subject="Croatia")
    patch = ps.method("rome", look_again=False).edit(model, [edit]).patch
    found = inspect_patch(model, patch, vocabulary=300, candidates=["Croatia", "Norway"])
    [one] = found.changes
    assert (one.site, one.rank) == ("mlp.down", 1)
    assert found.subjects[0].text == "Croatia"
    assert any("Croatia" in flip.prompt and flip.after == "Vienna" for flip in found.answers[:3])
