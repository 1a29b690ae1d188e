"""Safetensors files, whole or not at all, and what may be in them. torch is imported when there is one to read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.files.regular import require_readable

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Stored:
    """The content of a safetensors file.

    Arguments:
        tensors: by name.
        texts: what was stored with them.
    """

    tensors: dict[str, Tensor]
    texts: dict[str, str]


def write_tensors(tensors: dict[str, Any], file: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file and forces it to the disk. Raises `OSError` when the disk refuses."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, file, metadata=metadata)
        # A full disk may only show when the data is forced out; the file must not appear before that.
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except SafetensorError as error:
        # `new_folder` and `new_file`, which know the path the user gave, make the message.
        raise OSError(str(error)) from error


def read_tensors(file: str | Path) -> Stored:
    """Reads a safetensors file. Raises `OSError` or `ValueError`; `FileKind.tensors` makes an error to show."""
    from safetensors import SafetensorError, safe_open

    _require_file(file)
    try:
        with safe_open(str(file), framework="pt") as stored:
            return Stored({name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error).splitlines()[0]) from error


def read_texts(file: str | Path) -> dict[str, str]:
    """The texts that were stored with the tensors of a safetensors file. Raises as `read_tensors` does."""
    from safetensors import SafetensorError, safe_open

    _require_file(file)
    try:
        with safe_open(str(file), framework="pt") as stored:
            return dict(stored.metadata() or {})
    except SafetensorError as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _require_file(file: str | Path) -> None:
    require_readable(file)
    if os.path.isdir(file):
        raise IsADirectoryError(21, "a folder")


def require_numbers(tensors: Mapping[str, Tensor], *, integers: bool = False, finite: bool = True) -> None:
    """Raises `ValueError`, which names the tensor, for numbers that nothing of ours is made of.

    Arguments:
        integers: whether whole numbers and truth values may be among them.
        finite: whether all must be finite.
    """
    import torch

    real = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    for name, tensor in tensors.items():
        if tensor.dtype in real:
            if finite and not torch.isfinite(tensor).all():
                raise ValueError(f"tensor {name}: NaN or infinity")
        elif not (integers and tensor.dtype in whole):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"tensor {name}: numbers of type {kind} instead of float32, bfloat16, float16 or float64")


def shaped(tensor: Tensor, *shape: int | None, name: str) -> Tensor:
    """The tensor itself. Raises `ValueError` for another shape than this; `None` stands for any size."""
    is_right = tensor.ndim == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    if not is_right:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"tensor {name}: shape {tuple(tensor.shape)} instead of ({wanted})")
    return tensor
