"""From an edited GGUF file back to the original one, byte for byte, by what was kept beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from palimpsest.checkpoints import OUR_KEYS, Segment, WayBack, read_header, write_original
from palimpsest.errors import PatchError
from palimpsest.files import FileKind, expanded, new_file, read_texts, require_absent, write_tensors
from palimpsest.patches.base import MANIFEST_FILE
from palimpsest.provenance import file_digest

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
_KEPT = "kept"
_FILE = FileKind(
    PatchError,
    "This is not a readable way back.",
    expected="the .undo file that `palimpsest apply --as gguf` wrote beside the edited file",
    remedy="name it with --from, or take the original GGUF file",
)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format_version: int
    sha256: str
    size: int = Field(ge=0)
    segments: list[tuple[str, int, int]]


def write_way_back(draft: Path, back: WayBack, sha256: str, size: int) -> None:
    """Writes what the edited file lacks of the original. Raises `OSError` when the disk refuses."""
    import torch

    record = _Record(
        format_version=FORMAT_VERSION,
        sha256=sha256,
        size=size,
        segments=[(one.source, one.start, one.length) for one in back.segments],
    )
    kept: Tensor = torch.frombuffer(back.kept, dtype=torch.uint8)
    write_tensors({_KEPT: kept}, draft, metadata={"way_back": record.model_dump_json()})


def undo_gguf(edited: str | Path, out: str | Path, *, kept: str | Path | None = None) -> str:
    """Makes the original GGUF file of an edited one: a new file, complete or not at all. Returns its SHA-256.

    Arguments:
        edited: the edited file.
        out: the file to be.
        kept: what was written beside the edited file; left out, it is looked for there.

    Raises `PatchError` where the two do not belong together or are damaged, `ModelError` for a file that is no GGUF,
    `OutputError` where `out` exists or the disk refuses.
    """
    file, target = expanded(edited), expanded(out)
    way_back = file.with_suffix(".undo") if kept is None else expanded(kept)
    require_absent(target)
    if (file / MANIFEST_FILE).is_file():
        raise PatchError(
            "A patch needs no undoing.",
            expected="a GGUF file that `palimpsest apply --as gguf` wrote",
            found="the folder of a patch",
            where=str(file),
            remedy="use the base model without it: its files are what they were",
        )
    header = read_header(file)
    if not any(key.startswith(OUR_KEYS) for key in header.metadata):
        raise PatchError(
            "The GGUF file was not edited by Palimpsest.",
            expected=f"keys that begin with {OUR_KEYS} in its metadata",
            found="none",
            where=str(file),
            remedy="name the file that `palimpsest apply --as gguf` wrote; one that was never edited is the original",
        )
    with _FILE.reading(way_back):
        text = read_texts(way_back).get("way_back", "")
        found = json.loads(text)
    _FILE.require_format(found, FORMAT_VERSION, "way back", way_back)
    record = _FILE.checked(found, TypeAdapter(_Record), way_back)
    stored = _FILE.tensors(way_back, integers=True).tensors
    if _KEPT not in stored or stored[_KEPT].ndim != 1 or stored[_KEPT].dtype != torch.uint8:
        raise _FILE.refused(way_back, "no kept bytes")
    content = stored[_KEPT].numpy().tobytes()
    if sum(length for _, _, length in record.segments) != record.size or any(
        source not in ("edited", _KEPT) or start < 0 or length < 0 for source, start, length in record.segments
    ):
        raise _FILE.refused(way_back, "places that make no file")
    segments = [Segment("kept" if source == _KEPT else "edited", *place) for source, *place in record.segments]
    with new_file(target) as draft:
        try:
            write_original(file, content, segments, draft)
            digest = file_digest(draft)
        except ValueError:
            digest = "none: the edited file is too short"
        if digest != record.sha256:
            raise PatchError(
                "The edited file and the way back do not make the original file.",
                expected=f"SHA-256 {record.sha256}",
                found=f"SHA-256 {digest}" if len(digest) == 64 else digest,
                where=f"{file} with {way_back}",
                remedy="name the .undo file that was written with this one (--from), or take the original GGUF file",
            )
    return digest
