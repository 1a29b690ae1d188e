"""Passes in which a change is added to what a layer writes at every token: what the training of a side memory needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from palimpsest.models import EditableModel, Encoded, Point, Suffix, captured, intervened, prepare_suffix
from palimpsest.models.sites import MLP_DOWN
from palimpsest.patches import indicators


@dataclass(frozen=True)
class Inputs:
    """Inputs of a layer's down-projection.

    Arguments:
        tensor: (rows, tokens, in).
        tokens: (rows, tokens), whether a token is the prompt's; no padding is.
    """

    tensor: Tensor
    tokens: Tensor

    def indicators(self, change: Tensor) -> Tensor:
        """(rows,), see `side_memories.indicators`."""
        return indicators(change, self.tensor, self.tokens)


@dataclass(frozen=True)
class SidePasses:
    """Rows of one fact, its answer behind its prompt in several contexts.

    Arguments:
        suffix: the rows from the layer on.
        point: what the layer's down-projection writes.
        inputs: what it reads.
        places: row and column of each place that predicts an answer token, and the token: (places,) each.
    """

    suffix: Suffix
    point: Point
    inputs: Inputs
    places: tuple[Tensor, Tensor, Tensor]

    def losses(self, change: Tensor) -> Tensor:
        """(rows,), mean negative log-likelihood of each row's answer with W + change, (out, in), instead of W."""
        rows, columns, labels = self.places

        def add(written: Tensor) -> Tensor:
            return written + (self.inputs.tensor.float() @ change.t()).to(written)

        with intervened(self.suffix.model.sites, {self.point: add}):
            logits = self.suffix.logits(rows, columns)
        tokens = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        counts = torch.bincount(rows)
        return tokens.new_zeros(len(counts)).index_add(0, rows, tokens) / counts


def side_passes(model: EditableModel, encoded: Sequence[Encoded], layer: int) -> SidePasses:
    """Prepares later passes, under the patches that are on the model."""
    rows = [row.prompt_ids + row.target_ids[:-1] for row in encoded]
    suffix, _ = prepare_suffix(model, rows, [0] * len(rows), layer)
    read = layer_inputs(model, [Encoded(row) for row in rows], layer)
    ends = torch.tensor([len(row.prompt_ids) for row in encoded], device=read.tokens.device)
    prompts = torch.arange(read.tokens.shape[1], device=ends.device) < ends[:, None]
    triples = [
        (index, len(row.prompt_ids) - 1 + offset, label)
        for index, row in enumerate(encoded)
        for offset, label in enumerate(row.target_ids)
    ]
    at, columns, labels = torch.tensor(triples, device=model.device).unbind(1)
    return SidePasses(suffix, Point(MLP_DOWN, layer), Inputs(read.tensor, prompts), (at, columns, labels))


@torch.no_grad()
def layer_inputs(model: EditableModel, rows: Sequence[Encoded], layer: int) -> Inputs:
    """Returns the inputs of the layer's down-projection for some prompts, padded on the right."""
    batch, point = model.batch(rows), Point(MLP_DOWN, layer, "input")
    with captured(model.sites, [point], stops=True) as found:
        model.forward(batch)
    tensor = found[point]
    return Inputs(tensor, batch.attention_mask.bool().to(tensor.device))
