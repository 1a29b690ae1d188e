"""A codebook beside one layer (GRACE): what the layer writes is replaced where it reads something close to a key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import TypeAdapter
from torch import Tensor

from palimpsest.files import shaped
from palimpsest.patches.branches import require_shapes
from palimpsest.patches.keyed import Decided, KeyedBranch
from palimpsest.patches.prompts import prompt_columns

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

SILENCED = -1.0
"""The radius of an entry that a later edit of the same prompt has taken the place of."""

# Of a query's length: what rounding may make of a distance between two passes, or two processors.
_TIE = 1e-6

Replacement = Literal["last", "prompt", "all"]


@dataclass(frozen=True)
class CodebookEntry:
    """The record of one key of a codebook, without its tensors.

    Arguments:
        edit: id of the edit that made it.
        label: the tokens of its answer.
        narrowed: other entries' edits, with the radius that each had before this one narrowed it.
    """

    edit: str
    label: tuple[int, ...]
    narrowed: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Codebook(KeyedBranch):
    """Keys, values and radii of one layer, in float32.

    The query of a row is what the layer reads at the last token of the row's prompt. Where the nearest key is no
    farther than its radius, its value takes the place of what the layer writes there; elsewhere nothing is touched, so
    that outside every ball the model is what it was, bit for bit. A decision is made on the prompt and kept while the
    answer is written.

    Arguments:
        site: a linear site, `mlp.down` or `encoder.mlp.down`.
        layer: its layer.
        weight: full name of the layer's weight.
        replacement: where the value is put: at the prompt's last token, at the whole prompt, or also at what follows.
        keys: (entries, in).
        values: (entries, out).
        radii: (entries,).
        entries: the rest.
    """

    form: ClassVar[str] = "codebook"
    site: str
    layer: int
    weight: str
    replacement: Replacement
    keys: Tensor
    values: Tensor
    radii: Tensor
    entries: tuple[CodebookEntry, ...]

    def __post_init__(self) -> None:
        if self.replacement not in ("last", "prompt", "all"):
            raise ValueError(f"unknown replacement {self.replacement!r}")
        count = len(self.entries)
        shapes = {"keys": (count, self.keys.shape[-1]), "values": (count, self.values.shape[-1]), "radii": (count,)}
        require_shapes(self.form, self.tensors(), shapes)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(rows,) index of the nearest key of each query, (rows, in), and whether the query is inside its ball."""
        # Without the product form, whose rounding would put a key beside itself.
        exactly = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(queries.float(), self.keys.to(queries.device), compute_mode=exactly)
        if not len(self.entries):
            return queries.new_zeros(len(queries), dtype=torch.long), queries.new_zeros(len(queries), dtype=torch.bool)
        distances = distances.masked_fill(self.radii.to(queries.device) < 0, torch.inf)
        # Of keys that are equally near but for rounding the first.
        near = distances <= distances.amin(-1, keepdim=True) + _TIE * queries.float().norm(dim=-1, keepdim=True)
        found = near.int().argmax(-1)
        own = distances.gather(-1, found[:, None])[:, 0]
        return found, own <= self.radii.to(queries.device)[found]

    def written(
        self, model: EditableModel, stack: str, kept: Decided, inputs: Tensor, written: Tensor
    ) -> Tensor | None:
        """See `KeyedBranch.written`: the value takes its place."""
        chosen = None
        if not (stack == "decoder" and kept.is_for(model.reading, inputs)):
            prompts = prompt_columns(model, stack, inputs)
            rows = torch.arange(len(inputs), device=inputs.device)
            kept.take(model.reading, self.nearest(inputs[rows, prompts.last]))
            chosen = prompts.chosen(self.replacement)
        at, is_hit = kept.value
        if chosen is None and self.replacement == "all":
            chosen = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        if chosen is None or not bool(is_hit.any()):
            return None
        mask = is_hit[:, None].to(chosen.device) & chosen
        values = self.values.to(written.device, written.dtype)[at]
        rows, tokens = mask.nonzero(as_tuple=True)
        return written.index_put((rows, tokens), values[rows])

    def joined(self, later: Codebook) -> Codebook:
        """Both; what the later one says of an entry that both have, holds."""
        again = {entry.edit for entry in later.entries}
        kept = self.without(again)
        if kept is None:
            return later
        return kept._concatenated(later).of_edits([*self.owners(), *later.owners()])

    def without(self, edits: Collection[str]) -> Codebook | None:
        """See `Branch.without`; a radius that one of these edits was the last to narrow is what it was before."""
        radii = self.radii.clone()
        own = self.owners()
        # In the reverse order, so that the radius before the earliest of them is what remains.
        for entry in reversed(self.entries):
            if entry.edit in edits:
                for other, before in entry.narrowed:
                    if other in own:
                        radii[own.index(other)] = before
        left = [index for index, edit in enumerate(own) if edit not in edits]
        return replace(self, radii=radii).select(left) if left else None

    def place(self) -> tuple[Any, ...]:
        """See `Branch.place`."""
        return self.form, self.weight, self.replacement

    def tensors(self) -> dict[str, Tensor]:
        """See `Branch.tensors`."""
        return {"keys": self.keys, "values": self.values, "radii": self.radii}

    def options(self) -> dict[str, Any]:
        """See `Branch.options`."""
        entries = [
            {"edit": entry.edit, "label": list(entry.label), "narrowed": [list(one) for one in entry.narrowed]}
            for entry in self.entries
        ]
        names = ("site", "layer", "weight", "replacement")
        return {**{name: getattr(self, name) for name in names}, "entries": entries}

    @classmethod
    def from_saved(cls, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Codebook:
        """See `Branch.from_saved`."""
        entries = TypeAdapter(tuple[CodebookEntry, ...]).validate_python(options["entries"])
        return cls(
            str(options["site"]),
            int(options["layer"]),
            str(options["weight"]),
            options["replacement"],
            shaped(tensors["keys"], len(entries), None, name="keys").float(),
            shaped(tensors["values"], len(entries), None, name="values").float(),
            shaped(tensors["radii"], len(entries), name="radii").float(),
            entries,
        )
