"""Patches on disk: a folder of one safetensors file and one JSON manifest. Nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from palimpsest.errors import PatchError
from palimpsest.files import FileKind, expanded
from palimpsest.patches.base import FORMAT_VERSION, MANIFEST_FILE, PARTS, TENSORS, Manifest, Patch
from palimpsest.patches.inputs import InputPatch
from palimpsest.patches.modules import ModulePatch
from palimpsest.patches.routers import RouterPatch
from palimpsest.patches.weights import WeightPatch
from palimpsest.provenance import file_digest

_DEEPEST = 8
_PATCH = FileKind(
    PatchError,
    "This is not a readable patch.",
    expected=f"a folder with {MANIFEST_FILE} and {TENSORS}",
    remedy="point to a folder that `palimpsest edit --out` wrote",
)

KINDS: Mapping[str, type[Patch]] = {kind.kind: kind for kind in (WeightPatch, ModulePatch, InputPatch, RouterPatch)}
"""Every kind of patch by what its manifest calls it."""


def load_patch(path: str | Path) -> Patch:
    """Reads a patch and checks it against its manifest.

    Raises `PatchError` for an invalid folder, and for files that are truncated, altered or of a later format.
    """
    return _load(expanded(path), _DEEPEST)


def _load(folder: Path, deepest: int) -> Patch:
    manifest = read_manifest(folder)
    file = folder / TENSORS
    if not file.is_file():
        raise _PATCH.refused(folder, f"no {TENSORS}")
    with _PATCH.reading(file):
        found = file_digest(file)
    if found != manifest.tensors_sha256:
        raise PatchError(
            "The patch's tensors are not the ones that were saved.",
            expected=f"SHA-256 {manifest.tensors_sha256}",
            found=f"SHA-256 {found}: truncated or altered",
            where=str(file),
            remedy="copy the patch again from where it was made, or make the edit again",
        )
    kept = sorted(part for part in (folder / PARTS).glob("*") if part.is_dir())
    if kept and not deepest:
        raise _PATCH.refused(folder, f"parts of parts, more than {_DEEPEST} deep")
    parts = {part.name: _load(part, deepest - 1) for part in kept}
    # A patch of a memory that was trained elsewhere may hold whole numbers of that editor's.
    tensors = _PATCH.tensors(file, integers=manifest.kind == RouterPatch.kind).tensors
    with _PATCH.reading(folder / MANIFEST_FILE):
        return KINDS[manifest.kind].from_saved(tensors, manifest, parts)


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks only a patch's manifest. Raises `PatchError` as `load_patch` does."""
    file = folder / MANIFEST_FILE
    if not file.is_file():
        raise _PATCH.refused(folder, "nothing of that name" if not folder.exists() else f"no {MANIFEST_FILE}")
    return _PATCH.record(file, Manifest, known_format=FORMAT_VERSION, what="patch")
