"""GGUF files as models: what is checked before one is read, and its weights as plain floating-point numbers."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from palimpsest.checkpoints.gguf_header import GGUF, Header, damaged, read_header
from palimpsest.checkpoints.gguf_passes import parsed_once
from palimpsest.checkpoints.refusals import refused_by_transformers
from palimpsest.errors import ModelError, some_of

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
# Tensors that are no weights: factors of the rotary embedding's frequencies.
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Families whose rotary scaling transformers takes from the file.
_READS_SCALING = ("gpt-oss", "qwen35", "qwen35moe")
_LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def the_gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a folder without safetensors weights; `None` for a folder without any.

    Raises `ModelError` for a folder of several, since they are mostly one model in several precisions.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == GGUF)
    if len(files) > 1:
        names = [path.name for path in files]
        raise ModelError(
            "The folder holds several GGUF files.",
            expected="the path of one of them",
            found=some_of(names, most=8),
            where=str(folder),
            remedy=f"name one, such as {files[0]}",
        )
    return files[0] if files else None


def check_gguf(path: Path) -> Header:
    """The header of a file that can be read as a model. Raises `ModelError`, within a second, for any other."""
    header = read_header(path)
    _require_package(path)
    _refuse_parts(header)
    kind = header.metadata.get("general.type", "model")
    if kind != "model" or header.architecture in ("clip", "mmproj"):
        raise ModelError(
            "This GGUF file is not a whole language model.",
            expected="general.type model",
            found=f"general.type {kind}, architecture {header.architecture or 'none'}",
            where=str(path),
            remedy="give the file of the model itself",
        )
    if not header.metadata.get("tokenizer.ggml.model") or not header.metadata.get("tokenizer.ggml.tokens"):
        raise ModelError(
            "The GGUF file has no tokenizer.",
            expected="the keys tokenizer.ggml.model and tokenizer.ggml.tokens",
            found="a file without them",
            where=str(path),
            remedy="convert the model again with its tokenizer files beside it",
        )
    _check_tensors(header)
    _rope_parameters(header)
    return header


def from_gguf(path: Path, *, dtype: torch.dtype, placement: str | Mapping[str, Any]) -> tuple[Any, Any]:
    """The model, its weights expanded to a floating-point dtype, and its tokenizer.

    Raises `ModelError` for what `check` refuses, for an architecture that transformers cannot convert, and where
    tensors are missing or left over.
    """
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    header = check_gguf(path)
    file = str(path.resolve())
    options: dict[str, Any] = {"gguf_file": file, "trust_remote_code": False}
    # transformers looks for other files beside a GGUF file: it is given an empty folder to look in.
    with tempfile.TemporaryDirectory(prefix="palimpsest-gguf-") as empty, parsed_once():
        with refused_by_transformers(str(path), where=str(path), what=f"the architecture {header.architecture!r}"):
            config = AutoConfig.from_pretrained(empty, **options)
        if (scaling := _rope_parameters(header)) is not None:
            config.rope_parameters = {**(config.rope_parameters or {}), **scaling}
        with refused_by_transformers(str(path), where=str(path), what="its tokenizer (tokenizer.ggml.*)"):
            tokenizer = AutoTokenizer.from_pretrained(empty, **options)
        if hasattr(transformers, "GgufConfig"):
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        kind = AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM
        with refused_by_transformers(str(path), where=str(path), what="its tensors"):
            module, report = kind.from_pretrained(
                empty, config=config, dtype=dtype, device_map=placement, output_loading_info=True, **options
            )
    module.config._name_or_path = tokenizer.name_or_path = file
    module.name_or_path = file
    _require_all(header, module, report)
    return module, tokenizer


def _require_package(path: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            "Reading a GGUF file needs the package gguf.",
            expected="the extra gguf",
            found="no package gguf",
            where=str(path),
            remedy="pip install 'palimpsest-lm[gguf]'",
        )


def _refuse_parts(header: Header) -> None:
    part, count = _PART.search(header.path.name), header.metadata.get("split.count", 0)
    if part is not None or (isinstance(count, int) and count > 1):
        total = int(part[2]) if part else count
        raise ModelError(
            "The GGUF file is one part of several.",
            expected="the model in one file",
            found=f"one part of {total}",
            where=str(header.path),
            remedy="join them with llama.cpp: llama-gguf-split --merge FIRST-PART WHOLE.gguf",
        )


def _check_tensors(header: Header) -> None:
    """Every tensor is of a type that can be read, and all of it is in the file."""
    import gguf
    import numpy as np

    names = {int(one): one.name for one in gguf.GGMLQuantizationType}
    unreadable: dict[str, list[str]] = {}
    readable: dict[int, bool] = {}
    for tensor in header.tensors:
        if tensor.kind not in readable:
            readable[tensor.kind] = False
            if tensor.kind in names:
                _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]
                try:
                    gguf.dequantize(np.zeros((1, size), np.uint8), gguf.GGMLQuantizationType(tensor.kind))
                    readable[tensor.kind] = True
                except NotImplementedError:
                    pass
        if not readable[tensor.kind]:
            unreadable.setdefault(names.get(tensor.kind, f"number {tensor.kind}"), []).append(tensor.name)
    if unreadable:
        raise ModelError(
            "The GGUF file has tensors of a type that cannot be read.",
            expected="types such as F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K, IQ1 to IQ4",
            found="; ".join(f"type {kind} ({len(found)}, such as {found[0]})" for kind, found in unreadable.items()),
            where=str(header.path),
            remedy="take the model in another quantisation, or update the package gguf",
        )
    for tensor in header.tensors:
        per_block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]
        if tensor.shape[-1] % per_block or tensor.numel == 0:
            raise damaged(header.path, f"tensor {tensor.name} of shape {list(tensor.shape)} as {names[tensor.kind]}")
        end = tensor.start + tensor.numel // per_block * size
        if end > header.size:
            raise damaged(header.path, f"tensor {tensor.name} would end at byte {end} of {header.size}")


def _rope_parameters(header: Header) -> dict[str, Any] | None:
    """The rotary embedding's scaling, which transformers leaves out for most families; `None` if there is none.

    Llama 3's is a tensor of factors, which its formula gives back. Raises `ModelError` for any other: a model
    without its scaling would read positions wrongly.
    """
    if header.architecture in _READS_SCALING:
        return None
    tensors = [tensor for tensor in header.tensors if tensor.name in _ROPE_TENSORS]
    kind, factor = header.own("rope.scaling.type"), header.own("rope.scaling.factor")
    if [tensor.name for tensor in tensors] == [_ROPE_TENSORS[0]] and kind in (None, "none"):
        found = _llama_3_scaling(header)
        if found is not None:
            return found
    elif (
        not tensors
        and (kind in (None, "none") or factor in (None, 0.0, 1.0))
        and header.own("rope.scale_linear")
        in (
            None,
            1.0,
        )
    ):
        return None
    raise ModelError(
        "The GGUF file scales its rotary embedding in a way that transformers does not read.",
        expected="no scaling, or that of Llama 3",
        found=f"rope.scaling.type {kind!r}, factor {factor}"
        + (f", {', '.join(tensor.name for tensor in tensors)}" if tensors else ""),
        where=str(header.path),
        remedy="take the model's Hugging Face folder",
    )


def _llama_3_scaling(header: Header) -> dict[str, Any] | None:
    """Llama 3's parameters that give the file's factors, if any do."""
    import numpy as np

    (tensor,) = (one for one in header.tensors if one.name == _ROPE_TENSORS[0])
    if tensor.kind != 0:
        return None
    factors = np.fromfile(header.path, dtype="<f4", count=tensor.numel, offset=tensor.start)
    factor = float(factors.max())
    base = float(header.own("rope.freq_base") or 10000.0)
    lengths = 2 * np.pi * base ** (np.arange(len(factors)) / len(factors))
    low, high = 8192 / _LLAMA_3["low_freq_factor"], 8192 / _LLAMA_3["high_freq_factor"]
    smooth = (8192 / lengths - _LLAMA_3["low_freq_factor"]) / 3.0
    between = 1 / ((1 - smooth) / factor + smooth)
    expected = np.where(lengths < high, 1.0, np.where(lengths > low, factor, between))
    found = {"rope_type": "llama3", "factor": factor, **_LLAMA_3}
    return found if np.allclose(factors, expected, rtol=1e-3) else None


def _require_all(header: Header, module: Any, report: Mapping[str, Any]) -> None:
    """Raises unless file and model have the same tensors: a missing one would be random, an unused one lost."""
    missing = sorted(report["missing_keys"])
    tied = bool(getattr(module.config, "tie_word_embeddings", False))
    stored = [
        one for one in header.tensors if one.name not in _ROPE_TENSORS and not (tied and one.name == "output.weight")
    ]
    in_file = sum(one.numel for one in stored)
    in_model = sum(parameter.numel() for parameter in module.parameters())
    if missing or in_file != in_model:
        raise ModelError(
            "The GGUF file and the model that transformers makes of it do not have the same weights.",
            expected=f"{in_model:,} numbers, as many as {type(module).__name__} has",
            found=f"nothing for {', '.join(missing[:3])}" if missing else f"{in_file:,} numbers in the file",
            where=str(header.path),
            remedy="update transformers, or take the model's Hugging Face folder",
        )
