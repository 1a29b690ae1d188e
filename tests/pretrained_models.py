"""Where tests find pretrained models: `pretrained/` of the checkout (`make pretrained`), or $PALIMPSEST_PRETRAINED."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

PLACE = Path(os.environ.get("PALIMPSEST_PRETRAINED") or Path(__file__).parents[1] / "pretrained")


def pretrained_path(name: str) -> Path:
    """The folder `smollm2`, `gemma3` or `qwen2.5`, or `smollm2.gguf`, ...; without it the test is skipped."""
    path = PLACE / name
    if not path.exists():
        pytest.skip(f"{path} is not there: make pretrained MODELS={name.removesuffix('.gguf')}")
    return path


def fast_dtype() -> str:
    """`bfloat16` on processors with instructions for it, where it is about twice as fast, else `float32`."""
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"
