"""Patches that keep edits as entries of a memory, each of which can be looked at, and taken out again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor

from palimpsest.errors import unknown_name
from palimpsest.files import shaped
from palimpsest.patches.base import Manifest, Patch, joined
from palimpsest.requests import normalise

if TYPE_CHECKING:
    from palimpsest.requests import EditRequest

INDEX = "index"


@dataclass(frozen=True)
class MemoryEntry:
    """One edit in a memory.

    Arguments:
        id: the request's.
        prompt: its prompt.
        answer: its new answer.
        demonstrations: texts that show how an edit is meant, the most similar one last.
    """

    id: str
    prompt: str
    answer: str
    demonstrations: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: EditRequest, demonstrations: Sequence[str] = ()) -> MemoryEntry:
        """The entry of a request."""
        return cls(request.id, request.prompt, request.target_new, tuple(demonstrations))


class MemoryPatch(Patch):
    """Entries, and a vector for each by which it is found.

    Arguments:
        entries: the edits. Of two with one prompt the later one stays.
        index: (entries, width), their vectors.
        manifest: where they came from.
    """

    def __init__(self, entries: Sequence[MemoryEntry], index: Tensor, manifest: Manifest | None = None) -> None:
        last = {normalise(entry.prompt): row for row, entry in enumerate(entries)}
        kept = sorted(last.values())
        self.entries = tuple(entries[row] for row in kept)
        self.index = index if len(kept) == len(entries) else index[kept]
        self.manifest = manifest or Manifest(label="unnamed")

    @abstractmethod
    def holding(self, entries: Sequence[MemoryEntry], index: Tensor, manifest: Manifest) -> Self:
        """The same kind of patch with other entries."""

    @abstractmethod
    def shared(self) -> dict[str, Any]:
        """Returns the plain data that all entries share."""

    def without(self, *ids: str) -> Self:
        """The patch without these entries; it answers as if they had never been there.

        Raises `ConfigError`, with near matches, for an unknown id.
        """
        known = {entry.id for entry in self.entries}
        for one in ids:
            if one not in known:
                raise unknown_name("entry of the memory", one, known)
        rows = [row for row, entry in enumerate(self.entries) if entry.id not in ids]
        edits = [edit for edit in self.manifest.edits if edit.get("id") not in ids]
        return self.holding(
            [self.entries[row] for row in rows], self.index[rows], self.manifest.model_copy(update={"edits": edits})
        )

    def followed_by(self, other: Patch) -> Self | None:
        """See `Patch.followed_by`: memories that answer in the same way become one."""
        if not isinstance(other, type(self)) or self.shared() != other.shared():
            return None
        return self.holding(
            (*self.entries, *other.entries),
            torch.cat([self.index, other.index]),
            joined(self.manifest, other.manifest),
        )

    def tensors(self) -> dict[str, Tensor]:
        """See `Patch.tensors`."""
        return {INDEX: self.index} if self.entries else {}

    def payload(self) -> dict[str, Any]:
        """See `Patch.payload`."""
        entries = [{name: value for name, value in asdict(entry).items() if value != ()} for entry in self.entries]
        return {**self.shared(), "entries": entries}

    @property
    def num_bytes(self) -> int:
        """Bytes of the vectors and of the entries' texts."""
        texts = (text for entry in self.entries for text in (entry.prompt, entry.answer, *entry.demonstrations))
        return super().num_bytes + sum(len(text.encode()) for text in texts)

    def touched(self) -> list[str]:
        """See `Patch.touched`: no parameter."""
        return []

    def is_empty(self) -> bool:
        """See `Patch.is_empty`."""
        return not self.entries


def read_entries(tensors: Mapping[str, Tensor], payload: Mapping[str, Any]) -> tuple[list[MemoryEntry], Tensor]:
    """The entries and vectors that `payload` and `tensors` gave. Raises `ValueError` or `KeyError` for others."""
    entries = TypeAdapter(list[MemoryEntry]).validate_python(payload["entries"])
    index = shaped(tensors[INDEX], len(entries), None, name=INDEX) if entries else torch.zeros(0, 0)
    return entries, index
