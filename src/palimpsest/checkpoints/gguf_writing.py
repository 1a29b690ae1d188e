"""An edited copy of a GGUF file: what is not edited is copied byte for byte, and what is needed to go back is kept."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from palimpsest.checkpoints.gguf_header import Header, StoredTensor
from palimpsest.checkpoints.gguf_tensors import Array, num_bytes

OUR_KEYS = "palimpsest."
"""Prefix of our keys in a file's metadata."""
_TEXT = 8
_CHUNK = 2**22


@dataclass(frozen=True)
class NewTensor:
    """A tensor as it is written to the new file.

    Arguments:
        kind: the number of its ggml type.
        data: its bytes, flat.
    """

    kind: int
    data: Array


@dataclass(frozen=True)
class Segment:
    """Bytes of the original file, and where they can be had from: the edited file, or what was kept."""

    source: Literal["edited", "kept"]
    start: int
    length: int


class WayBack:
    """How the original file is put together again: its bytes in order, those kept that the edited file lacks."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.kept = bytearray()

    def add_kept(self, content: bytes) -> None:
        """The next bytes, which the edited file does not have."""
        self._add(Segment("kept", len(self.kept), len(content)))
        self.kept += content

    def add_edited(self, start: int, length: int) -> None:
        """The next bytes, which are in the edited file."""
        self._add(Segment("edited", start, length))

    def _add(self, new: Segment) -> None:
        if not new.length:
            return
        last = self.segments[-1] if self.segments else None
        if last is not None and last.source == new.source and last.start + last.length == new.start:
            self.segments[-1] = Segment(last.source, last.start, last.length + new.length)
        else:
            self.segments.append(new)


def write_edited(header: Header, draft: Path, tensors: Mapping[str, NewTensor], texts: Mapping[str, str]) -> WayBack:
    """Writes a copy with other tensors and further metadata; returns the way back to the file as it was.

    Keys of ours that the file has already are replaced. Order, alignment and everything else stay.

    Raises `OSError` when the disk refuses.
    """
    back = WayBack()
    with header.path.open("rb") as source, draft.open("wb") as out:
        copied = {key: span for key, span in header.spans.items() if not key.startswith(OUR_KEYS)}
        first = min((start for start, _ in header.spans.values()), default=header.table[0])
        out.write(b"GGUF" + struct.pack("<IQQ", header.version, len(header.tensors), len(copied) + len(texts)))
        back.add_kept(_read(source, 0, first))
        for key, (start, end) in header.spans.items():
            if key in copied:
                back.add_edited(out.tell(), end - start)
                _copy(source, out, start, end - start)
            else:
                back.add_kept(_read(source, start, end - start))
        for key, text in texts.items():
            out.write(_sized(key) + struct.pack("<I", _TEXT) + _sized(text))
        offsets = _offsets(header, tensors)
        for tensor in header.tensors:
            kind = tensors[tensor.name].kind if tensor.name in tensors else tensor.kind
            shape = tensor.shape[::-1]
            out.write(_sized(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            out.write(struct.pack("<IQ", kind, offsets[tensor.name]))
        _pad(out, header.alignment)
        data_start, read = out.tell(), header.table[0]
        for tensor in _in_order(header):
            back.add_kept(_read(source, read, tensor.start - read))
            length = num_bytes(tensor.kind, tensor.numel)
            if data_start + offsets[tensor.name] != out.tell():
                raise ValueError(f"tensor {tensor.name} overlaps another")
            if tensor.name in tensors:
                back.add_kept(_read(source, tensor.start, length))
                out.write(tensors[tensor.name].data.tobytes())
            else:
                back.add_edited(out.tell(), length)
                _copy(source, out, tensor.start, length)
            read = tensor.start + length
            _pad(out, header.alignment)
        back.add_kept(_read(source, read, header.size - read))
    return back


def write_original(edited: Path, kept: bytes, segments: list[Segment], draft: Path) -> None:
    """Puts the original file together. Raises `OSError` when the disk refuses, `ValueError` where bytes are missing."""
    with edited.open("rb") as source, draft.open("wb") as out:
        for segment in segments:
            if segment.source == "kept":
                content = kept[segment.start : segment.start + segment.length]
                if len(content) != segment.length:
                    raise ValueError("bytes are missing")
                out.write(content)
            else:
                _copy(source, out, segment.start, segment.length)


def _in_order(header: Header) -> list[StoredTensor]:
    return sorted(header.tensors, key=lambda tensor: tensor.start)


def _offsets(header: Header, tensors: Mapping[str, NewTensor]) -> dict[str, int]:
    found, place = {}, 0
    for tensor in _in_order(header):
        found[tensor.name] = place
        new = tensors.get(tensor.name)
        length = num_bytes(tensor.kind if new is None else new.kind, tensor.numel)
        place = -(-(place + length) // header.alignment) * header.alignment
    return found


def _sized(text: str) -> bytes:
    content = text.encode("utf-8", "replace")
    return struct.pack("<Q", len(content)) + content


def _pad(out: BinaryIO, alignment: int) -> None:
    out.write(bytes(-out.tell() % alignment))


def _read(source: BinaryIO, start: int, length: int) -> bytes:
    source.seek(start)
    return source.read(max(length, 0))


def _copy(source: BinaryIO, out: BinaryIO, start: int, length: int) -> None:
    source.seek(start)
    for left in range(length, 0, -_CHUNK):
        content = source.read(min(left, _CHUNK))
        if len(content) != min(left, _CHUNK):
            raise ValueError("bytes are missing")
        out.write(content)
