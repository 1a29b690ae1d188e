"""What is particular to some families: fused projections, capped logits, unusual layers, and what has no row."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from palimpsest import Architecture, ModelError, Part, load, method
from palimpsest.cli.inspecting import examine
from palimpsest.models.architecture import architectures
from palimpsest.models.hooks import Point
from palimpsest.models.linear import features

FUSED = ("gpt2", "phi3", "gpt_neox", "bloom", "falcon", "falcon-grouped", "falcon-multi-head")


def test_every_row_of_the_table_has_a_tiny_model():
    families = tiny.FAMILIES + tiny.ENCODER_DECODERS
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
    assert model._head_is_separable is (family == "llama")
    batch = model.batch([model.encode("Anna Keller was").ids])
    with torch.no_grad():
        at_last = model.logits_at(batch, torch.tensor([0]), torch.tensor([len(batch.input_ids[0]) - 1]))
        hidden = model.module.base_model(input_ids=batch.input_ids).last_hidden_state[0, -1]
        bare = model.module.lm_head(hidden)
    assert torch.allclose(at_last[0], 10 * torch.tanh(bare / 10) if family == "gemma2" else bare, atol=1e-5)
    assert family == "llama" or bare.abs().max() > 6


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_doctor_examines_every_family(family, tmp_path):
    found = examine(load(str(tiny.tiny_folder(tmp_path / "model", family))))
    sites = {site["site"]: site for site in found["sites"]}
    assert sites["mlp.down"]["parameters"] >= 32 * 48 and sites["attn.q"]["weight_shape"]
    assert bool(found["tied_weights"]) is tiny.tiny_config(family).tie_word_embeddings
    assert {"ft", "ft-l", "lora"} <= {row["method"] for row in found["methods"] if row["can_edit"]}


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_a_mixture_of_experts_is_refused_but_its_attention_can_be_edited(model_type):
    config = AutoConfig.for_model(
        model_type, vocab_size=384, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts=4,
        num_experts_per_tok=2, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    module = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=r"mixture of experts(.|\n)*= 4(.|\n)*attention's sites alone"):
        load(module, tiny.tokenizer())

    row = Architecture(
        "attention-only", (model_type,), "model.layers", "model.embed_tokens", "model.norm", "lm_head",
        {"attn.q": Part("self_attn.q_proj"), "attn.v": Part("self_attn.v_proj"), "resid": Part("")},
    )  # fmt: skip
    model = load(module, tiny.tokenizer(), architecture=row)
    patch = method("lora", preset="none", learning_rate=1e-2, epochs=3).edit(model, tiny.requests(1)).patch
    assert {name.split(".")[-2] for name in patch.touched()} == {"q_proj", "v_proj"}


class Quantised(nn.Linear):
    """What a quantisation library puts in a linear layer's place."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.weight = nn.Parameter(layer.weight.to(torch.uint8), requires_grad=False)


class Wrapped(nn.Linear):
    """A subclass that computes something else than its weight says."""

    def forward(self, tensor):
        return 2 * super().forward(tensor)


@pytest.mark.parametrize(("kind", "words"), [("packed", "quantised"), ("float8", "quantised"), ("other", "unwrapped")])
def test_layers_without_a_plain_weight_are_refused(kind, words):
    module = tiny.tiny_module("llama")
    mlp = module.model.layers[1].mlp
    if kind == "packed":
        mlp.down_proj = Quantised(mlp.down_proj)
    elif kind == "float8":
        mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight.to(torch.float8_e4m3fn), requires_grad=False)
    else:
        mlp.down_proj = Wrapped(48, 32, bias=False)
    with pytest.raises(ModelError) as caught:
        load(module, tiny.tokenizer())
    assert words in str(caught.value) and "mlp.down of layer 1" in str(caught.value)


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
