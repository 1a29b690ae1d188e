"""A llama.cpp runtime from a package, `ik-llama-cpp-python`, to ask GGUF files where they are used."""

from __future__ import annotations

import ctypes
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest


class Runtime:
    """A file in the runtime; on one thread, without memory of what was asked before."""

    def __init__(self, file: Path) -> None:
        package = pytest.importorskip("ik_llama_cpp", reason="no llama.cpp runtime: pip install ik-llama-cpp-python")
        from ik_llama_cpp import _ctypes_api

        self._library = _ctypes_api._lib
        with redirect_stderr(StringIO()):
            self._model = package.IkLlama(str(file), n_ctx=256, n_threads=1, flash_attn=False, verbose=False)

    def says(self, prompt: str, *, tokens: int = 6) -> str:
        """What it writes after a prompt, greedily."""
        ids = self._model.tokenize(prompt, add_bos=False)
        return self._model.detokenize(self._model.generate(ids, max_tokens=tokens)).strip()

    def put_on(self, adapter: Path) -> None:
        """Puts an adapter beside the weights, as `--lora` does."""
        library = self._library
        library.llama_lora_adapter_init.restype = ctypes.c_void_p
        library.llama_lora_adapter_init.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        library.llama_lora_adapter_set.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float]
        read = library.llama_lora_adapter_init(self._model._model.model, str(adapter).encode())
        assert read, "the runtime does not take the adapter"
        assert library.llama_lora_adapter_set(self._model.ctx, read, 1.0) == 0

    def take_off(self) -> None:
        """Takes every adapter off."""
        self._library.llama_lora_adapter_clear.argtypes = [ctypes.c_void_p]
        self._library.llama_lora_adapter_clear(self._model.ctx)

    def close(self) -> None:
        """Frees it."""
        self._model.close()
