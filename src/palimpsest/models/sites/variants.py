"""More rows of the site table: dense decoders that differ from a row of `families` in a few names. Data only."""

from __future__ import annotations

from dataclasses import replace

from palimpsest.models.sites.families import GPT2, GPTJ, LLAMA, LLAMA_POST_NORM
from palimpsest.models.sites.rows import Part

GPT_NEO = replace(
    GPT2,
    name="gpt_neo",
    model_types=("gpt_neo",),
    sites={
        "mlp.up": Part("mlp.c_fc"),
        "mlp.down": Part("mlp.c_proj"),
        "attn.q": Part("attn.attention.q_proj"),
        "attn.k": Part("attn.attention.k_proj"),
        "attn.v": Part("attn.attention.v_proj"),
        "attn.out": Part("attn.attention.out_proj"),
        "mlp": Part("mlp"),
        "attn": Part("attn"),
        "resid": Part(""),
    },
)

# All query heads, then one key and one value for all of them.
_ONE_KEY = ("num_attention_heads", 1, 1)

GPT_BIGCODE = replace(
    GPT2,
    name="gpt_bigcode",
    model_types=("gpt_bigcode",),
    sites={
        **GPT2.sites,
        "attn.q": Part("attn.c_attn", 0, shares=_ONE_KEY),
        "attn.k": Part("attn.c_attn", 1, shares=_ONE_KEY),
        "attn.v": Part("attn.c_attn", 2, shares=_ONE_KEY),
    },
    when={"multi_query": True},
)

# The fused projection was cut for four devices: four runs, each with queries, values and keys in this order.
CODEGEN = replace(
    GPTJ,
    name="codegen",
    model_types=("codegen",),
    sites={
        **GPTJ.sites,
        "attn.q": Part("attn.qkv_proj", 0, 3, groups=4),
        "attn.v": Part("attn.qkv_proj", 1, 3, groups=4),
        "attn.k": Part("attn.qkv_proj", 2, 3, groups=4),
        "attn.qkv": Part("attn.qkv_proj"),
    },
)

# No `mlp`: this module adds the residual stream to what it returns.
MPT = replace(
    GPT2,
    name="mpt",
    model_types=("mpt",),
    blocks="transformer.blocks",
    final_norm="transformer.norm_f",
    sites={
        "mlp.up": Part("ffn.up_proj"),
        "mlp.down": Part("ffn.down_proj"),
        "attn.q": Part("attn.Wqkv", 0, 3),
        "attn.k": Part("attn.Wqkv", 1, 3),
        "attn.v": Part("attn.Wqkv", 2, 3),
        "attn.qkv": Part("attn.Wqkv"),
        "attn.out": Part("attn.out_proj"),
        "attn": Part("attn"),
        "resid": Part(""),
    },
)

STARCODER2 = replace(
    LLAMA,
    name="starcoder2",
    model_types=("starcoder2",),
    sites={
        **{site: part for site, part in LLAMA.sites.items() if site != "mlp.gate"},
        "mlp.up": Part("mlp.c_fc"),
        "mlp.down": Part("mlp.c_proj"),
    },
)

LLAMA_UNGATED = replace(
    LLAMA,
    name="llama-ungated",
    model_types=("nemotron", "arcee", "apertus"),
    sites={site: part for site, part in LLAMA.sites.items() if site != "mlp.gate"},
)

# What the MLP writes is multiplied before it is added.
GRANITE = replace(LLAMA, name="granite", model_types=("granite",), mlp_writes_residual=False)

_FUSED_GATE = {**LLAMA.sites, "mlp.gate": Part("mlp.gate_up_proj", 0, 2), "mlp.up": Part("mlp.gate_up_proj", 1, 2)}

GLM = replace(LLAMA, name="glm", model_types=("glm",), sites=_FUSED_GATE)

GLM4 = replace(LLAMA_POST_NORM, name="glm4", model_types=("glm4",), sites=_FUSED_GATE)

VARIANTS = (GPT_NEO, GPT_BIGCODE, CODEGEN, MPT, STARCODER2, LLAMA_UNGATED, GRANITE, GLM, GLM4)
