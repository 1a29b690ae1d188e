"""A codebook with keys of length one (HoReN): what a layer writes is added to where it reads much the same as a key."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import TypeAdapter
from torch import Tensor

from palimpsest.files import shaped
from palimpsest.patches.branches import require_shapes
from palimpsest.patches.keyed import Decided, KeyedBranch
from palimpsest.patches.prompts import PromptColumns, prompt_columns

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

# What rounding may make of a cosine between two passes, or two processors.
_TIE = 1e-6
# A step that moves a query by less is not made.
_STILL = 1e-5


@dataclass(frozen=True)
class RetrievalEntry:
    """The record of one key, without its tensors.

    Arguments:
        edit: id of the edit that made it.
        label: the tokens of its answer.
    """

    edit: str
    label: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Retrieval(KeyedBranch):
    """Unit keys, values and thresholds of one layer, in float32.

    The query of a row is the mean of what the layer reads over the last share of its prompt's tokens, at length one.
    One damped step draws it to the keys that it is like,

        q <- normalised((1 - damping) q + damping r),      r = normalised(softmax(beta q K^T) K)

    and where the largest cosine is above that key's threshold its value is added to what the layer writes at the
    prompt's last token. Elsewhere nothing is touched, bit for bit. A decision is made on the prompt and kept while the
    answer is written. Without damping an entry decides for itself, so that dropping it leaves no trace.

    Arguments:
        site: a linear site, `mlp.down` or `encoder.mlp.down`.
        layer: its layer.
        weight: full name of the layer's weight.
        share: of the prompt's tokens, the last ones, that make the query.
        damping: of the step; 0 for none.
        beta: sharpness of the step.
        keys: (entries, in), of length one.
        values: (entries, out).
        thresholds: (entries,), cosines.
        entries: the rest; of keys that are equally like the later one decides.
    """

    form: ClassVar[str] = "retrieval"
    site: str
    layer: int
    weight: str
    share: float
    damping: float
    beta: float
    keys: Tensor
    values: Tensor
    thresholds: Tensor
    entries: tuple[RetrievalEntry, ...]

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and 0 <= self.damping < 1 and self.beta > 0):
            raise ValueError(f"share {self.share}, damping {self.damping} or beta {self.beta} is out of range")
        count = len(self.entries)
        shapes = {
            "keys": (count, self.keys.shape[-1]),
            "values": (count, self.values.shape[-1]),
            "thresholds": (count,),
        }
        require_shapes(self.form, self.tensors(), shapes)

    def queries(self, inputs: Tensor, prompts: PromptColumns) -> Tensor:
        """(rows, in), of length one, from what the layer reads, (rows, tokens, in)."""
        inside = prompts.chosen("prompt").to(inputs.device)
        counts = inside.sum(dim=1)
        fewest = (counts * self.share).ceil().clamp(min=1)
        # Counted from the prompt's last token backwards; padding is no part of it.
        from_end = counts[:, None] - inside.cumsum(dim=1)
        chosen = inside & (from_end < fewest[:, None])
        mean = (inputs.float() * chosen[..., None]).sum(dim=1) / fewest[:, None]
        return torch.nn.functional.normalize(mean, dim=-1)

    def scores(self, queries: Tensor) -> Tensor:
        """(rows, entries), cosines of the queries (rows, in), after the step."""
        keys = self.keys.to(queries.device)
        if self.damping and len(self.entries):
            drawn = torch.nn.functional.normalize((self.beta * queries @ keys.T).softmax(-1) @ keys, dim=-1)
            moved = torch.nn.functional.normalize((1 - self.damping) * queries + self.damping * drawn, dim=-1)
            is_still = (drawn - queries).norm(dim=-1, keepdim=True) < _STILL
            queries = torch.where(is_still, queries, moved)
        return queries @ keys.T

    def most_like(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(rows,) index of the entry that decides for each query, (rows, in), and whether it is above its threshold."""
        if not len(self.entries):
            return queries.new_zeros(len(queries), dtype=torch.long), queries.new_zeros(len(queries), dtype=torch.bool)
        scores = self.scores(queries)
        near = scores >= scores.amax(-1, keepdim=True) - _TIE
        order = torch.arange(1, len(self.entries) + 1, device=scores.device)
        found = (near * order).argmax(-1)
        return found, scores.gather(-1, found[:, None])[:, 0] > self.thresholds.to(scores.device)[found]

    def written(
        self, model: EditableModel, stack: str, kept: Decided, inputs: Tensor, written: Tensor
    ) -> Tensor | None:
        """See `KeyedBranch.written`: the value is added at the prompt's last token."""
        if stack == "decoder" and kept.is_for(model.reading, inputs):
            return None
        prompts = prompt_columns(model, stack, inputs)
        kept.take(model.reading, self.most_like(self.queries(inputs, prompts)))
        at, is_hit = kept.value
        if not bool(is_hit.any()):
            return None
        rows = is_hit.nonzero()[:, 0].to(written.device)
        values = self.values.to(written.device, written.dtype)[at.to(written.device)[rows]]
        columns = prompts.last.to(written.device)[rows]
        return written.index_put((rows, columns), written[rows, columns] + values)

    def joined(self, later: Retrieval) -> Retrieval:
        """Both; what the later one says of an edit that both have, holds, and comes last."""
        kept = self.without({entry.edit for entry in later.entries})
        return later if kept is None else kept._concatenated(later)

    def without(self, edits: Collection[str]) -> Retrieval | None:
        """See `Branch.without`. What one of these edits stood in front of decides again."""
        left = [index for index, edit in enumerate(self.owners()) if edit not in edits]
        return self.select(left) if left else None

    def place(self) -> tuple[Any, ...]:
        """See `Branch.place`."""
        return self.form, self.weight, self.share, self.damping, self.beta

    def tensors(self) -> dict[str, Tensor]:
        """See `Branch.tensors`."""
        return {"keys": self.keys, "values": self.values, "thresholds": self.thresholds}

    def options(self) -> dict[str, Any]:
        """See `Branch.options`."""
        entries = [{"edit": entry.edit, "label": list(entry.label)} for entry in self.entries]
        names = ("site", "layer", "weight", "share", "damping", "beta")
        return {**{name: getattr(self, name) for name in names}, "entries": entries}

    @classmethod
    def from_saved(cls, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Retrieval:
        """See `Branch.from_saved`."""
        entries = TypeAdapter(tuple[RetrievalEntry, ...]).validate_python(options["entries"])
        share, damping, beta = (float(options[name]) for name in ("share", "damping", "beta"))
        if not all(map(math.isfinite, (share, damping, beta))):
            raise ValueError("share, damping or beta: NaN or infinity")
        return cls(
            str(options["site"]),
            int(options["layer"]),
            str(options["weight"]),
            share,
            damping,
            beta,
            shaped(tensors["keys"], len(entries), None, name="keys").float(),
            shaped(tensors["values"], len(entries), None, name="values").float(),
            shaped(tensors["thresholds"], len(entries), name="thresholds").float(),
            entries,
        )
