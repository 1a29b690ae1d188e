"""A cache of computed statistics, each under a name made of everything that determines it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from palimpsest.errors import DataError, OutputError
from palimpsest.files import (
    FileKind,
    cache_folder,
    new_file,
    parse_json,
    put_aside,
    read_texts,
    require_writable,
    to_json,
    write_tensors,
)
from palimpsest.models import exact_digest
from palimpsest.provenance import digest, now, versions

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from palimpsest.models import EditableModel, Point

FORMAT_VERSION = 1
_ENDING = ".safetensors"
_RECORD = "record"
_ENTRY = FileKind(DataError, "Statistics in the cache cannot be read.", expected="a file that this package wrote")
T = TypeVar("T")
# What a config says of where and how a model was stored, not of what it computes.
_NOT_COMPUTED = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache"}


class Identified(Protocol):
    """An object that states its identity without being read: a text."""

    def identity(self) -> dict[str, Any]:
        """Everything that determines it, JSON-ready."""


@dataclass(frozen=True)
class CacheEntry:
    """The content of a cache file: tensors, and a record with their identity."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]

    def number(self, *names: str) -> int:
        """A count in the record, by the names that lead to it. Raises `ValueError` for an invalid one."""
        value: Any = self.record
        for name in names:
            value = value[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"field `{'.'.join(names)}`: {value!r} instead of a count")
        return value


class Cache:
    """A folder of safetensors files, each named by the digest of an identity.

    What is damaged is put aside, so that it is computed again. What cannot be kept is only noted: an edit does without
    a cache.

    Arguments:
        folder: where; left out, see `files.cache_folder`. It is made when something is first written.
        is_required: raise where something cannot be kept, for those who compute in order to keep it.
    """

    def __init__(self, folder: Path | None = None, *, is_required: bool = False) -> None:
        chosen = folder or cache_folder()
        self.folder = None if chosen is None else chosen / "statistics"
        self.is_required = is_required
        self.notes: list[str] = []
        """What could not be kept or was put aside, as sentences, each once."""

    def file(self, identity: Mapping[str, Any]) -> Path | None:
        """Where something of this identity is kept; `None` if there is no folder."""
        return None if self.folder is None else self.folder / f"{digest(identity)}{_ENDING}"

    def has(self, identity: Mapping[str, Any]) -> bool:
        """Whether something is kept under an identity, damaged or not."""
        file = self.file(identity)
        return file is not None and os.path.isfile(file)

    def read(self, identity: Mapping[str, Any], make: Callable[[CacheEntry], T]) -> T | None:
        """Reads the tensors and facts under an identity and converts them; `None` if there are none.

        Arguments:
            identity: what they were computed under.
            make: raises `ValueError`, `LookupError` or `TypeError` for what is damaged.
        """
        file = self.file(identity)
        if file is None or not self.has(identity):
            return None
        try:
            stored = _ENTRY.tensors(file, integers=True)
            with _ENTRY.reading(file):
                record = _record(stored.texts)
                # A digest is short; the identity itself decides.
                if record["identity"] != _plain(identity):
                    return None
                return make(CacheEntry(stored.tensors, record))
        except DataError as error:
            self._put_aside(file, error)
            return None

    def write(self, identity: Mapping[str, Any], tensors: Mapping[str, Tensor], **facts: Any) -> None:
        """Keeps tensors and facts under an identity; see the class for a disk that refuses."""
        record = {"identity": _plain(identity), "created": now(), "versions": versions(), **facts}
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            with new_file(self.require() / f"{digest(identity)}{_ENDING}") as draft:
                write_tensors(stored, draft, metadata={_RECORD: to_json(record)})
        except OutputError as error:
            if self.is_required:
                raise
            self._note(
                f"The statistics could not be kept, so the next edit computes them again: {error.found}"
                + (f" at {self.folder}." if self.folder else "; PALIMPSEST_CACHE names a folder.")
            )

    def require(self) -> Path:
        """The folder. Raises `OutputError` if there is none, or where nothing can be written to it."""
        if self.folder is None:
            raise OutputError(
                "There is no folder for the cache.",
                expected="PALIMPSEST_CACHE or HOME in the environment",
                found="neither, and a user without a home folder",
                remedy="set PALIMPSEST_CACHE to a folder",
            )
        require_writable(self.folder / "file")
        return self.folder

    def drop(self, identity: Mapping[str, Any]) -> None:
        """Forgets what is kept under an identity, if anything."""
        file = self.file(identity)
        if file is not None:
            with contextlib.suppress(OSError):
                file.unlink()

    def records(self) -> list[dict[str, Any]]:
        """The records of all files, with their names and sizes, newest first; unreadable files are left out."""
        found = []
        for file in self.folder.glob(f"*{_ENDING}") if self.folder is not None else ():
            with contextlib.suppress(DataError), _ENTRY.reading(file):
                found.append({**_record(read_texts(file)), "file": str(file), "bytes": file.stat().st_size})
        return sorted(found, key=lambda record: str(record["created"]), reverse=True)

    def _put_aside(self, file: Path, error: DataError) -> None:
        put_aside(file)
        self._note(f"Damaged statistics were put aside and computed again: {file.name}, {error.found}.")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


class _Record(BaseModel):
    """The record in a file's header; each kind of statistics adds its own facts."""

    model_config = ConfigDict(extra="allow")

    identity: dict[str, Any]
    created: str
    versions: dict[str, str]


def _record(texts: Mapping[str, str]) -> dict[str, Any]:
    return _Record.model_validate(parse_json(texts[_RECORD])).model_dump()


def points_identity(model: EditableModel, point: Point) -> dict[str, Any]:
    """Returns the parts of a model that determine the keys at a point, up to a machine's rounding.

    Weights and buffers count as far as the point's layer, all of them and bit by bit: what lies above has no
    influence. The model's name does not count.
    """
    return {
        "format": FORMAT_VERSION,
        "kind": "second moment",
        "site": point.site,
        "layer": point.layer,
        "side": point.side,
        "weights": _weights_digest(model, point),
        "config": digest(computed_config(model.module.config)),
        "tokenizer": model.tokenizer_digest,
    }


def _weights_digest(model: EditableModel, point: Point) -> str:
    sites = model.sites
    stacks = dict(sites.architecture.stacks)
    own = stacks.pop(sites.locate(point.site)[0])
    blocks = f"{own.blocks}."
    # What a key inside the stack cannot depend on: the head, the norm before it, and the blocks of another stack.
    later = [sites.architecture.unembed, own.final_norm, *(stack.blocks for stack in stacks.values())]
    unused = tuple(f"{path}." for path in later if path)

    def has_influence(name: str) -> bool:
        if name.startswith(blocks):
            return point.layer is None or int(name.removeprefix(blocks).split(".")[0]) <= point.layer
        return not name.startswith(unused)

    # Every name of a tied weight is asked: an embedding counts also where it is the head as well.
    names = {name for name, _ in model.module.named_parameters(remove_duplicate=False) if has_influence(name)}
    weights = sorted({model.weights.canonical(name) for name in names})
    buffers = [(name, buffer) for name, buffer in model.module.named_buffers() if has_influence(name)]
    return digest(
        [f"{name}:{model.weights.exact_digest(name)}" for name in weights]
        + [f"{name}:{exact_digest(buffer)}" for name, buffer in buffers]
    )


def whole_identity(model: EditableModel) -> dict[str, Any]:
    """Everything that determines what a model computes, without the patches that are on it: weights and buffers bit by
    bit, config, tokenizer. Its name does not count.
    """
    weights = model.weights
    tensors = [f"{name}:{weights.exact_digest(name)}" for name in weights.names()]
    tensors += [f"{name}:{exact_digest(buffer)}" for name, buffer in model.module.named_buffers()]
    return {
        "weights": digest(tensors),
        "config": digest(computed_config(model.module.config)),
        "tokenizer": model.tokenizer_digest,
    }


def computed_config(config: PretrainedConfig) -> dict[str, Any]:
    """Returns the fields of a config that determine what its model computes."""
    return {name: value for name, value in config.to_dict().items() if name not in _NOT_COMPUTED}


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(identity, default=str))
    return plain
