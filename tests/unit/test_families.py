"""What is particular to some families: fused projections, capped logits, unusual layers, and what has no row."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import tiny
from palimpsest import Architecture, ModelError, Part, load, method
from palimpsest.cli import main
from palimpsest.cli.doctor import examine
from palimpsest.models.hooks import Point
from palimpsest.models.sites.linear import features
from palimpsest.models.sites.table import architectures

FUSED = (
    "gpt2", "phi3", "gpt_neox", "bloom", "falcon", "falcon-grouped", "falcon-multi-head", "gpt_bigcode", "codegen",
    "mpt",
)  # fmt: skip

SCALED_LOGITS = ("gemma2", "cohere", "cohere2", "granite", "granitemoe")


def test_every_row_of_the_table_has_a_tiny_model():
    families = tiny.EVERY
    tested = {tiny.tiny_config(family).model_type for family in families}
    assert tested == {kind for row in architectures() for kind in row.model_types}
    assert {tiny.tiny_model(family).sites.architecture.name for family in families} == {
        row.name for row in architectures()
    }


@pytest.mark.parametrize("family", FUSED)
def test_slices_of_a_fused_projection_are_its_queries_keys_and_values(family):
    model = tiny.tiny_model(family)
    width, _ = features(model.sites.module("attn.qkv", 1))
    places = {name: model.sites.cut(f"attn.{name}", torch.arange(width)[None, None])[0, 0] for name in "qkv"}
    assert sorted(torch.cat(list(places.values())).tolist()) == list(range(width))

    # A lone token attends to itself alone: what the heads hand on is its value, once for every head that shares it.
    value, mixed = Point("attn.v", 1), Point("attn.out", 1, "input")
    _, found = model.capture(["!"], [value, mixed])
    assert found[mixed].shape[1] == 1
    heads, values = found[mixed][0, 0].reshape(4, 8), found[value][0, 0].reshape(-1, 8)
    assert torch.allclose(heads, values.repeat_interleave(4 // len(values), 0), atol=1e-6)

    # The first token's query is of no account to the last token; its key is.
    def last_token(name):
        def shake(output):
            noise = torch.zeros_like(output)
            noise[:, 0, places[name]] = 3.0
            return output + noise

        with model.intervene({Point("attn.qkv", 1): shake}):
            return model.capture(["The capital of France is"], [mixed])[1][mixed][0, -1]

    untouched = model.capture(["The capital of France is"], [mixed])[1][mixed][0, -1]
    assert torch.allclose(last_token("q"), untouched, atol=1e-6)
    assert not torch.allclose(last_token("k"), untouched, atol=1e-3)


@pytest.mark.parametrize("family", ["opt", "falcon"])
def test_points_have_three_axes_and_are_not_written_to_later(family):
    """OPT runs its MLP on (batch * tokens, width); Falcon adds the attention to the MLP's output in place."""
    model = tiny.tiny_model(family)
    prompts = ["The capital of France is", "Anna"]
    points = [Point("mlp.down", 0, "input"), Point("mlp.down", 0), Point("mlp.up", 0), Point("mlp.up", 0, "input")]
    batch, found = model.capture(prompts, points)
    assert all(tensor.shape[:2] == batch.input_ids.shape for tensor in found.values())
    down = model.sites.module("mlp.down", 0)
    assert torch.allclose(down(found[points[0]]), found[points[1]], atol=1e-5)

    stored = found[points[1]].clone()
    with model.intervene({points[1]: lambda _: stored}):
        _, again = model.capture(prompts, points[1:2])
    assert torch.equal(stored, found[points[1]]) and torch.equal(again[points[1]], stored)


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_capped_logits_are_scored_with_the_cap(family):
    model = tiny.tiny_model(family)
    assert model.has_separable_head is (family == "llama")
    batch = model.batch([model.encode("Anna Keller was").ids])
    with torch.no_grad():
        at_last = model.logits_at(batch, torch.tensor([0]), torch.tensor([len(batch.input_ids[0]) - 1]))
        hidden = model.module.base_model(input_ids=batch.input_ids).last_hidden_state[0, -1]
        bare = model.module.lm_head(hidden)
    assert torch.allclose(at_last[0], 10 * torch.tanh(bare / 10) if family == "gemma2" else bare, atol=1e-5)
    assert family == "llama" or bare.abs().max() > 6


@pytest.mark.parametrize("family", tiny.FAMILIES + tiny.MIXTURES)
def test_doctor_examines_every_family(family, tmp_path):
    model = load(str(tiny.tiny_folder(tmp_path / "model", family)))
    found, row = examine(model), model.sites.architecture
    sites = {site["site"]: site for site in found["sites"]}
    assert set(sites) == set(row.sites) and sites["attn.q"]["weight_shape"][-1] >= 32
    assert bool(found["tied_weights"]) is tiny.tiny_config(family).tie_word_embeddings
    said = {line.split(":")[0] for line in found["special"]}
    assert said == {
        *(["fused"] if any(part.is_slice for part in row.sites.values()) else []),
        *(["tied"] if found["tied_weights"] else []),
        *(["transposed"] if family == "gpt2" else []),
        *(["mixture of experts"] if family in tiny.MIXTURES else []),
        *([] if row.mlp_writes_residual else ["scaled or normed after the MLP"]),
        *(["scaled or capped logits"] if family in SCALED_LOGITS else []),
    }
    methods = {one["method"]: one for one in found["methods"]}
    if row.is_mixture:
        assert "mlp.up" not in sites and sites["mlp.down"]["verified"]
        assert len(sites["mlp.down"]["weight_shape"]) == 3 and sites["mlp.down"]["parameters"] in (
            4 * 32 * 16,
            4 * 32 * 48,
        )
        assert any("side by side are mlp.down" in line for line in found["special"])
        # Some begin with a layer without experts, where others' methods go on to work.
        is_whole = all(model.sites.holds_experts("mlp.down", layer) for layer in range(model.num_layers))
        refused = ("t-patcher", "calinet", "subject-neurons")
        refused += ("kn", "grace", "horen", "wise", "crispedit", "ultraedit") if is_whole else ()
        assert all("mixture of experts" in methods[name]["needs"] for name in refused)
        can_edit = {name for name, one in methods.items() if one["can_edit"]}
        assert can_edit >= {"ft", "ft-l", "locft", "lora", "rome", "r-rome", "memit", "emmet", "pmet", "alphaedit"}
        assert not can_edit & set(refused)
    else:
        assert sites["mlp.down"]["parameters"] >= 32 * 48
        assert {"ft", "ft-l", "lora"} <= {name for name, one in methods.items() if one["can_edit"]}
        assert methods["ft-l"]["needs"] == "" and methods["ft"]["needs"] == ""


def test_doctor_on_the_command_line(tmp_path, capsys):
    folder = str(tiny.tiny_folder(tmp_path / "model", "mixtral", chat="qwen"))
    assert main(["doctor", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer"]["has_chat_template"] is True
    assert main(["doctor", folder]) == 0
    shown = capsys.readouterr().out
    for words in (
        "float32, on cpu",
        "mixture of experts: 4 per layer",
        "has a chat template",
        "self_attn.q_proj",
        "no single MLP matrix",
        "model.layers.{layer}.mlp.experts",
    ):
        assert words in " ".join(shown.split())


@pytest.mark.parametrize("family", ["llama", "phi3", "glm", "glm4"])
def test_gate_and_up_are_not_mixed_up(family):
    model = tiny.tiny_model(family)
    gate, up, key = Point("mlp.gate", 1), Point("mlp.up", 1), Point("mlp.down", 1, "input")
    _, found = model.capture(["The capital of France is"], [gate, up, key])
    assert torch.allclose(nn.functional.silu(found[gate]) * found[up], found[key], atol=1e-5)


class Wrapped(nn.Linear):
    """A subclass that computes something else than its weight says."""

    def forward(self, tensor):
        return 2 * super().forward(tensor)


def test_a_layer_that_computes_something_else_than_its_weight_is_refused():
    module = tiny.tiny_module("llama")
    module.model.layers[1].mlp.down_proj = Wrapped(48, 32, bias=False)
    with pytest.raises(ModelError, match=r"unwrapped first(.|\n)*mlp\.down of layer 1"):
        load(module, tiny.tokenizer())


@pytest.mark.parametrize("site", ["attn.q", "attn.v"])
def test_a_slice_of_a_fused_weight_cannot_be_trained_by_itself(site):
    """It would train queries, keys and values together, and say it trained one of them."""
    with pytest.raises(ModelError, match=r"attn\.q, attn\.k, attn\.v(.|\n)*take 'attn\.qkv'"):
        method("ft", preset="none", parameters=site).edit(tiny.tiny_model("gpt2"), tiny.requests(1))
    with pytest.raises(ModelError, match="mlp.gate, mlp.up"):
        method("ft", preset="none", parameters="mlp.up").edit(tiny.tiny_model("phi3"), tiny.requests(1))


def test_a_layout_that_a_family_s_rows_do_not_cover_is_named():
    config = tiny.tiny_config("opt")
    config.do_layer_norm_before = False
    with pytest.raises(ModelError, match=r"do_layer_norm_before = True(.|\n)*do_layer_norm_before = False"):
        load(AutoModelForCausalLM.from_config(config), tiny.tokenizer())


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Part("attention.query_key_value", 0, shares=("num_attention_heads", "num_kv_heads", 1)), "num_kv_heads"),
        (Part("attention.query_key_value", 0, 3, groups=5), "96 features"),
    ],
)
def test_slices_that_cannot_be_are_found_out_at_load(part, words):
    model = tiny.tiny_module("gpt_neox")
    [row] = [row for row in architectures() if row.name == "gpt_neox"]
    wrong = Architecture(**{**vars(row), "sites": {**row.sites, "attn.q": part}})
    with pytest.raises(ModelError) as caught:
        load(model, tiny.tokenizer(), architecture=wrong)
    assert "attn.q" in str(caught.value) and words in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    folder = tiny.tiny_folder(tmp_path / "model", "llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights(.|\n)*layers\.1\.mlp\.down_proj"):
        load(str(folder))
