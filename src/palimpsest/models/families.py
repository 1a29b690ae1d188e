"""Where each model family keeps its parts. Data only: one row a family, nothing computed.

Paths inside a block are relative to the block; the others start at the model. `Part(path, index, of)` is a slice of
a fused projection, cut along its output features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A module, or one of `of` equal slices of its output features.

    Arguments:
        path: dotted path; the empty string is the block itself.
        index: which slice, from 0.
        of: how many slices the module fuses; 1 for a module of its own.
    """

    path: str
    index: int = 0
    of: int = 1


@dataclass(frozen=True)
class Architecture:
    """One row of the site table.

    Arguments:
        name: the family's name.
        model_types: values of `config.model_type` that this row is for.
        blocks: path of the list of blocks.
        embed: path of the token embedding.
        final_norm: path of the norm before the head.
        unembed: path of the head.
        sites: site name to its place in a block.

    To use a family of your own, pass such a row to `palimpsest.load(model, architecture=...)`, or register it
    through the entry-point group `palimpsest.architectures`.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    embed: str
    final_norm: str
    unembed: str
    sites: Mapping[str, Part]


SITE_NAMES = (
    "mlp.up",
    "mlp.gate",
    "mlp.down",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.out",
    "mlp",
    "attn",
    "resid",
)

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
    model_types=("llama", "mistral", "qwen2"),
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

FAMILIES = (GPT2, GPTJ, LLAMA)
