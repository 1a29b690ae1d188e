"""Where each encoder-decoder family keeps its parts; see `models.sites.families`. Data only."""

from __future__ import annotations

from palimpsest.models.sites.rows import Architecture, Part, Stack

# A decoder's block has the attention to the encoder between its own attention and the MLP.
_T5_ENCODER_ATTENTION = {
    "attn.q": Part("layer.0.SelfAttention.q"),
    "attn.k": Part("layer.0.SelfAttention.k"),
    "attn.v": Part("layer.0.SelfAttention.v"),
    "attn.out": Part("layer.0.SelfAttention.o"),
    "attn": Part("layer.0.SelfAttention"),
    "resid": Part(""),
}
_T5_DECODER_ATTENTION = {
    **_T5_ENCODER_ATTENTION,
    "cross.q": Part("layer.1.EncDecAttention.q"),
    "cross.k": Part("layer.1.EncDecAttention.k"),
    "cross.v": Part("layer.1.EncDecAttention.v"),
    "cross.out": Part("layer.1.EncDecAttention.o"),
    "cross": Part("layer.1.EncDecAttention"),
}

# Version 1.0.
T5 = Architecture(
    name="t5",
    model_types=("t5",),
    blocks="decoder.block",
    embed="decoder.embed_tokens",
    final_norm="decoder.final_layer_norm",
    unembed="lm_head",
    sites={
        "mlp.up": Part("layer.2.DenseReluDense.wi"),
        "mlp.down": Part("layer.2.DenseReluDense.wo"),
        "mlp": Part("layer.2.DenseReluDense"),
        **_T5_DECODER_ATTENTION,
    },
    when={"is_encoder_decoder": True, "is_gated_act": False},
    encoder=Stack(
        blocks="encoder.block",
        embed="encoder.embed_tokens",
        final_norm="encoder.final_layer_norm",
        sites={
            "mlp.up": Part("layer.1.DenseReluDense.wi"),
            "mlp.down": Part("layer.1.DenseReluDense.wo"),
            "mlp": Part("layer.1.DenseReluDense"),
            **_T5_ENCODER_ATTENTION,
        },
    ),
)

# Version 1.1, and what was trained from it.
T5_GATED = Architecture(
    name="t5-gated",
    model_types=("t5",),
    blocks="decoder.block",
    embed="decoder.embed_tokens",
    final_norm="decoder.final_layer_norm",
    unembed="lm_head",
    sites={
        "mlp.up": Part("layer.2.DenseReluDense.wi_1"),
        "mlp.gate": Part("layer.2.DenseReluDense.wi_0"),
        "mlp.down": Part("layer.2.DenseReluDense.wo"),
        "mlp": Part("layer.2.DenseReluDense"),
        **_T5_DECODER_ATTENTION,
    },
    when={"is_encoder_decoder": True, "is_gated_act": True},
    encoder=Stack(
        blocks="encoder.block",
        embed="encoder.embed_tokens",
        final_norm="encoder.final_layer_norm",
        sites={
            "mlp.up": Part("layer.1.DenseReluDense.wi_1"),
            "mlp.gate": Part("layer.1.DenseReluDense.wi_0"),
            "mlp.down": Part("layer.1.DenseReluDense.wo"),
            "mlp": Part("layer.1.DenseReluDense"),
            **_T5_ENCODER_ATTENTION,
        },
    ),
)

# No `mlp`: its layers stand in the block itself. Every norm follows what it norms, the last one included.
_BART_ENCODER_SITES = {
    "mlp.up": Part("fc1"),
    "mlp.down": Part("fc2"),
    "attn.q": Part("self_attn.q_proj"),
    "attn.k": Part("self_attn.k_proj"),
    "attn.v": Part("self_attn.v_proj"),
    "attn.out": Part("self_attn.out_proj"),
    "attn": Part("self_attn"),
    "resid": Part(""),
}

BART = Architecture(
    name="bart",
    model_types=("bart",),
    blocks="model.decoder.layers",
    embed="model.decoder.embed_tokens",
    final_norm=None,
    unembed="lm_head",
    sites={
        **_BART_ENCODER_SITES,
        "cross.q": Part("encoder_attn.q_proj"),
        "cross.k": Part("encoder_attn.k_proj"),
        "cross.v": Part("encoder_attn.v_proj"),
        "cross.out": Part("encoder_attn.out_proj"),
        "cross": Part("encoder_attn"),
    },
    when={"is_encoder_decoder": True},
    mlp_writes_residual=False,
    encoder=Stack(
        blocks="model.encoder.layers",
        embed="model.encoder.embed_tokens",
        final_norm=None,
        sites=_BART_ENCODER_SITES,
    ),
)

ENCODER_DECODERS = (T5, T5_GATED, BART)
