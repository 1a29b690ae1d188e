"""What flows through sites at each subject's last token, in every context: keys, and what the sites write today."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from palimpsest.models.editable import DEFAULT_ROWS, EditableModel
from palimpsest.models.hooks import Point, captured
from palimpsest.models.suffix import require_decoder
from palimpsest.models.tokens import by_length, subject_last_token
from palimpsest.optimise.contexts import CLEAN, check_templates, in_context
from palimpsest.requests import EditRequest

Weighting = Literal["equal", "half-clean"]
"""How contexts count in a mean: all alike (ROME), or the prompt alone as much as all others together (MEMIT)."""


@torch.no_grad()
def subject_vectors(
    model: EditableModel,
    requests: Sequence[EditRequest],
    points: Sequence[Point],
    *,
    templates: Sequence[str] = CLEAN,
    forward_batch_size: int = DEFAULT_ROWS,
) -> dict[Point, Tensor]:
    """For each point (facts, contexts, width), in float32 or better, from passes that end at the deepest point.

    A key k of ROME and its followers is `Point("mlp.down", layer, "input")`; `Point("mlp.down", layer)` is W k + b.
    Nothing behind the subject is read: in a decoder it does not reach it.

    Arguments:
        requests: facts with subjects.
        points: where to look.
        templates: contexts, each ending with `{}` for the prompt; the first is `{}` alone.
        forward_batch_size: rows in one pass.

    Raises `ModelError` for an encoder-decoder or a layer out of range, `ConfigError` for an unknown site or a template
    that is none, `DataError` for a subject without tokens; all before anything is computed.
    """
    require_decoder(model)
    check_templates(templates)
    for point in points:
        model.sites.module(point.site, point.layer)
    rows = [_row(model, in_context(request, template)) for request in requests for template in templates]
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
    shape = (len(requests), len(templates), -1)
    return {point: torch.stack(vectors).view(shape) for point, vectors in found.items()}


def averaged(vectors: Tensor, weighting: Weighting) -> Tensor:
    """Means over contexts, (facts, contexts, ...) to (facts, ...); the first context is the prompt alone."""
    if weighting == "equal" or vectors.shape[1] == 1:
        return vectors.mean(1)
    return (vectors[:, 0] + vectors[:, 1:].mean(1)) / 2


def _row(model: EditableModel, request: EditRequest) -> tuple[int, ...]:
    """Ids of a prompt up to its subject's last token."""
    last = subject_last_token(model.tokenizer, request, chat=model.chat)
    return model.encode(request.prompt).prompt_ids[: last + 1]
