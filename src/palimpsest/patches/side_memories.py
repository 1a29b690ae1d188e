"""Side memories beside one layer (WISE): other weights for prompts that one of them knows, its own for the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import TypeAdapter
from torch import Tensor

from palimpsest.errors import PatchError
from palimpsest.files import shaped
from palimpsest.models import Attachment, Point, attach
from palimpsest.models.sites import MLP_DOWN, features
from palimpsest.patches.branches import Branch, require_shapes, require_weight
from palimpsest.patches.prompts import Decision, prompt_columns

if TYPE_CHECKING:
    from palimpsest.models import EditableModel


@dataclass(frozen=True)
class KnownEdit:
    """An edit that a side memory holds.

    Arguments:
        edit: its id.
        prompt_ids: its prompt.
    """

    edit: str
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SideMemory:
    """One side memory: W' = W + change.

    Arguments:
        shards: numbers of the knowledge shards that it holds: one, or those that were merged.
        change: (out, in), in float32.
        threshold: how far from the layer's own output, on the mean over a prompt, its output is where it is meant.
        edits: what it was trained on.
    """

    shards: tuple[int, ...]
    change: Tensor
    threshold: float
    edits: tuple[KnownEdit, ...]


@dataclass(frozen=True, eq=False)
class SideMemories(Branch):
    """The side memories of one layer's MLP.

    A prompt goes to the memory with the largest indicator, mean over its tokens of |A (W' - W)^T|, of those that lie
    above their thresholds; elsewhere nothing is touched, so that the model is what it was, bit for bit. The decision is
    made on the prompt, row by row, and kept while the answer is written. Those of several patches on one model act as
    one: the uppermost speaks for all, and a shard is what the uppermost that has it says.

    Arguments:
        layer: the decoder's layer.
        weight: full name of its down-projection's weight.
        memories: the memories.
    """

    form: ClassVar[str] = "side-memories"
    layer: int
    weight: str
    memories: tuple[SideMemory, ...]

    def __post_init__(self) -> None:
        shapes = {f"change-{index}": tuple(self.memories[0].change.shape) for index in range(len(self.memories))}
        require_shapes(self.form, self.tensors(), shapes)

    def route(self, inputs: Tensor, prompts: Tensor) -> Tensor:
        """(rows,), the number of the memory that each row goes to, or -1.

        Arguments:
            inputs: (rows, tokens, in), what the layer reads.
            prompts: (rows, tokens), whether a token is the prompt's.
        """
        if not self.memories:
            return torch.full((len(inputs),), -1, device=inputs.device)
        found = torch.stack([indicators(one.change, inputs, prompts) for one in self.memories])
        thresholds = found.new_tensor([one.threshold for one in self.memories])
        best = found.masked_fill(found <= thresholds[:, None], -torch.inf).max(0)
        return torch.where(best.values > -torch.inf, best.indices, -1)

    def attach(self, model: EditableModel) -> Attachment:
        """See `Branch.attach`."""
        read: list[Tensor] = []
        kept: Decision[Tensor] = Decision()

        def keep(tensor: Tensor) -> None:
            read[:] = [tensor]

        def change(written: Tensor) -> Tensor | None:
            inputs, there = read.pop(), _in_place(model, self)
            if there[-1:] != [self]:
                return None
            together = reduce(SideMemories.joined, there)
            if not kept.is_for(model.reading, inputs):
                prompts = prompt_columns(model, "decoder", inputs).chosen("prompt")
                kept.take(model.reading, together.route(inputs, prompts))
            for index in sorted(set(kept.value.tolist())):
                if index >= 0:
                    rows = (kept.value == index).nonzero()[:, 0]
                    added = together.memories[index].change.to(inputs.device)
                    side = written[rows] + (inputs[rows].float() @ added.t()).to(written)
                    written = written.index_put((rows,), side)
            return written

        before, after = Point(MLP_DOWN, self.layer, "input"), Point(MLP_DOWN, self.layer)
        return attach(model.sites, {before: keep, after: change})

    def check(self, model: EditableModel) -> None:
        """See `Branch.check`."""
        require_weight(model, MLP_DOWN, self.layer, self.weight)
        shape = features(model.sites.module(MLP_DOWN, self.layer))
        require_shapes(self.form, self.tensors(), dict.fromkeys(self.tensors(), shape))

    def joined(self, later: SideMemories) -> SideMemories:
        """Both; what the later one says of a shard holds."""
        told = {shard for one in later.memories for shard in one.shards}
        kept = tuple(one for one in self.memories if not told & set(one.shards))
        return replace(later, memories=kept + later.memories)

    def without(self, edits: Collection[str]) -> SideMemories | None:
        """See `Branch.without`. Raises `PatchError` for some of a memory's edits: its numbers hold them all."""
        left = []
        for one in self.memories:
            owners = {known.edit for known in one.edits}
            if owners - set(edits):
                left.append(one)
                if owners & set(edits):
                    raise PatchError(
                        "An edit cannot be taken out of the side memory that it shares with others.",
                        expected=f"all {len(owners)} edits of the memory, or none",
                        found=", ".join(sorted(owners & set(edits))),
                        where=f"shards {list(one.shards)}",
                        remedy="name all of them and edit those that shall stay anew",
                    )
        return replace(self, memories=tuple(left)) if left else None

    def place(self) -> tuple[Any, ...]:
        """See `Branch.place`."""
        return self.form, self.weight

    def owners(self) -> list[str]:
        """See `Branch.owners`."""
        return [known.edit for one in self.memories for known in one.edits]

    def tensors(self) -> dict[str, Tensor]:
        """See `Branch.tensors`."""
        return {f"change-{index}": one.change for index, one in enumerate(self.memories)}

    def options(self) -> dict[str, Any]:
        """See `Branch.options`."""
        memories = [
            {
                "shards": list(one.shards),
                "threshold": one.threshold,
                "edits": [[known.edit, list(known.prompt_ids)] for known in one.edits],
            }
            for one in self.memories
        ]
        return {"layer": self.layer, "weight": self.weight, "memories": memories}

    @classmethod
    def from_saved(cls, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> SideMemories:
        """See `Branch.from_saved`."""
        memories = tuple(
            SideMemory(
                tuple(map(int, one["shards"])),
                shaped(tensors[f"change-{index}"], None, None, name=f"change-{index}").float(),
                float(one["threshold"]),
                tuple(KnownEdit(str(edit), tuple(map(int, ids))) for edit, ids in one["edits"]),
            )
            for index, one in enumerate(TypeAdapter(list[dict[str, Any]]).validate_python(options["memories"]))
        )
        return cls(int(options["layer"]), str(options["weight"]), memories)


def indicators(change: Tensor, inputs: Tensor, tokens: Tensor) -> Tensor:
    """(rows,), how far a memory's output is from the layer's own: the mean over tokens of |A change^T| (eq. 5).

    Arguments:
        change: (out, in).
        inputs: (rows, tokens, in).
        tokens: (rows, tokens), those that count.
    """
    norms: Tensor = torch.linalg.vector_norm(inputs.float() @ change.to(inputs.device).t(), dim=-1)
    sums: Tensor = (norms * tokens).sum(-1)
    return sums / tokens.sum(-1)


@dataclass(frozen=True)
class _StandIn:
    """The origin of a change that only holds branches."""

    branches: tuple[Branch, ...]


@contextmanager
def standing_back(model: EditableModel, empty: SideMemories) -> Iterator[None]:
    """Inside the block the side memories of a place that lie on the model do nothing, for another one is in training.

    Arguments:
        empty: one of that place, without memories.
    """
    layer = model.weights.push("a side memory in training", {}, origin=_StandIn((empty,)))
    try:
        yield
    finally:
        model.weights.remove(layer)


def _in_place(model: EditableModel, own: SideMemories) -> list[SideMemories]:
    """All side memories of a place on the model, lowest first."""
    branches = [branch for origin in model.weights.origins for branch in getattr(origin, "branches", ())]
    return [one for one in branches if isinstance(one, SideMemories) and one.place() == own.place()]
