"""Vectors at each subject's last token, in every context: keys, and what the sites write today."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from palimpsest.locating.contexts import CLEAN, check_templates, encode_in_context, in_context
from palimpsest.models import (
    DEFAULT_ROWS,
    EditableModel,
    Point,
    by_length,
    captured,
    require_decoder,
    subject_last_token,
)
from palimpsest.requests import EditRequest

KeyPooling = Literal["mean", "half-clean", "columns"]
"""How the keys of a fact's contexts are put together; see `key_columns`."""


@dataclass(frozen=True)
class SubjectRows:
    """Prompts in contexts, each up to its subject's last token: nothing behind it reaches it in a decoder.

    Or with a part of the answer up to the last token before a chunk of it; see `answer_chunks`.

    Arguments:
        rows: the distinct ones, token ids; facts about one subject often share theirs.
        numbers: (facts, contexts), number of each fact's row in each context.
    """

    rows: tuple[tuple[int, ...], ...]
    numbers: Tensor

    def clean(self) -> SubjectRows:
        """The prompts alone."""
        return replace(self, numbers=self.numbers[:, :1])


def subject_rows(
    model: EditableModel, requests: Sequence[EditRequest], templates: Sequence[str] = CLEAN
) -> SubjectRows:
    """The rows of some facts; nothing is computed.

    Arguments:
        requests: facts with subjects.
        templates: contexts, each ending with `{}` for the prompt; the first is `{}` alone.

    Raises `ModelError` for an encoder-decoder, `ConfigError` for an invalid template, `DataError` for a subject
    without tokens.
    """
    require_decoder(model)
    check_templates(templates)
    distinct: dict[tuple[int, ...], int] = {}
    numbers = []
    for request in requests:
        for template in templates:
            placed = in_context(request, template)
            end = subject_last_token(model.tokenizer, placed, chat=model.chat) + 1
            ids = encode_in_context(model, request, template).prompt_ids[:end]
            numbers.append(distinct.setdefault(ids, len(distinct)))
    return SubjectRows(tuple(distinct), torch.tensor(numbers).view(len(requests), len(templates)))


@torch.no_grad()
def subject_vectors(
    model: EditableModel, subjects: SubjectRows, points: Sequence[Point], *, forward_batch_size: int = DEFAULT_ROWS
) -> dict[Point, Tensor]:
    """For each point (facts, contexts, width), in float32 or better, from passes that end at the deepest point.

    A key k of ROME and its followers is `Point("mlp.down", layer, "input")`; `Point("mlp.down", layer)` is W k + b.

    Arguments:
        points: where to look.
        forward_batch_size: rows in one pass.

    Raises `ModelError` for a layer out of range, `ConfigError` for an unknown site; before anything is computed.
    """
    for point in points:
        model.sites.module(point.site, point.layer)
    needed, places = torch.unique(subjects.numbers, return_inverse=True)
    rows = [subjects.rows[number] for number in needed.tolist()]
    found: dict[Point, list[Tensor]] = {point: [torch.empty(0)] * len(rows) for point in points}
    for chunk in by_length([len(row) for row in rows], forward_batch_size):
        batch = model.batch([rows[index] for index in chunk])
        with captured(model.sites, list(found), stops=True) as tensors:
            model.forward(batch)
        for point, vectors in found.items():
            hidden = tensors[point]
            last = batch.last_columns.to(hidden.device)
            for index, vector in zip(chunk, hidden[torch.arange(len(chunk), device=hidden.device), last], strict=True):
                vectors[index] = vector.to(torch.promote_types(vector.dtype, torch.float32))
    return {point: torch.stack(vectors)[places.to(vectors[0].device)] for point, vectors in found.items()}


def key_columns(vectors: Tensor, pooling: KeyPooling) -> tuple[Tensor, Tensor]:
    """The keys that a solve gets, and the weight of each.

    Arguments:
        vectors: (facts, contexts, width); the first context is the prompt alone.
        pooling: `mean` over all contexts, one key per fact (ROME, eq. 3); `half-clean`, the same with the prompt alone
            counting as much as all others together (MEMIT, code); `columns`, ours: every context a key of its own, and
            these share the fact's weight.

    Returns keys (n, width) and weights (n,). Those of one fact stand together, so each residual is repeated
    `n // facts` times.
    """
    facts, contexts, width = vectors.shape
    if pooling == "columns":
        return vectors.reshape(facts * contexts, width), vectors.new_full((facts * contexts,), 1 / contexts)
    if pooling == "mean" or contexts == 1:
        return vectors.mean(1), vectors.new_ones(facts)
    return (vectors[:, 0] + vectors[:, 1:].mean(1)) / 2, vectors.new_ones(facts)
