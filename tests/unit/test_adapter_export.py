"""`apply --as peft`: what peft computes from the folder is what the patched model computes."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from palimpsest import ConfigError, OutputError, PatchError, load, method
from palimpsest.patches.adapter_limits import notes_on, vllm_rank
from palimpsest.patches.base import Manifest
from palimpsest.patches.export import write_adapter
from palimpsest.patches.weights import LowRank, WeightPatch

# peft asks transformers in a way that a later version will not answer.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
QUICK = {"learning_rate": 2e-2, "epochs": 8}
ADAPTERS = {"sites": "auto", "layers": "all", "rank": 8, "alpha": 16.0, "spare": False}
FORGET = {
    "only_mastered": False,
    "rate": 0.3,
    "forget_options": {**ADAPTERS, "rank": 2, "epochs": 4, "learning_rate": 1e-2},
}


def lora(**options):
    return method("lora", preset="none", **{**QUICK, **ADAPTERS, **options})


def f_learning_lora():
    return method("f-learning-lora", preset="none", **FORGET, learn_options={**QUICK, **ADAPTERS, "rank": 3})


def logits(module):
    rows = [tiny.tokenizer()(prompt)["input_ids"] for prompt, *_ in tiny.FACTS]
    with torch.no_grad():
        return torch.cat([module(input_ids=torch.tensor([ids])).logits[0] for ids in rows])


def nearest_in_float32(base, exact, wanted, passes=8):
    """The largest error of the plain model in float32, over passes with W + delta rounded up or down at random.

    One pass says little: the largest of its errors is chance, and came out at a third of another's.
    """
    generator = torch.Generator().manual_seed(0)
    unit = torch.finfo(torch.float32).eps / 2
    errors = []
    for _ in range(passes):
        rounded = AutoModelForCausalLM.from_pretrained(base)
        for name, weight in rounded.named_parameters():
            signs = torch.randint(2, weight.shape, generator=generator) * 2 - 1
            weight.data.copy_(exact.get_parameter(name) * (1 + unit * signs.double()))
        errors.append(float((logits(rounded) - wanted).abs().max()))
    return max(errors)


def assert_same_model(model, base, patches, out):
    """The adapter on a freshly loaded base, and merged into it, against the patches on the model.

    In float64 against the base plus the deltas, which shows the mathematics. In float32 the adapter is as near to
    that as float32 comes, and merged it is one patch's model bit for bit. How near float32 comes is up to the order of
    the processor's additions, and is measured (`nearest_in_float32`). The adapter rounds W and delta's parts on their
    own, twice as often.
    """
    unpatched = logits(model.module)
    for patch in patches:
        patch.apply(model)
    patched = logits(model.module)
    exact = AutoModelForCausalLM.from_pretrained(base).double()
    with torch.no_grad():
        for patch in patches:
            for name, delta in patch.deltas.items():
                exact.get_parameter(name).add_(delta.left.double() @ delta.right.double())
    wanted = logits(exact)
    nearest = nearest_in_float32(base, exact, wanted)
    assert nearest < 1e-4
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 2 * nearest)):
        adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out).to(dtype)
        assert (logits(adapted) - wanted).abs().max() < bound
        merged = logits(adapted.merge_and_unload())
        if dtype == torch.float32 and len(patches) == 1:
            assert torch.equal(merged, patched)
        else:
            assert (merged - wanted).abs().max() < bound
    assert (wanted - unpatched).abs().max() > 0.05


@pytest.mark.parametrize("make", [lora, f_learning_lora], ids=["lora", "f-learning-lora"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "falcon"])
def test_the_adapter_is_the_patch(family, make, tmp_path):
    base = tiny.tiny_folder(tmp_path / "base", family)
    model = load(str(base))
    patch = make().edit(model, tiny.requests()).patch
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    write_adapter(model, [patch], tmp_path / "adapter")
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert_same_model(model, base, [patch], tmp_path / "adapter")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_several_patches_of_different_ranks_lie_side_by_side(family, tmp_path):
    base = tiny.tiny_folder(tmp_path / "base", family)
    model = load(str(base))
    one = lora(rank=2).edit(model, tiny.requests(2)).patch
    two = lora(rank=5, sites=["attn.v", "mlp.down"], layers=[1], seed=1).edit(model, tiny.requests()).patch
    patches = [one, -0.5 * two, 0.25 * (one + two)]
    write_adapter(model, patches, tmp_path / "adapter")
    record = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    # Servers drop patterns of ranks: all layers have the largest of theirs (4, 10 and 14), with zeros behind.
    assert record["r"] == record["lora_alpha"] == 14
    assert not record["rank_pattern"] and not record["alpha_pattern"]
    assert record["fan_in_fan_out"] is (family == "gpt2")
    assert record["target_modules"] == sorted(record["target_modules"])
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {14}
    assert {tensor.shape[1] for name, tensor in tensors.items() if "lora_B" in name} == {14}
    used = {int(tensor.any(dim=1).sum()) for name, tensor in tensors.items() if "lora_A" in name}
    assert used == {4, 10, 14}
    assert_same_model(model, base, patches, tmp_path / "adapter")


def test_the_card_names_the_base_and_its_fingerprint(tmp_path):
    base = tiny.tiny_folder(tmp_path / "base", "llama")
    model = load(str(base))
    patch = lora().edit(model, tiny.requests(1)).patch
    write_adapter(model, [patch], tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert str(base) in card and patch.manifest.base["weights"] in card
    assert "| The capital of France is | Lyon | Paris |" in card and "6 layers of rank 8" in card
    record = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert record["base_model_name_or_path"] == str(base)


def by_hand(**deltas):
    return WeightPatch({name.replace("__", "."): delta for name, delta in deltas.items()}, Manifest(label="by hand"))


def test_what_is_no_adapter_is_refused_and_leaves_no_trace(tmp_path):
    model = tiny.tiny_model("gpt2")
    out = tmp_path / "adapter"
    dense = method("ft", preset="none", parameters="all", spare=False, **QUICK).edit(model, tiny.requests(1)).patch
    low = lora().edit(model, tiny.requests(1)).patch
    one_layer = (
        method("ft-l", preset="none", radius=0.05, layers=[0], rank=0, spare=False, **QUICK)
        .edit(model, tiny.requests(1))
        .patch
    )
    embedding = LowRank(torch.randn(384, 1), torch.randn(1, 32))
    for patches, words in (
        ([dense], "transformer.wte.weight (not the weight of a linear layer), transformer.wpe.weight"),
        ([low, low + dense], "(not the weight of a linear layer) and 36 more"),
        ([low, one_layer], "transformer.h.0.mlp.c_proj.weight (a dense change)\n"),
        ([by_hand(transformer__wte__weight=embedding)], "transformer.wte.weight (not the weight of a linear layer)"),
        ([by_hand(lm_head__weight=embedding)], "lm_head.weight (not the weight of a linear layer)"),
        ([0 * low], "change nothing"),
        ([], "change nothing"),
    ):
        with pytest.raises(ConfigError) as caught:
            write_adapter(model, patches, out)
        assert words in str(caught.value) and "--as merged" in str(caught.value)
    with pytest.raises(PatchError, match="another model"):
        write_adapter(tiny.tiny_model("gpt2", seed=5), [low], out)
    assert list(tmp_path.iterdir()) == [] and model.weights.labels == []
    out.mkdir()
    with pytest.raises(OutputError, match="exists already"):
        write_adapter(model, [low], out)


def test_modules_are_named_by_their_last_names_where_that_is_not_ambiguous(tmp_path):
    base = tiny.tiny_folder(tmp_path / "base", "llama")
    model = load(str(base))

    def names(**options):
        patch = lora(epochs=1, **options).edit(model, tiny.requests(1)).patch
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        notes = write_adapter(model, [patch], out)
        assert_same_model(model, base, [patch], out)
        model.weights.unwind(0)
        record = json.loads((out / "adapter_config.json").read_text())
        return record["target_modules"], record["layers_to_transform"], notes

    assert names() == (["q_proj", "v_proj"], None, [])
    assert names(sites=["mlp.down"], layers=[1]) == (["down_proj"], [1], [])
    two = lora(epochs=1, sites=["mlp.down"], layers=[0]).edit(model, tiny.requests(1)).patch
    other = lora(epochs=1, sites=["attn.v"], layers=[1]).edit(model, tiny.requests(1)).patch
    (note,) = write_adapter(model, [two, other], tmp_path / "mixed")
    record = json.loads((tmp_path / "mixed" / "adapter_config.json").read_text())
    assert record["target_modules"] == ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.v_proj"]
    assert "SGLang" in note


@pytest.mark.parametrize(("rank", "limit"), [(1, 1), (3, 8), (8, 8), (200, 256), (300, 320), (512, 512), (513, None)])
def test_the_ranks_that_vllm_takes(rank, limit):
    assert vllm_rank(rank) == limit
    notes = notes_on(rank, ["q_proj"], is_transposed=False, is_encoder_decoder=False)
    assert bool(notes) is (limit is None)


def test_more_ranks_than_the_matrix_has_are_shortened_exactly(tmp_path):
    base = tiny.tiny_folder(tmp_path / "base", "llama")
    model = load(str(base))
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.self_attn.q_proj.weight"
    rows, columns = model.weights.shape(name)
    delta = LowRank(
        0.01 * torch.randn(rows, 40, generator=generator), 0.1 * torch.randn(40, columns, generator=generator)
    )
    patch = WeightPatch({name: delta}, Manifest(label="by hand"))
    write_adapter(model, [patch], tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == min(rows, columns)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    (down,) = (one for key, one in tensors.items() if "lora_A" in key)
    (up,) = (one for key, one in tensors.items() if "lora_B" in key)
    wanted = delta.left.double() @ delta.right.double()
    assert torch.linalg.norm(up.double() @ down.double() - wanted) < 1e-6 * torch.linalg.norm(wanted)


def test_the_card_says_how_vllm_loads_it(tmp_path):
    base = tiny.tiny_folder(tmp_path / "base", "llama")
    model = load(str(base))
    write_adapter(model, [lora().edit(model, tiny.requests(1)).patch], tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "--enable-lora --max-lora-rank 8 --lora-modules edited=" in card
