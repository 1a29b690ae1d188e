"""Shared by codebooks: entries, each with a key and a value, beside one linear site of one layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import Field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, final

import torch
from torch import Tensor

from palimpsest.models import Attachment, Point, attach
from palimpsest.models.sites import features
from palimpsest.patches.branches import Branch, require_shapes, require_weight
from palimpsest.patches.prompts import Decision

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

Decided = Decision[tuple[Tensor, Tensor]]
"""(rows,) index of the entry that decides for each prompt, and whether it does."""


class KeyedEntry(Protocol):
    """The record of one key: at least the id of its edit, and the tokens of its answer."""

    @property
    def edit(self) -> str: ...
    @property
    def label(self) -> tuple[int, ...]: ...


class KeyedBranch(Branch):
    """A frozen dataclass with these fields and others; each of its `tensors` has a row per entry.

    Arguments:
        site: a linear site, `mlp.down` or `encoder.mlp.down`.
        layer: its layer.
        keys: (entries, in).
        values: (entries, out).
        entries: the rest.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    site: str
    layer: int
    keys: Tensor
    values: Tensor
    entries: tuple[KeyedEntry, ...]

    @abstractmethod
    def written(
        self, model: EditableModel, stack: str, kept: Decided, inputs: Tensor, written: Tensor
    ) -> Tensor | None:
        """Returns the layer's new output, (rows, tokens, out); `None` if nothing is replaced.

        Arguments:
            stack: `encoder` or `decoder`, which the layer belongs to.
            kept: what has been decided on the prompts, to be read and taken.
            inputs: what the layer reads, (rows, tokens, in).
        """

    @final
    def attach(self, model: EditableModel) -> Attachment:
        """See `Branch.attach`."""
        stack = model.sites.locate(self.site)[0]
        read: list[Tensor] = []
        kept: Decided = Decision()

        def keep(tensor: Tensor) -> None:
            read[:] = [tensor]

        def change(written: Tensor) -> Tensor | None:
            return self.written(model, stack, kept, read.pop(), written)

        before, after = Point(self.site, self.layer, "input"), Point(self.site, self.layer)
        return attach(model.sites, {before: keep, after: change})

    @final
    def check(self, model: EditableModel) -> None:
        """See `Branch.check`."""
        require_weight(model, self.site, self.layer, self.weight)
        out, into = features(model.sites.module(self.site, self.layer))
        count = len(self.entries)
        require_shapes(self.form, self.tensors(), {"keys": (count, into), "values": (count, out)})

    @final
    def owners(self) -> list[str]:
        """See `Branch.owners`."""
        return [entry.edit for entry in self.entries]

    @final
    def select(self, indices: list[int]) -> Self:
        """Some of the entries."""
        some = {name: tensor[indices] for name, tensor in self.tensors().items()}
        return replace(self, entries=tuple(self.entries[index] for index in indices), **some)

    @final
    def of_edits(self, edits: Sequence[str]) -> Self:
        """The entries of some edits, in their order, each once."""
        own = self.owners()
        return self.select([own.index(edit) for edit in dict.fromkeys(edits)])

    @final
    def with_entry(self, entry: KeyedEntry, **rows: Tensor | float) -> Self:
        """The same with one entry more.

        Arguments:
            rows: its row of each of `tensors`, by name.
        """
        longer = {
            name: torch.cat([tensor, torch.as_tensor(rows[name]).to(tensor)[None]])
            for name, tensor in self.tensors().items()
        }
        return replace(self, entries=(*self.entries, entry), **longer)

    def _concatenated(self, later: Self) -> Self:
        """Both one behind the other; what else they say is the later one's."""
        both = {name: torch.cat([tensor, later.tensors()[name]]) for name, tensor in self.tensors().items()}
        return replace(later, entries=self.entries + later.entries, **both)
