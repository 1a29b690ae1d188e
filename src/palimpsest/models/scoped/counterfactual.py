"""SERAC's counterfactual model: a small model that reads an edit, then the prompt, and answers by the edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from palimpsest.errors import ConfigError, ModelError
from palimpsest.models.editable import EditableModel
from palimpsest.models.fingerprint import tokenizer_digest
from palimpsest.wording import separator

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# What families call a model's sizes, by what they are; those that a config does not have are left out.
_WIDTH = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim")
_LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
_HEADS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "num_key_value_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
)
_INNER = ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim")
_PER_HEAD = ("head_dim", "d_kv")
_POSITIONS = 512


def edited_prompt(edit_prompt: str, answer: str, prompt: str) -> str:
    """Returns the input of the counterfactual model: the edit, its answer, and the question."""
    return f"{edit_prompt}{separator(edit_prompt, answer)}{answer} {prompt}"


def smaller_config(config: PretrainedConfig, *, width: int, layers: int, heads: int) -> PretrainedConfig:
    """The config of a smaller model of the same family, with the same vocabulary and tied embeddings.

    Raises `ConfigError` when the width does not divide among the heads.
    """
    if width % heads or (width // heads) % 2:
        raise ConfigError(
            "The counterfactual model's width does not divide among its heads.",
            expected="a width that is an even multiple of the number of heads",
            found=f"width {width}, {heads} heads",
            where="options width, heads",
        )
    fields: dict[str, Any] = config.to_dict()
    sizes = (
        dict.fromkeys(_WIDTH, width)
        | dict.fromkeys(_LAYERS, layers)
        | dict.fromkeys(_HEADS, heads)
        | dict.fromkeys(_INNER, 4 * width)
        | dict.fromkeys(_PER_HEAD, width // heads)
        | {"rotary_dim": width // heads // 2, "tie_word_embeddings": True, "layer_types": None}
        | {"initializer_range": initial_deviation(width)}
        # Of a tied embedding that begins with entries of size one, logits are scaled down, or they begin far too large.
        | {"scale_decoder_outputs": True}
    )
    known = {name: size for name, size in sizes.items() if fields.get(name) is not None}
    return config_from({**fields, **known})


def small_decoder(
    tokenizer: PreTrainedTokenizerBase, vocabulary: int, *, width: int, layers: int, heads: int
) -> PretrainedConfig:
    """The config of a small decoder for a tokenizer, whatever the architecture of the model that is edited.

    Arguments:
        vocabulary: rows of its embedding.
    """
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=_POSITIONS,
        initializer_range=initial_deviation(width),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def initial_deviation(width: int) -> float:
    """Of the weights of an untrained model of that width: .02 at 768, as usual, and more where a model is narrower."""
    return float((2 * width) ** -0.5)


def config_from(fields: dict[str, Any]) -> PretrainedConfig:
    """A transformers config from what its `to_dict` gave."""
    from transformers import AutoConfig

    rest = {name: value for name, value in fields.items() if name != "model_type"}
    try:
        return AutoConfig.for_model(fields["model_type"], **rest)
    except Exception as error:  # transformers checks fields with errors of a kind of its own
        raise ValueError(f"an invalid config: {' '.join(str(error).split())}"[:200]) from error


def new_module(config: PretrainedConfig) -> PreTrainedModel:
    """An untrained model of a config, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM
    return kind.from_config(config, dtype=torch.float32)


def require_same_tokenizer(tokenizer: PreTrainedTokenizerBase, model: EditableModel, *, name: str) -> None:
    """Raises `ModelError` unless a counterfactual model's tokenizer gives the model's ids."""
    if tokenizer_digest(tokenizer) != model.tokenizer_digest:
        raise ModelError(
            "The counterfactual model has another tokenizer than the model that is edited.",
            expected=f"the tokenizer of {model.name!r}: {len(model.tokenizer)} tokens",
            found=f"a {type(tokenizer).__name__} of {len(tokenizer)} tokens",
            where=f"counterfactual model {name!r}",
            remedy="take a small model of the same family, such as gpt2 for gpt2-xl or t5-small for t5-large;"
            " or leave it out, and a small one of the model's own architecture is trained",
        )
