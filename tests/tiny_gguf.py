"""A tiny Llama as a GGUF file, written with the package gguf as llama.cpp's converter writes one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import tiny

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a parameter."""
    owner, _, kind = name.rpartition(".")
    if owner.startswith("model.layers."):
        _, _, number, part = owner.split(".", 3)
        return f"blk.{number}.{NAMES[part]}.{kind}"
    return f"{NAMES[owner]}.{kind}"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key projection in llama.cpp's order: halves of a head's rotary pairs side by side."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def tensors_of(module: Any) -> dict[str, np.ndarray]:
    """Every parameter under llama.cpp's name, in its order of rows."""
    config, found = module.config, {}
    for name, value in module.state_dict().items():
        array = value.float().numpy()
        if name.endswith("q_proj.weight"):
            array = permuted(array, config.num_attention_heads)
        if name.endswith("k_proj.weight"):
            array = permuted(array, config.num_key_value_heads)
        found[gguf_name(name)] = np.ascontiguousarray(array)
    return found


def write_gguf(
    path: Path,
    *,
    seed: int = 0,
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    without: tuple[str, ...] = (),
    rope_theta: float | None = None,
    architecture: str = "llama",
    more: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> Any:
    """Writes a tiny Llama; returns the module that was written.

    Arguments:
        kinds: types of tensors by the last part of their owner's name, such as `ffn_down`; others are float32.
        without: names of tensors, or beginnings of keys, that are left out.
        more: further keys with texts or whole numbers.
        tensors: further tensors.
    """
    module = tiny.tiny_module("llama", seed=seed)
    config = module.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(rope_theta or float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if "tokenizer" not in without:
        model = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        vocabulary = sorted(tiny.tokenizer().get_vocab().items(), key=lambda item: item[1])
        writer.add_token_list([token for token, _ in vocabulary])
        writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token, _ in vocabulary])
        writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        writer.add_add_bos_token(False)
    for key, value in (more or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    for name, array in {**tensors_of(module), **(tensors or {})}.items():
        if name in without:
            continue
        kind = (kinds or {}).get(name.split(".")[-2])
        if kind is None:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return module
