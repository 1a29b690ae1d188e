"""Patches on disk: a folder of one safetensors file and one JSON manifest. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from palimpsest import processes
from palimpsest.errors import PatchError, later_version
from palimpsest.models.placement import whole
from palimpsest.patches.base import FORMAT_VERSION, Manifest, Patch
from palimpsest.patches.inputs import InputPatch
from palimpsest.patches.modules import ModulePatch
from palimpsest.patches.routers import RouterPatch
from palimpsest.patches.weights import WeightPatch
from palimpsest.provenance import file_digest, new_folder

TENSORS = "patch.safetensors"
MANIFEST = "manifest.json"
PARTS = "parts"

KINDS: Mapping[str, type[Patch]] = {kind.kind: kind for kind in (WeightPatch, ModulePatch, InputPatch, RouterPatch)}
"""Every kind of patch by what its manifest calls it."""


def save_patch(patch: Patch, path: Path) -> None:
    """Writes a patch as a new folder that appears complete or not at all.

    Where several processes are at work, all of them must call this, and the first one writes.

    Raises `OutputError` when the folder exists or the disk refuses.
    """
    if processes.rank() == 0:
        with new_folder(path) as draft:
            write_patch(patch, draft)
    else:
        _hand_over(patch)
    processes.wait()


def load_patch(path: str | Path) -> Patch:
    """Reads a patch and checks it against its manifest.

    Raises `PatchError` for a folder that is none, and for files that are truncated, altered or of a later format.
    """
    folder = Path(path).expanduser()
    manifest = read_manifest(folder)
    file = folder / TENSORS
    if not file.is_file():
        raise _broken(folder, f"no {TENSORS}")
    if file_digest(file) != manifest.tensors_sha256:
        raise PatchError(
            "The patch's tensors are not the ones that were saved.",
            expected=f"SHA-256 {manifest.tensors_sha256}",
            found=f"SHA-256 {file_digest(file)}: truncated or altered",
            where=str(file),
            remedy="copy the patch again from where it was made, or make the edit again",
        )
    kept = sorted(part for part in (folder / PARTS).glob("*") if part.is_dir())
    parts = {part.name: load_patch(part) for part in kept}
    try:
        return KINDS[manifest.kind].from_saved(load_file(file), manifest, parts)
    except (SafetensorError, KeyError, ValueError) as error:
        raise _broken(folder, f"{TENSORS} cannot be read: {error}") from error


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks a patch's manifest alone. Raises `PatchError` as `load_patch` does."""
    file = folder / MANIFEST
    if not file.is_file():
        raise _broken(folder, "nothing of that name" if not folder.exists() else f"no {MANIFEST}")
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(record, dict) and record.get("format_version", 0) > FORMAT_VERSION:
            raise later_version(PatchError, "patch", record["format_version"], FORMAT_VERSION, where=str(file))
        return Manifest.model_validate(record)
    except (ValueError, TypeError, ValidationError) as error:
        first_line = str(error).split("\n")[0]
        raise _broken(folder, f"{MANIFEST} is not a manifest: {first_line}") from error


def write_patch(patch: Patch, draft: Path) -> None:
    """Writes a patch's files into a folder that is still a draft."""
    draft.mkdir(parents=True, exist_ok=True)
    tensors = {name: whole(part.detach()).cpu().contiguous() for name, part in patch.tensors().items()}
    write_tensors(tensors, draft / TENSORS)
    manifest = patch.manifest.model_copy(
        update={
            "kind": patch.kind,
            "tensors_sha256": file_digest(draft / TENSORS),
            "tensor_layout": patch.layout(),
            "payload": patch.payload(),
        }
    )
    text = json.dumps(manifest.model_dump(), indent=2, ensure_ascii=False, default=str)
    (draft / MANIFEST).write_text(text + "\n", encoding="utf-8")
    for name, part in patch.saved_parts().items():
        write_patch(part, draft / PARTS / name)


def _hand_over(patch: Patch) -> None:
    """Takes part in gathering what the first process writes, in its order, and keeps none of it."""
    for part in patch.tensors().values():
        whole(part.detach())
    for kept in patch.saved_parts().values():
        _hand_over(kept)


def write_tensors(tensors: dict[str, Any], file: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file and forces it to the disk. Raises `OSError` when the disk refuses."""
    try:
        save_file(tensors, file, metadata=metadata)
        # A full disk may only show when the data is forced out; the folder must not appear before that.
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except SafetensorError as error:
        # `new_folder`, which knows the path the user gave, makes the message.
        raise OSError(str(error)) from error


def read_tensors(file: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and the texts that were stored with them.

    Raises `OSError` or `SafetensorError` for a file that cannot be read.
    """
    with safe_open(str(file), framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118


def _broken(folder: Path, found: str) -> PatchError:
    return PatchError(
        "This is not a readable patch.",
        expected=f"a folder with {MANIFEST} and {TENSORS}",
        found=found,
        where=str(folder),
        remedy="point to a folder that `palimpsest edit --out` wrote",
    )
