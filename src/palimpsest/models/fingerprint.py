"""Which weights these are: a fingerprint that tells two models apart and says where they differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

SAMPLE = 65_536
_AT_ONCE = 4_194_304
# Fields of a model's config that change what it computes without changing any tensor's shape or content.
_CONFIG_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rotary_dim",
    "rope_theta",
    "activation_function",
    "hidden_act",
    "layer_norm_epsilon",
    "rms_norm_eps",
    "tie_word_embeddings",
    "head_dim",
    "sliding_window",
    "scale_attn_weights",
    "rope_parameters",
    "rope_scaling",
    "decoder_start_token_id",
    "num_decoder_layers",
    "feed_forward_proj",
    "scale_decoder_outputs",
    "relative_attention_max_distance",
    "decoder_attention_heads",
    "scale_embedding",
)


def tensor_digest(tensor: Tensor, *, whole: bool) -> str:
    """A hash of shape and values, in hexadecimal.

    Values are rounded to bfloat16 first, so that one checkpoint loaded as float32 and as bfloat16 has one digest.

    Arguments:
        whole: hash every value; otherwise an evenly spaced sample of at most `SAMPLE` of them.
    """
    # A tensor that stands for others, as torchao's do, is read as what it stands for.
    values = tensor.detach()
    is_itself = type(values) is Tensor or hasattr(values, "full_tensor")
    flat = (values if is_itself else values.dequantize()).reshape(-1)
    if not whole and flat.numel() > SAMPLE:
        flat = flat[:: -(-flat.numel() // SAMPLE)]
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    # Some values at a time: a copy of a large tensor is never made whole.
    for start in range(0, flat.numel(), _AT_ONCE):
        part = flat[start : start + _AT_ONCE]
        digest.update(part.to(torch.bfloat16).contiguous().cpu().view(torch.int16).numpy().data)
    return digest.hexdigest()[:16]


def exact_digest(tensor: Tensor) -> str:
    """A hash of shape, dtype and every bit, in hexadecimal: models that are merely close do not share it.

    See `tensor_digest` for the one that forgives a checkpoint's precision.
    """
    flat = tensor.detach().reshape(-1)
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    for start in range(0, flat.numel(), _AT_ONCE):
        digest.update(flat[start : start + _AT_ONCE].contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that decides which ids a text becomes, in hexadecimal."""
    if tokenizer.is_fast:
        record = json.loads(tokenizer.backend_tokenizer.to_str())
        # These two follow from the last call, not from the tokenizer.
        record.pop("truncation", None), record.pop("padding", None)
    else:
        record = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def config_fields(config: PretrainedConfig) -> dict[str, Any]:
    """The fields of a model's config that belong to its identity."""
    present = {name: getattr(config, name, None) for name in _CONFIG_FIELDS}
    return {name: value for name, value in present.items() if isinstance(value, (str, int, float, bool, dict))}


Digest = Callable[[str, bool], str]
"""From a parameter's name and `whole` to the digest of its base value."""


def fingerprint(
    config: PretrainedConfig, shapes: Mapping[str, list[int]], digest: Digest, touched: Iterable[str]
) -> dict[str, Any]:
    """Returns the fingerprint of a base model that a patch records.

    Arguments:
        config: the model's config.
        shapes: the shape of every parameter, by name.
        digest: gives a parameter's digest as the base model has it; see `tensor_digest`.
        touched: names of the parameters that the patch changes; these are hashed whole.

    Returns a dictionary with `config`, `weights` (one digest over samples of all tensors) and `touched` (name to
    shape and digest); `EditableModel.fingerprint` adds `file`, a GGUF file's SHA-256.
    """
    samples = [f"{name}:{digest(name, False)}" for name in sorted(shapes)]
    return {
        "config": config_fields(config),
        "weights": hashlib.sha256("\n".join(samples).encode()).hexdigest()[:16],
        "touched": {name: {"shape": shapes[name], "digest": digest(name, True)} for name in sorted(touched)},
    }


def fingerprint_differences(
    recorded: Mapping[str, Any], found: Mapping[str, Any], *, owner: str = "the patch"
) -> list[str]:
    """Sentences that name what two fingerprints disagree on; empty when they are one model.

    Arguments:
        owner: whose fingerprint the recorded one is.
    """
    lines = []
    for name in sorted(set(recorded["config"]) | set(found["config"])):
        ours, theirs = recorded["config"].get(name), found["config"].get(name)
        if ours != theirs:
            lines.append(f"config.{name} is {theirs!r}, {owner} was made for {ours!r}")
    for name, entry in recorded["touched"].items():
        other = found["touched"].get(name)
        if other is None:
            lines.append(f"tensor {name} is missing")
        elif other["shape"] != entry["shape"]:
            lines.append(f"tensor {name} has shape {other['shape']}, {owner} was made for {entry['shape']}")
        elif other["digest"] != entry["digest"]:
            lines.append(f"tensor {name} has other values")
    if not lines and recorded["weights"] != found["weights"]:
        lines.append(f"weights that {owner} does not touch have other values")
    # Of two files; a file and a folder that was made of it have the same weights.
    files = recorded.get("file"), found.get("file")
    if not lines and None not in files and files[0] != files[1]:
        lines.append(f"the GGUF file has other contents (SHA-256 {str(files[1])[:16]}, not {str(files[0])[:16]})")
    return lines
