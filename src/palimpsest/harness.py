"""A kind of model for lm-evaluation-harness: a model with patches on it, under the name `palimpsest`.

    python -m palimpsest.harness run --model palimpsest --model_args pretrained=world,patch=my-patch --tasks hellaswag

is the harness's own command line, which then knows that name; `register()` does the same for Python.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palimpsest.errors import ConfigError, PalimpsestError, unknown_name
from palimpsest.evaluation import Answering, harness_kind

NAME = "palimpsest"
_ROWS = 64


def register() -> None:
    """Puts `palimpsest` into the harness's registry of models, once per process.

    Raises `ConfigError` where the package `lm-eval` is not installed.
    """
    try:
        from lm_eval.api.registry import MODEL_REGISTRY, register_model
    except ImportError as error:
        raise ConfigError(
            "A kind of model for lm-evaluation-harness needs that package.",
            expected="the package `lm-eval`",
            found="it is not installed",
            remedy="pip install 'palimpsest-lm[lm-eval]'",
        ) from error
    if NAME in MODEL_REGISTRY:
        return
    kind = harness_kind()

    @register_model(NAME)
    class _PatchedModel(kind):  # type: ignore[misc, valid-type]
        """See `answering`: its arguments are those of `--model_args`."""

        def __init__(
            self, batch_size: int | str | None = None, max_batch_size: int | None = None, **arguments: Any
        ) -> None:
            super().__init__(answering(batch_size=batch_size, **arguments))


def answering(
    pretrained: str | None = None,
    patch: str | Sequence[str] = (),
    *,
    dtype: str = "auto",
    device: str | None = None,
    chat: bool = False,
    thinking: bool | int = False,
    trust_remote_code: bool = False,
    batch_size: int | str | None = None,
    **unknown: Any,
) -> Answering:
    """A loaded model with its patches on, ready to be asked.

    Arguments:
        pretrained: a folder, a GGUF file, a hub id or a bundled model, as in `load`.
        patch: folders of patches, the lowest first: a list, or one text with the system's separator of paths between
            them (`:`, on Windows `;`).
        dtype: as in `load`.
        device: as in `load`; `cuda:0` too if there is no CUDA, since the harness asks for it unless told otherwise.
        chat: whether each prompt is a user's turn in the tokenizer's template.
        thinking: whether the model thinks before it writes, or in how many tokens at most; what follows counts.
        trust_remote_code: as in `load`.
        batch_size: rows in one pass; 64 for `auto`.
        unknown: what the harness was given besides, which is refused.

    Raises `ConfigError` for unknown or missing arguments, `ModelError` and `PatchError` for what cannot be read.
    """
    from palimpsest.loading import load
    from palimpsest.patches import load_patch

    known = [name for name in inspect.signature(answering).parameters if name != "unknown"]
    for name in unknown:
        raise unknown_name("argument of the harness's model `palimpsest`", name, known)
    if not pretrained:
        raise ConfigError(
            "The harness's model `palimpsest` is not told which model that is.",
            expected="pretrained=MODEL, perhaps patch=FOLDER",
            found="no `pretrained`",
            where="--model_args",
            remedy="--model_args pretrained=world,patch=my-patch",
        )
    rows = _ROWS if batch_size in (None, "auto") else _number(batch_size)
    folders = [one for one in patch.split(os.pathsep) if one] if isinstance(patch, str) else list(patch)
    patches = [load_patch(Path(folder)) for folder in folders]
    model = load(
        pretrained,
        dtype=dtype,
        device=_device(device),
        chat=chat,
        thinking=thinking,
        trust_remote_code=trust_remote_code,
    )
    for one in patches:
        one.apply(model)
    return Answering(model, rows)


def main() -> None:
    """The harness's command line, with `--model palimpsest`; ends with code 2 for what is wrong with its arguments."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except PalimpsestError as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(2) from error


def _device(device: str | None) -> str:
    import torch

    return "auto" if device is None or (device == "cuda:0" and not torch.cuda.is_available()) else device


def _number(batch_size: int | str | None) -> int:
    try:
        rows = int(str(batch_size))
    except ValueError:
        rows = 0
    if rows < 1:
        raise ConfigError(
            "This is no batch size.", expected="a whole number from 1 on, or auto", found=repr(batch_size),
            where="--batch_size",
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
