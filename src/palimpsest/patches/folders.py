"""A folder that names a base model and holds patches for it: loaded, it is the patched model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.errors import PatchError
from palimpsest.files import FileKind
from palimpsest.patches.card import CONTENTS, Contents
from palimpsest.patches.storage import load_patch

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

PATCHES = "patches"
_FOLDER = FileKind(
    PatchError,
    "This is not a readable folder of patches.",
    expected=f"{CONTENTS}, and a folder {PATCHES} beside it",
    remedy="write it again with `palimpsest apply --as patched`",
)


def patched_base(folder: Path) -> str | None:
    """The base model that a folder of patches names; `None` for any other folder. Raises `PatchError` when damaged."""
    if not os.path.isfile(folder / CONTENTS) or not os.path.isdir(folder / PATCHES):
        return None
    return _contents(folder).base


def put_on_all(folder: Path, model: EditableModel) -> None:
    """Puts the folder's patches on its base model, in their order. Raises `PatchError` where they do not fit."""
    count = len(_contents(folder).patches)
    # All are read before the first is put on.
    for patch in [load_patch(folder / PATCHES / str(index)) for index in range(count)]:
        patch.apply(model)


def _contents(folder: Path) -> Contents:
    return _FOLDER.record(folder / CONTENTS, Contents)
