"""The GGUF file that an edited copy is made of: the model's own, one of the same model, or one converted for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from palimpsest.checkpoints import Array, GgufLayout, Header, check_gguf
from palimpsest.errors import ConfigError, ModelError
from palimpsest.files import expanded
from palimpsest.provenance import file_digest

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

CONVERTER = "PALIMPSEST_GGUF_CONVERTER"
"""The environment variable that names llama.cpp's convert_hf_to_gguf.py."""
_COMMAND = "convert-hf-to-gguf"
_SHOWN_LINES = 3


class SourceFile:
    """A GGUF file with the base model's weights.

    Arguments:
        header: the file's.
        digest: SHA-256 of the file.
        layout: finds the model's parameters in it.
        is_own: whether the model was read from this file, so that its weights are exactly the file's.
    """

    def __init__(self, header: Header, digest: str, layout: GgufLayout, *, is_own: bool) -> None:
        self.header, self.digest, self.layout, self.is_own = header, digest, layout, is_own


@contextmanager
def source_file(model: EditableModel, template: str | Path | None) -> Iterator[SourceFile]:
    """The file to copy from, inside the block.

    Arguments:
        template: a GGUF file of the same model, for a model that was read from a Hugging Face folder. Left out, the
            folder is converted with llama.cpp's converter, in 16 bits, if there is one on this machine.

    Raises `ConfigError` where a template is given for a model that is a GGUF file, or is none and nothing can convert;
    `ModelError` for a file that cannot be read, changed since the model was read from it, or cannot be converted.
    """
    if model.file_digest is not None:
        if template is not None:
            raise ConfigError(
                "The model is a GGUF file itself.",
                expected="no --gguf, or a Hugging Face model",
                found=f"--gguf {template}",
                remedy="leave --gguf out",
            )
        yield _read(model, Path(model.module.config._name_or_path), is_own=True)
    elif template is not None:
        yield _read(model, expanded(template), is_own=False)
    else:
        command = _converter()
        with tempfile.TemporaryDirectory(prefix="palimpsest-gguf-") as folder:
            yield _read(model, _converted(model, command, Path(folder)), is_own=False)


def _read(model: EditableModel, path: Path, *, is_own: bool) -> SourceFile:
    header = check_gguf(path)
    digest = file_digest(path)
    if is_own and digest != model.file_digest:
        raise ModelError(
            "The GGUF file has changed since the model was read from it.",
            expected=f"SHA-256 {model.file_digest}",
            found=f"SHA-256 {digest}",
            where=str(path),
            remedy="run it again, on a file that stays as it is",
        )
    dtype = model.module.dtype

    def rounded(values: Array) -> Array:
        return values if dtype == torch.float32 else torch.from_numpy(values).to(dtype).float().numpy()

    return SourceFile(
        header, digest, GgufLayout(header, model.module.config, rounded if is_own else None), is_own=is_own
    )


def _converter() -> list[str]:
    """How llama.cpp's converter is called here. Raises `ConfigError` if there is none."""
    named = os.environ.get(CONVERTER)
    if named and Path(named).is_file():
        return [sys.executable, named] if named.endswith(".py") else [named]
    found = shutil.which(_COMMAND)
    if found:
        return [found]
    raise ConfigError(
        "The model is a Hugging Face folder, and nothing here turns one into GGUF.",
        expected="--gguf FILE, a GGUF file of the same model, or llama.cpp's converter",
        found=f"{CONVERTER}={named}, which is no file" if named else f"no --gguf, no {_COMMAND}, no ${CONVERTER}",
        remedy=f"add --gguf FILE; or set {CONVERTER} to llama.cpp's convert_hf_to_gguf.py",
    )


def _converted(model: EditableModel, command: list[str], folder: Path) -> Path:
    """The base model as a GGUF file of 16 bits in a folder. Raises `ModelError` where the converter fails."""
    base, out = folder / "base", folder / "base.gguf"
    with model.weights.without_changes():
        model.module.save_pretrained(base)
    model.tokenizer.save_pretrained(base)
    kind: Any = "bf16" if model.module.dtype == torch.bfloat16 else "f16"
    # The user's own tool, on files that were written here.
    done = subprocess.run(  # noqa: S603
        [*command, str(base), "--outtype", kind, "--outfile", str(out)], capture_output=True, text=True, check=False
    )
    if done.returncode or not out.is_file():
        last = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()][-_SHOWN_LINES:]
        raise ModelError(
            "llama.cpp's converter failed.",
            expected="a GGUF file of the base model",
            found=" ".join(last) or f"exit code {done.returncode}",
            where=" ".join(command),
            remedy="convert the model yourself and give the file: --gguf FILE",
        )
    return out
