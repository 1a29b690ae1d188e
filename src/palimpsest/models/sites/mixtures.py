"""Mixtures of experts: rows of the site table that name the attention and the experts. Data only.

A layer's experts are stacked in one tensor behind a router, so there is no one matrix `mlp.up` or `mlp.gate`. Their
down-projections side by side are `mlp.down`; see `sites.experts`. The module as a whole has its site `mlp`, shared
experts and all: its input and output can be looked at and changed.
"""

from __future__ import annotations

from dataclasses import replace

from palimpsest.models.sites.families import LLAMA
from palimpsest.models.sites.rows import Part

_ATTENTION = {site: part for site, part in LLAMA.sites.items() if not site.startswith("mlp.")}

MIXTURE = replace(
    LLAMA,
    name="llama-mixture",
    model_types=(
        "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "gpt_oss", "glm4_moe", "ernie4_5_moe",
    ),
    sites={"mlp.down": Part("mlp.experts", is_experts=True, otherwise="mlp.down_proj"), **_ATTENTION},
    is_mixture=True,
)  # fmt: skip

# What the experts write is multiplied before it is added.
GRANITE_MIXTURE = replace(
    LLAMA,
    name="granite-mixture",
    model_types=("granitemoe",),
    sites={
        "mlp.down": Part("block_sparse_moe.experts", is_experts=True),
        **_ATTENTION,
        "mlp": Part("block_sparse_moe"),
    },
    mlp_writes_residual=False,
    is_mixture=True,
)

MIXTURES = (MIXTURE, GRANITE_MIXTURE)

# Config fields that say how many experts a layer chooses from.
EXPERT_FIELDS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
