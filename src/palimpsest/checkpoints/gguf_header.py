"""Reads the header of a GGUF file without its tensors, and refuses a damaged or truncated file."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.errors import ModelError, near_matches, some_of
from palimpsest.files import remedy_of, require_regular

GGUF = ".gguf"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Value types of the metadata: struct's letters, then text and list.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_MOST_DIMENSIONS = 4
_DEEPEST_LIST = 4


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file.

    Arguments:
        name: llama.cpp's name for it.
        shape: as torch has it: (out, in).
        kind: the number of its ggml type.
        start: where its bytes begin in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int

    @property
    def numel(self) -> int:
        """How many numbers it stands for."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A file's metadata and its tensors.

    Arguments:
        metadata: by key. Long lists of texts, such as a vocabulary, are only counted: their value is a number.
        tensors: in the order of the file's table.
        version: of the format.
        spans: by key, the first byte of its entry in the file and the one after it.
        table: the first byte of the tensors' table and the one after it.
    """

    path: Path
    size: int
    metadata: dict[str, Any]
    tensors: tuple[StoredTensor, ...]
    version: int
    spans: dict[str, tuple[int, int]]
    table: tuple[int, int]

    @property
    def alignment(self) -> int:
        """Bytes that the beginning of every tensor is a multiple of, counted from the first one's."""
        return int(self.metadata.get("general.alignment", 32))

    @property
    def data_start(self) -> int:
        """Where the tensors' bytes begin in the file."""
        return -(-self.table[1] // self.alignment) * self.alignment

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the model's family."""
        return str(self.metadata.get("general.architecture", ""))

    def own(self, key: str) -> Any:
        """The value of a key of the model's own family: `own("rope.scaling.type")`."""
        return self.metadata.get(f"{self.architecture}.{key}")


def is_gguf(place: str | Path) -> bool:
    """Whether a name is that of a GGUF file."""
    return str(place).lower().endswith(GGUF)


def read_header(path: Path) -> Header:
    """The header. Raises `ModelError` for a file that is no GGUF, of another version, damaged or cut short."""
    try:
        # A named pipe would be waited for.
        require_regular(path)
        with path.open("rb") as file:
            size = path.stat().st_size
            if file.read(4) != _MAGIC:
                raise _not_gguf(path, size)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header()
    except OSError as error:
        raise _unreadable(
            path, error.strerror or str(error), remedy_of(error, "look whether you may read it")
        ) from error
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError):
            raise damaged(path, "its header ends or breaks off in the middle") from error
        raise _unreadable(path, str(error)) from error
    except (struct.error, IndexError, OverflowError) as error:
        raise damaged(path, "its header ends or breaks off in the middle") from error


def damaged(path: Path, found: str) -> ModelError:
    """The error for a file that is not whole."""
    return ModelError(
        "The GGUF file is damaged or cut short.",
        expected="a whole GGUF file",
        found=found,
        where=str(path),
        remedy="download or copy the file again",
    )


def _unreadable(path: Path, found: str, remedy: str | None = "look whether you may read it") -> ModelError:
    """The error for a place without a file that can be read: which files are there, or what else to do."""
    if path.is_dir():
        beside = sorted(file.name for file in path.glob(f"*{GGUF}"))
        found, remedy = (
            "a folder",
            f"name the file in it: {some_of(beside)}" if beside else "name a file, not its folder",
        )
    elif not path.exists():
        folder = path.parent
        # The ending, which all have, makes no two names alike.
        names = [file.stem for file in folder.glob(f"*{GGUF}")] if folder.is_dir() else []
        close = [f"{name}{GGUF}" for name in near_matches(path.stem, names)]
        found = "nothing of that name" if folder.is_dir() else f"no folder {folder} either"
        remedy = f"did you mean {' or '.join(map(repr, close))}?" if close else "check the path"
    elif not path.is_file():
        remedy = "name the file itself"
    return ModelError(
        "The GGUF file cannot be read.", expected=f"a file such as model{GGUF}", found=found, where=str(path),
        remedy=remedy,
    )  # fmt: skip


def _not_gguf(path: Path, size: int) -> ModelError:
    return ModelError(
        "This is not a GGUF file.",
        expected="a file that begins with the four letters GGUF",
        found="an empty file" if size == 0 else "other contents",
        where=str(path),
        remedy="download or copy the file again; some tools leave a pointer instead of a large file",
    )


class _Reader:
    """Reads a file's header from front to end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.place, self.size = path, data, 4, len(data)

    def header(self) -> Header:
        version = self.number("I")
        if version not in _VERSIONS:
            is_swapped = version & 0xFFFF == 0
            raise ModelError(
                "This version of the GGUF format cannot be read.",
                expected="version " + " or ".join(map(str, _VERSIONS)) + ", little-endian",
                found="a big-endian file" if is_swapped else f"version {version}",
                where=str(self.path),
                remedy="convert the model again with a recent llama.cpp",
            )
        num_tensors, num_values = self.number("Q"), self.number("Q")
        # The least that an entry takes: its name's length, its type and a byte; a tensor's counts and place.
        if 24 * num_tensors + 13 * num_values > self.size:
            raise damaged(self.path, f"{num_tensors} tensors and {num_values} values announced in {self.size} bytes")
        metadata, spans = {}, {}
        for _ in range(num_values):
            start, key = self.place, self.text()
            metadata[key] = self.value(self.number("I"))
            spans[key] = start, self.place
        if len(spans) < num_values:
            raise damaged(self.path, "two values of one key")
        table = self.place
        entries = [self.tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= self.size:
            raise damaged(self.path, f"general.alignment is {alignment!r}")
        first = -(-self.place // alignment) * alignment
        tensors = tuple(StoredTensor(name, shape, kind, first + offset) for name, shape, kind, offset in entries)
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise damaged(self.path, "two tensors of one name")
        return Header(self.path, self.size, metadata, tensors, version, spans, (table, self.place))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.text(), self.number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise damaged(self.path, f"a tensor, {name!r}, of {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        kind, offset = self.number("I"), self.number("Q")
        return name, shape, kind, offset

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _LIST or depth == _DEEPEST_LIST:
            raise damaged(self.path, f"a value of type {kind} in its metadata")
        inner, count = self.number("I"), self.number("Q")
        if inner in _NUMBERS:
            form = f"<{count}{_NUMBERS[inner]}"
            if count > self.size or struct.calcsize(form) > self.size - self.place:
                raise damaged(self.path, f"a list of {count} values in its metadata")
            found = list(struct.unpack_from(form, self.data, self.place))
            self.place += struct.calcsize(form)
            return found
        if inner == _TEXT:
            for _ in range(count):
                self.skip(self.number("Q"))
            return count
        return [self.value(inner, depth + 1) for _ in range(count)]

    def number(self, form: str) -> Any:
        (found,) = struct.unpack_from(f"<{form}", self.data, self.place)
        self.place += struct.calcsize(f"<{form}")
        return found

    def text(self) -> str:
        start, length = self.place + 8, self.number("Q")
        self.skip(length)
        return bytes(self.data[start : start + length]).decode("utf-8")

    def skip(self, length: int) -> None:
        if length > self.size - self.place:
            raise IndexError(length)
        self.place += length
