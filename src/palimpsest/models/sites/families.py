"""Where each decoder family keeps its parts. Data only: one row a layout, nothing computed.

Paths inside a block are relative to the block; the others start at the model. `Part(path, index, of)` is a slice of
a fused projection, cut along its output features.
"""

from __future__ import annotations

from palimpsest.models.sites.rows import Architecture, Part

GPT2 = Architecture(
    name="gpt2",
    model_types=("gpt2",),
    blocks="transformer.h",
    embed="transformer.wte",
    final_norm="transformer.ln_f",
    unembed="lm_head",
    sites={
        "mlp.up": Part("mlp.c_fc"),
        "mlp.down": Part("mlp.c_proj"),
        "attn.q": Part("attn.c_attn", 0, 3),
        "attn.k": Part("attn.c_attn", 1, 3),
        "attn.v": Part("attn.c_attn", 2, 3),
        "attn.qkv": Part("attn.c_attn"),
        "attn.out": Part("attn.c_proj"),
        "mlp": Part("mlp"),
        "attn": Part("attn"),
        "resid": Part(""),
    },
)

GPTJ = Architecture(
    name="gptj",
    model_types=("gptj",),
    blocks="transformer.h",
    embed="transformer.wte",
    final_norm="transformer.ln_f",
    unembed="lm_head",
    sites={
        "mlp.up": Part("mlp.fc_in"),
        "mlp.down": Part("mlp.fc_out"),
        "attn.q": Part("attn.q_proj"),
        "attn.k": Part("attn.k_proj"),
        "attn.v": Part("attn.v_proj"),
        "attn.out": Part("attn.out_proj"),
        "mlp": Part("mlp"),
        "attn": Part("attn"),
        "resid": Part(""),
    },
)

LLAMA = Architecture(
    name="llama",
    model_types=(
        "llama",
        "mistral",
        "ministral",
        "qwen2",
        "qwen3",
        "gemma",
        "stablelm",
        "olmo",
        "smollm3",
        "cohere",
        "cohere2",
        "helium",
        "seed_oss",
        "ernie4_5",
        "hunyuan_v1_dense",
    ),  # fmt: skip
    blocks="model.layers",
    embed="model.embed_tokens",
    final_norm="model.norm",
    unembed="lm_head",
    sites={
        "mlp.up": Part("mlp.up_proj"),
        "mlp.gate": Part("mlp.gate_proj"),
        "mlp.down": Part("mlp.down_proj"),
        "attn.q": Part("self_attn.q_proj"),
        "attn.k": Part("self_attn.k_proj"),
        "attn.v": Part("self_attn.v_proj"),
        "attn.out": Part("self_attn.o_proj"),
        "mlp": Part("mlp"),
        "attn": Part("self_attn"),
        "resid": Part(""),
    },
)

# The parts of a block have the names of the row above, but a norm follows the MLP.
LLAMA_POST_NORM = Architecture(
    name="llama-post-norm",
    model_types=("gemma2", "gemma3_text", "olmo2", "olmo3", "exaone4"),
    blocks="model.layers",
    embed="model.embed_tokens",
    final_norm="model.norm",
    unembed="lm_head",
    sites=LLAMA.sites,
    mlp_writes_residual=False,
)

_PHI3_SHARES = ("num_attention_heads", "num_key_value_heads", "num_key_value_heads")

PHI3 = Architecture(
    name="phi3",
    model_types=("phi3",),
    blocks="model.layers",
    embed="model.embed_tokens",
    final_norm="model.norm",
    unembed="lm_head",
    sites={
        "mlp.gate": Part("mlp.gate_up_proj", 0, 2),
        "mlp.up": Part("mlp.gate_up_proj", 1, 2),
        "mlp.down": Part("mlp.down_proj"),
        "attn.q": Part("self_attn.qkv_proj", 0, shares=_PHI3_SHARES),
        "attn.k": Part("self_attn.qkv_proj", 1, shares=_PHI3_SHARES),
        "attn.v": Part("self_attn.qkv_proj", 2, shares=_PHI3_SHARES),
        "attn.qkv": Part("self_attn.qkv_proj"),
        "attn.out": Part("self_attn.o_proj"),
        "mlp": Part("mlp"),
        "attn": Part("self_attn"),
        "resid": Part(""),
    },
)

PHI = Architecture(
    name="phi",
    model_types=("phi",),
    blocks="model.layers",
    embed="model.embed_tokens",
    final_norm="model.final_layernorm",
    unembed="lm_head",
    sites={
        "mlp.up": Part("mlp.fc1"),
        "mlp.down": Part("mlp.fc2"),
        "attn.q": Part("self_attn.q_proj"),
        "attn.k": Part("self_attn.k_proj"),
        "attn.v": Part("self_attn.v_proj"),
        "attn.out": Part("self_attn.dense"),
        "mlp": Part("mlp"),
        "attn": Part("self_attn"),
        "resid": Part(""),
    },
)

GPT_NEOX = Architecture(
    name="gpt_neox",
    model_types=("gpt_neox",),
    blocks="gpt_neox.layers",
    embed="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    unembed="lm_head",
    sites={
        "mlp.up": Part("mlp.dense_h_to_4h"),
        "mlp.down": Part("mlp.dense_4h_to_h"),
        "attn.q": Part("attention.query_key_value", 0, 3, groups="num_attention_heads"),
        "attn.k": Part("attention.query_key_value", 1, 3, groups="num_attention_heads"),
        "attn.v": Part("attention.query_key_value", 2, 3, groups="num_attention_heads"),
        "attn.qkv": Part("attention.query_key_value"),
        "attn.out": Part("attention.dense"),
        "mlp": Part("mlp"),
        "attn": Part("attention"),
        "resid": Part(""),
    },
)

# No `mlp` and `attn`: these modules add the residual stream to what they return.
BLOOM = Architecture(
    name="bloom",
    model_types=("bloom",),
    blocks="transformer.h",
    embed="transformer.word_embeddings",
    final_norm="transformer.ln_f",
    unembed="lm_head",
    sites={
        "mlp.up": Part("mlp.dense_h_to_4h"),
        "mlp.down": Part("mlp.dense_4h_to_h"),
        "attn.q": Part("self_attention.query_key_value", 0, 3, groups="num_attention_heads"),
        "attn.k": Part("self_attention.query_key_value", 1, 3, groups="num_attention_heads"),
        "attn.v": Part("self_attention.query_key_value", 2, 3, groups="num_attention_heads"),
        "attn.qkv": Part("self_attention.query_key_value"),
        "attn.out": Part("self_attention.dense"),
        "resid": Part(""),
    },
)

# No `mlp`: its layers stand in the block itself. The one checkpoint that norms after the MLP instead of before it
# (350M) also embeds in another width, and has no row.
OPT = Architecture(
    name="opt",
    model_types=("opt",),
    blocks="model.decoder.layers",
    embed="model.decoder.embed_tokens",
    final_norm="model.decoder.final_layer_norm",
    unembed="lm_head",
    sites={
        "mlp.up": Part("fc1"),
        "mlp.down": Part("fc2"),
        "attn.q": Part("self_attn.q_proj"),
        "attn.k": Part("self_attn.k_proj"),
        "attn.v": Part("self_attn.v_proj"),
        "attn.out": Part("self_attn.out_proj"),
        "attn": Part("self_attn"),
        "resid": Part(""),
    },
    when={"do_layer_norm_before": True},
)

# One model type, three layouts of the fused projection. What they have in common:
_FALCON_SITES = {
    "mlp.up": Part("mlp.dense_h_to_4h"),
    "mlp.down": Part("mlp.dense_4h_to_h"),
    "attn.qkv": Part("self_attention.query_key_value"),
    "attn.out": Part("self_attention.dense"),
    "mlp": Part("mlp"),
    "attn": Part("self_attention"),
    "resid": Part(""),
}
_FALCON_LINEAR = ("transformers.models.falcon.modeling_falcon.FalconLinear",)
_GROUPED_SHARES = ("num_attention_heads", "num_kv_heads", "num_kv_heads")
_ONE_KEY_SHARES = ("num_attention_heads", 1, 1)

# Some query heads, then the key and the value that they share, and so on.
FALCON_GROUPED = Architecture(
    name="falcon-grouped",
    model_types=("falcon",),
    blocks="transformer.h",
    embed="transformer.word_embeddings",
    final_norm="transformer.ln_f",
    unembed="lm_head",
    sites={
        **_FALCON_SITES,
        "attn.q": Part("self_attention.query_key_value", 0, shares=_GROUPED_SHARES, groups="num_kv_heads"),
        "attn.k": Part("self_attention.query_key_value", 1, shares=_GROUPED_SHARES, groups="num_kv_heads"),
        "attn.v": Part("self_attention.query_key_value", 2, shares=_GROUPED_SHARES, groups="num_kv_heads"),
    },
    when={"new_decoder_architecture": True},
    linear_types=_FALCON_LINEAR,
)

# All query heads, then one key and one value for all of them.
FALCON = Architecture(
    name="falcon",
    model_types=("falcon",),
    blocks="transformer.h",
    embed="transformer.word_embeddings",
    final_norm="transformer.ln_f",
    unembed="lm_head",
    sites={
        **_FALCON_SITES,
        "attn.q": Part("self_attention.query_key_value", 0, shares=_ONE_KEY_SHARES),
        "attn.k": Part("self_attention.query_key_value", 1, shares=_ONE_KEY_SHARES),
        "attn.v": Part("self_attention.query_key_value", 2, shares=_ONE_KEY_SHARES),
    },
    when={"new_decoder_architecture": False, "multi_query": True},
    linear_types=_FALCON_LINEAR,
)

# Query, key and value of a head, then those of the next.
FALCON_MULTI_HEAD = Architecture(
    name="falcon-multi-head",
    model_types=("falcon",),
    blocks="transformer.h",
    embed="transformer.word_embeddings",
    final_norm="transformer.ln_f",
    unembed="lm_head",
    sites={
        **_FALCON_SITES,
        "attn.q": Part("self_attention.query_key_value", 0, 3, groups="num_attention_heads"),
        "attn.k": Part("self_attention.query_key_value", 1, 3, groups="num_attention_heads"),
        "attn.v": Part("self_attention.query_key_value", 2, 3, groups="num_attention_heads"),
    },
    when={"new_decoder_architecture": False, "multi_query": False},
    linear_types=_FALCON_LINEAR,
)

FAMILIES = (
    GPT2,
    GPTJ,
    LLAMA,
    LLAMA_POST_NORM,
    PHI,
    PHI3,
    GPT_NEOX,
    BLOOM,
    OPT,
    FALCON,
    FALCON_GROUPED,
    FALCON_MULTI_HEAD,
)
