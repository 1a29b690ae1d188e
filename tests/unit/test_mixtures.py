"""Mixtures of experts: what can be edited, and what is refused before anything is computed; see test_experts.py."""

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

import tiny
from palimpsest import Architecture, ConfigError, ModelError, Part, load, method
from palimpsest.models.hooks import Point

PROMPTS = ["The capital of France is", "Anna", "The river"]
TARGETS = ["Lyon", "Keller was born in Lima", "that flows"]


@pytest.mark.parametrize("family", tiny.MIXTURES)
def test_the_experts_as_a_whole_can_be_looked_at_and_changed(family):
    model = tiny.tiny_model(family)
    points = [Point("mlp", 1), Point("resid", 1)]
    _, found = model.capture(PROMPTS[:1], points)
    with model.intervene({points[0]: lambda out: out + 1.0}):
        _, changed = model.capture(PROMPTS[:1], points)
    same = torch.allclose(changed[points[1]] - found[points[1]], torch.ones(32), atol=1e-4)
    assert same is model.sites.architecture.mlp_writes_residual


@pytest.mark.parametrize("family", tiny.MIXTURES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ft-l", {"parameters": "mlp.up"}),
        ("lora", {"sites": ["mlp.up"]}),
        ("lora", {"sites": ["mlp.down"], "layers": [2]}),
        ("kn", {}),
        ("grace", {"layer": 2}),
        ("horen", {"layer": 2}),
        ("wise", {"layer": 2}),
        ("subject-neurons", {"layer": 2}),
    ],
)
def test_methods_that_need_an_mlp_matrix_refuse_before_any_computation(family, name, options, monkeypatch):
    model = tiny.tiny_model(family)
    monkeypatch.setattr(model.module, "forward", None)
    with pytest.raises(ModelError) as caught:
        method(name, preset="none", **options).edit(model, tiny.requests(1))
    assert all(words in str(caught.value) for words in ("mixture of experts", "4 experts a layer", "attn.v", "mlp."))
    with pytest.raises(ConfigError, match="no site named"):
        model.sites.part("mlp.nothing")


@pytest.mark.parametrize("family", tiny.MIXTURES)
def test_lora_edits_the_attention_and_ft_all_weights(family):
    model = tiny.tiny_model(family)
    request = tiny.requests(1)[0]
    before = model.score([request.prompt], [request.target_new])[0].log_prob
    for name, rate in (("lora", 3e-2), ("ft", 1e-2)):
        patch = method(name, preset="none", learning_rate=rate, epochs=25, stop_loss=0.1).edit(model, [request]).patch
        with model.patched(patch):
            assert model.score([request.prompt], [request.target_new])[0].log_prob > before + 1
        if name == "lora":
            assert {touched.split(".")[-2] for touched in patch.touched()} == {"q_proj", "v_proj"}
        else:
            assert any(".experts." in touched for touched in patch.touched())
    assert model.score([request.prompt], [request.target_new])[0].log_prob == before


def test_a_mixture_without_a_row_is_refused_and_can_be_given_one():
    config = DeepseekV3Config(
        vocab_size=384, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=1, n_group=1,
        topk_group=1, num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2,
        kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8,
        first_k_dense_replace=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    module = DeepseekV3ForCausalLM(config)
    with pytest.raises(ModelError, match=r"deepseek_v3(.|\n)*4 experts a layer(.|\n)*is_mixture=True"):
        load(module, tiny.tokenizer())
    row = Architecture(
        "attention-only", ("deepseek_v3",), "model.layers", "model.embed_tokens", "model.norm", "lm_head",
        {"attn.out": Part("self_attn.o_proj"), "resid": Part("")}, is_mixture=True,
    )  # fmt: skip
    model = load(module, tiny.tokenizer(), architecture=row)
    patch = method("lora", preset="none", sites=["attn.out"], epochs=3).edit(model, tiny.requests(1)).patch
    assert patch.touched() == ["model.layers.0.self_attn.o_proj.weight"]
