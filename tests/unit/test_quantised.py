"""Quantised layers: changes run beside them, nothing is added to them, and what needs their numbers refuses first.

The stand-in keeps its weight as bytes with a scale a row; the others are what bitsandbytes and torchao make, where
they are installed.
"""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import tiny
from palimpsest import ConfigError, ModelError, PatchError, load, load_patch, method
from palimpsest.cli.doctor import examine
from palimpsest.methods.catalogue import METHODS
from palimpsest.models.sites.linear import has_plain_weight, is_quantised, keep_form
from palimpsest.patches.base import Manifest
from palimpsest.patches.export import write_adapter, write_merged
from palimpsest.patches.weights import LowRank, WeightPatch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]
QUICK = {"learning_rate": 3e-2, "epochs": 30, "stop_loss": 0.05}
ADAPTERS = {"sites": "auto", "layers": "all", "rank": 8, "alpha": 16.0, "spare": False}
FORGET = {"only_mastered": False, "rate": 0.3, "forget_options": {"rank": 2, "epochs": 2}}
LOW_RANK = {
    "lora": {**QUICK, **ADAPTERS},
    "f-learning-lora": {**FORGET, "learn_options": {**QUICK, **ADAPTERS, "rank": 4}},
}
BESIDE = [name for name in METHODS if name in LOW_RANK]


class Bytes(nn.Linear):
    """A linear layer that keeps signed bytes and one scale a row."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((layer.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def dense(self):
        return self.weight * self.scale

    def forward(self, tensor):
        return nn.functional.linear(tensor, self.dense().to(tensor.dtype), self.bias)


def quantised(module):
    for owner in module.modules():
        for name, layer in list(owner.named_children()):
            if isinstance(layer, nn.Linear) and name != "lm_head":
                setattr(owner, name, Bytes(layer))
    return module


def stand_in(family="llama", **options):
    return load(quantised(tiny.tiny_module(family, **options)), tiny.tokenizer())


def log_probs(model, count=2):
    requests = tiny.requests(count)
    return [s.log_prob for s in model.score([r.prompt for r in requests], [r.target_new for r in requests])]


def logits(module, prompt="The capital of France is"):
    with torch.no_grad():
        return module(input_ids=torch.tensor([tiny.tokenizer()(prompt)["input_ids"]])).logits[0]


def stored(model):
    found = {name: value for name, value in model.module.state_dict().items() if isinstance(value, torch.Tensor)}
    return {n: value.clone() if type(value) is torch.Tensor else value.dequantize() for n, value in found.items()}


def is_as_before(model, before):
    now = stored(model)
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


@pytest.mark.parametrize("family", ["llama", "phi3", "opt", "gpt_neox", "olmo2"])
@pytest.mark.parametrize("name", LOW_RANK)
def test_low_rank_methods_edit_beside_quantised_layers(family, name, tmp_path):
    model = stand_in(family)
    before, unedited = stored(model), log_probs(model)
    patch = method(name, preset="none", **LOW_RANK[name]).edit(model, tiny.requests(2)).patch
    assert is_as_before(model, before) and log_probs(model) == unedited
    with model.patched(patch):
        edited = log_probs(model)
        assert is_as_before(model, before)  # the weights are the same while the patch is on
        assert all(now > max(then, -1.0) for now, then in zip(edited, unedited, strict=True))
        beside = logits(model.module).double()
    assert log_probs(model) == unedited
    assert not any(module._forward_hooks for module in model.module.modules())

    # The truth: the same model with the numbers that the bytes stand for, and the change added to them.
    plain = quantised(tiny.tiny_module(family))
    for path, layer in list(plain.named_modules()):
        if isinstance(layer, Bytes):
            whole = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            whole.weight, whole.bias = nn.Parameter(layer.dense()), layer.bias
            owner, _, child = path.rpartition(".")
            setattr(plain.get_submodule(owner), child, whole)
    plain = plain.double()
    with torch.no_grad():
        for path, delta in patch.deltas.items():
            plain.get_parameter(path).add_(delta.dense().double())
    assert torch.allclose(logits(plain), beside, atol=1e-3)

    patch.save(tmp_path / "patch")
    with model.patched(load_patch(tmp_path / "patch")):
        assert log_probs(model) == edited


NEEDED = {
    "ft-l": {"radius": 0.1},
    "mend": {"editor": "fresh"},
    "ke": {"editor": "fresh"},
    "serac": {"editor": "fresh"},
    "ike": {"use_demonstrations": False},
    "t-patcher": {"text": tiny.text_file(), "max_steps": 2},
    "wise": {"text": tiny.text_file(), "max_tokens": 200, "steps": 2},
}


def needs_weights(name):
    # `auto` takes what can edit the model: lora, beside its layers.
    return (
        name not in (*BESIDE, "auto")
        and method(name, preset="none", **NEEDED.get(name, {})).capabilities.gives_weight_patch
    )


@pytest.mark.parametrize("name", [name for name in METHODS if not needs_weights(name)])
def test_what_leaves_the_weights_alone_edits_quantised_models(name):
    model, editor = stand_in(), method(name, preset="none", **NEEDED.get(name, {}))
    editor.require(model)
    if name not in BESIDE:
        before = log_probs(model, 1)
        with model.patched(editor.edit(model, tiny.requests(1)).patch):
            log_probs(model, 1)
        assert log_probs(model, 1) == before


@pytest.mark.parametrize("name", [name for name in METHODS if needs_weights(name)])
def test_what_needs_the_weights_refuses_before_any_computation(name, monkeypatch):
    model = stand_in()
    monkeypatch.setattr(model.module, "forward", None)
    with pytest.raises(ModelError) as caught:
        method(name, preset="none", **NEEDED.get(name, {})).edit(model, tiny.requests(1))
    assert all(words in str(caught.value) for words in ("quantised", "Bytes", "int8", "take lora", "layer"))


def test_several_patches_lie_beside_a_layer_and_come_off_in_any_order():
    model = stand_in()
    bare = log_probs(model)
    name = "model.layers.0.self_attn.q_proj.weight"
    one, two = (
        WeightPatch({name: LowRank(torch.randn(32, 2), torch.randn(2, 32))}, Manifest(label=label))
        for label in ("one", "two")
    )
    with model.patched(two):
        only_two = log_probs(model)
    first, second = one.apply(model), two.apply(model)
    both = log_probs(model)
    first.remove()
    assert log_probs(model) == only_two != both
    again = one.apply(model)
    assert log_probs(model) == pytest.approx(both, abs=1e-4)
    second.remove()
    again.remove()
    assert log_probs(model) == bare and model.weights.labels == []
    wrong = WeightPatch({name: LowRank(torch.randn(16, 2), torch.randn(2, 32))}, Manifest(label="wrong"))
    with pytest.raises(PatchError, match=r"shape \(32, 32\)"):
        wrong.apply(model)


def test_what_runs_beside_a_layer_is_out_of_the_way_where_the_base_model_is_asked():
    model = stand_in()
    unedited = log_probs(model)
    with model.patched(method("lora", preset="none", **QUICK).edit(model, tiny.requests(2)).patch):
        edited = log_probs(model)
        with model.weights.without_changes():
            assert log_probs(model) == unedited
        assert log_probs(model) == edited != unedited


def test_a_training_step_sees_what_the_patched_model_computes():
    model = stand_in()
    patch = method("lora", preset="none", **QUICK).edit(model, tiny.requests(2)).patch
    with model.patched(patch):
        scores = log_probs(model)
        counts = [len(model.encode(r.prompt, r.target_new).target_ids) for r in tiny.requests(2)]
        idle = method("lora", preset="none", learning_rate=0.0, epochs=1).edit(model, tiny.requests(2))
    losses = [curve[0] for curve in idle.diagnostics.losses.values()]
    assert [-loss * n for loss, n in zip(losses, counts, strict=True)] == pytest.approx(scores, abs=1e-5)
    assert idle.patch.is_empty()


def test_fingerprints_tell_scales_apart():
    one, two = stand_in(), stand_in()
    assert one.fingerprint() == two.fingerprint()
    two.module.model.layers[0].mlp.down_proj.scale.mul_(1.5)
    two = load(two.module, tiny.tokenizer())
    assert one.fingerprint()["weights"] != two.fingerprint()["weights"]


def test_the_adapter_is_exact_and_merging_is_refused(tmp_path):
    import peft

    model = stand_in()
    patch = method("lora", preset="none", **QUICK).edit(model, tiny.requests(2)).patch
    with pytest.raises(ConfigError, match=r"quantised(.|\n)*Bytes(.|\n)*--as peft"):
        write_merged(model, [patch], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    write_adapter(model, [patch, 0.5 * patch], tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(quantised(tiny.tiny_module("llama")), tmp_path / "adapter")
    with model.patched(1.5 * patch):
        assert torch.allclose(logits(adapted), logits(model.module), atol=1e-4)


def test_doctor_says_so():
    found = examine(stand_in())
    assert any("quantised" in line for line in found["special"])
    can = {row["method"]: row for row in found["methods"]}
    assert can["lora"]["can_edit"] and not can["ft"]["can_edit"] and "quantised" in can["ft"]["needs"]
    site = next(one for one in found["sites"] if one["site"] == "mlp.down")
    assert (site["weight_shape"], site["dtype"]) == ([32, 48], "int8")


def test_weights_that_the_layer_cannot_compute_with_are_refused():
    module = tiny.tiny_module("llama")
    layer = module.model.layers[1].mlp.down_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ModelError, match="The model cannot compute"):
        load(module, tiny.tokenizer())


# Real libraries, where they are installed.


def real_folder(path, family):
    """A tiny model whose layers are wide enough for blocks of 64 weights."""
    module = tiny.tiny_module(family, hidden_size=64, intermediate_size=128)
    module.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def load_real(kind, folder):
    import transformers

    if kind == "torchao":
        quantization = pytest.importorskip("torchao.quantization")
        config = transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig(version=2))
    else:
        pytest.importorskip("bitsandbytes")
        four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
        config = transformers.BitsAndBytesConfig(**(four if kind == "4bit" else {"load_in_8bit": True}))
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )


@pytest.mark.parametrize("kind", ["4bit", "8bit", "torchao"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_real_quantised_models(kind, family, tmp_path):
    import peft

    if (kind, family) == ("torchao", "gpt2"):
        pytest.skip("torchao quantises Linear layers, and this family has none")
    base = real_folder(tmp_path / "base", family)
    model = load(load_real(kind, base), tiny.tokenizer())
    assert is_quantised(model.sites.module("attn.out", 0)) and not has_plain_weight(model.sites.module("mlp.down", 1))
    with pytest.raises(ModelError, match="quantised"):
        method("ft", preset="none").edit(model, tiny.requests(1))
    before, unedited = stored(model), log_probs(model)
    for name, options in LOW_RANK.items():
        patch = method(name, preset="none", **options).edit(model, tiny.requests(2)).patch
        assert is_as_before(model, before) and log_probs(model) == unedited
        with model.patched(patch):
            edited, patched = log_probs(model), logits(model.module)
        assert all(now > max(then, -1.0) for now, then in zip(edited, unedited, strict=True))
        patch.save(tmp_path / name)
        fresh = load(load_real(kind, base), tiny.tokenizer())
        with fresh.patched(load_patch(tmp_path / name)):
            assert log_probs(fresh) == edited
        write_adapter(model, [patch], tmp_path / f"{name}-adapter")
        adapted = peft.PeftModel.from_pretrained(load_real(kind, base), tmp_path / f"{name}-adapter").eval()
        for layer in adapted.modules():
            assert keep_form(layer)
        assert torch.allclose(logits(adapted), patched, atol=2e-3)


def test_a_real_quantised_folder_is_loaded_by_name(tmp_path):
    model = load(load_real("4bit", real_folder(tmp_path / "base", "llama")), tiny.tokenizer())
    model.module.save_pretrained(tmp_path / "quantised")
    tiny.tokenizer().save_pretrained(tmp_path / "quantised")
    again = load(tmp_path / "quantised", device="cpu")
    assert again.fingerprint()["weights"] == model.fingerprint()["weights"]
    assert log_probs(again) == log_probs(model)


def test_four_bit_weights_that_were_used_before_are_refused(tmp_path):
    module = load_real("4bit", real_folder(tmp_path / "base", "llama")).eval()
    logits(module)
    if all(keep_form(layer) for layer in module.modules()):
        pytest.skip("this processor has no form of its own for inference")
    with pytest.raises(ModelError, match="hand it to palimpsest.load before anything else"):
        load(module, tiny.tokenizer())
