"""Where each decoder family keeps its parts. Data only: one row a layout, nothing computed.

Paths inside a block are relative to the block; the others start at the model. `Part(path, index, of)` is a slice of
a fused projection, cut along its output features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """A module, or one slice of its output features where it fuses several projections.

    The output is `groups` runs of equal length, one after another, and each run holds the slices in order. So three
    equal thirds have one group; queries, keys and values that alternate head by head have one group a head.

    Arguments:
        path: dotted path; the empty string is the block itself.
        index: which slice, from 0.
        of: how many equal slices the module fuses; 1 for a module of its own.
        shares: for slices of unequal size what their sizes are in proportion to, numbers or names of config fields;
            takes the place of `of`.
        groups: how often the slices repeat, a number or the name of a config field.
    """

    path: str
    index: int = 0
    of: int = 1
    shares: tuple[int | str, ...] = ()
    groups: int | str = 1

    @property
    def is_slice(self) -> bool:
        """Whether the module holds more than this part."""
        return self.of > 1 or bool(self.shares)


@dataclass(frozen=True)
class Stack:
    """One stack of blocks, an encoder or a decoder; the fields are those of `Architecture`."""

    blocks: str
    embed: str
    final_norm: str | None
    sites: Mapping[str, Part]


@dataclass(frozen=True)
class Architecture:
    """One row of the site table. Of an encoder-decoder its fields say where the decoder keeps its parts.

    Arguments:
        name: the family's name.
        model_types: values of `config.model_type` that this row is for.
        blocks: path of the list of blocks.
        embed: path of the token embedding.
        final_norm: path of the norm before the head; `None` where the last block's own norm is the last.
        unembed: path of the head.
        sites: site name to its place in a block. A site that the family does not have as a module is left out.
        when: config fields and the values they must have for this row; for model types of several layouts.
        mlp_writes_residual: whether what `mlp.down` writes is added to the residual stream as it is. False where a
            norm or a factor stands in between: there, a change of the MLP's output is not the same change of the
            block's.
        is_mixture: whether a router sends each token to a few of a layer's experts, so that there are no `mlp.up`,
            `mlp.gate` and `mlp.down`.
        linear_types: qualified names of subclasses of `nn.Linear` that hold a plain weight, to be taken as one. Other
            subclasses are refused: most of them are quantised layers or adapters.
        encoder: the encoder of an encoder-decoder; `None` for a decoder alone.

    To use a family of your own, pass such a row to `palimpsest.load(model, architecture=...)`, or register it
    through the entry-point group `palimpsest.architectures`.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    embed: str
    final_norm: str | None
    unembed: str
    sites: Mapping[str, Part]
    when: Mapping[str, object] = field(default_factory=dict)
    mlp_writes_residual: bool = True
    is_mixture: bool = False
    linear_types: tuple[str, ...] = ()
    encoder: Stack | None = None

    @property
    def stacks(self) -> dict[str, Stack]:
        """`encoder`, if there is one, and `decoder`."""
        encoder = {} if self.encoder is None else {"encoder": self.encoder}
        return {**encoder, "decoder": Stack(self.blocks, self.embed, self.final_norm, self.sites)}


SITE_NAMES = (
    "mlp.up",
    "mlp.gate",
    "mlp.down",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.qkv",
    "attn.out",
    "cross.q",
    "cross.k",
    "cross.v",
    "cross.out",
    "mlp",
    "attn",
    "cross",
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
