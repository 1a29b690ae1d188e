"""What the model computes at the subject's last token of every fact, in every context: keys, and values to start from.

Nothing behind that token can reach it, so rows end there, and a pass ends at the highest point that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from palimpsest.models.editable import EditableModel
from palimpsest.models.hooks import Point, captured
from palimpsest.models.tokens import by_length, subject_last_token
from palimpsest.requests import EditRequest

ROWS_AT_A_TIME = 128

Pooling = Literal["mean", "by-kind", "columns"]
"""How the keys of a fact's contexts are put together; see `pooled`."""


@dataclass(frozen=True)
class SubjectRows:
    """Rows that end with the subject's last token.

    Arguments:
        rows: the distinct rows, token ids.
        places: (facts, contexts), number of each fact's row in each context.
    """

    rows: tuple[tuple[int, ...], ...]
    places: Tensor

    def clean(self) -> SubjectRows:
        """The prompts alone, without the texts before them."""
        return replace(self, places=self.places[:, :1])


def subject_rows(model: EditableModel, requests: Sequence[EditRequest], templates: Sequence[str]) -> SubjectRows:
    """The rows of some facts, each once: facts about one subject often share theirs.

    Arguments:
        requests: facts with subjects.
        templates: contexts, each ending with `{}` for the prompt; the first is `{}` alone.

    Raises `DataError` for a subject that is not in its prompt or has no token.
    """
    numbers: dict[tuple[int, ...], int] = {}
    places = []
    for request in requests:
        for template in templates:
            placed = replace(request, prompt=template.replace("{}", request.prompt))
            last = subject_last_token(model.tokenizer, placed)
            row = model.encode(placed.prompt).prompt_ids[: last + 1]
            places.append(numbers.setdefault(row, len(numbers)))
    return SubjectRows(tuple(numbers), torch.tensor(places).reshape(len(requests), len(templates)))


@torch.no_grad()
def at_subjects(model: EditableModel, subjects: SubjectRows, points: Sequence[Point]) -> dict[Point, Tensor]:
    """What flows through the points at the last token of every row.

    Returns for each point a tensor (facts, contexts, width), in float32, or float64 for a model of that kind.
    """
    needed, places = torch.unique(subjects.places, return_inverse=True)
    rows = [subjects.rows[number] for number in needed.tolist()]
    found: dict[Point, list[Tensor]] = {point: [torch.empty(0)] * len(rows) for point in points}
    for lot in by_length([len(row) for row in rows], ROWS_AT_A_TIME):
        batch = model.batch([rows[number] for number in lot])
        with captured(model.sites, list(points), stops=True) as tensors:
            model.forward(batch)
        columns = batch.last_columns
        for point, tensor in tensors.items():
            vectors = tensor[torch.arange(len(lot), device=tensor.device), columns.to(tensor.device)]
            vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
            for number, vector in zip(lot, vectors, strict=True):
                found[point][number] = vector
    return {point: torch.stack(vectors)[places.to(vectors[0].device)] for point, vectors in found.items()}


def pooled(vectors: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """Key columns of a solve, and the weight of each.

    Arguments:
        vectors: (facts, contexts, width); the first context is the prompt alone.
        pooling: `mean` of all contexts, a column a fact (ROME, eq. 3); `by-kind`, the same with half of the weight on
            the prompt alone (MEMIT's code); `columns`, ours: every context a column of its own, which share a fact's
            weight.

    Returns columns (n, width) and weights (n,). The columns of one fact stand together, so residuals are repeated
    `n // facts` times each.
    """
    facts, contexts, width = vectors.shape
    if pooling == "columns":
        return vectors.reshape(facts * contexts, width), vectors.new_full((facts * contexts,), 1 / contexts)
    if pooling == "by-kind" and contexts > 1:
        means = (vectors[:, 0] + vectors[:, 1:].mean(dim=1)) / 2
    else:
        means = vectors.mean(dim=1)
    return means, vectors.new_ones(facts)
