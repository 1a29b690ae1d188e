"""The tokens that a model would write next after prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from palimpsest.models.generation import DEFAULT_ROWS
from palimpsest.models.tokens import Encoded, by_length

if TYPE_CHECKING:
    from palimpsest.models.editable import EditableModel


def to_be_answered(model: EditableModel, prompts: Sequence[str]) -> list[Encoded]:
    """Prompts with a token behind each, which is not read: its place is where an answer would begin."""
    return [Encoded(model.encode(prompt).prompt_ids, (0,)) for prompt in prompts]


def next_tokens(model: EditableModel, encoded: Sequence[Encoded]) -> Tensor:
    """(rows, vocabulary), natural log-probabilities of what follows each row's prompt; in one batch, with gradients."""
    batch = model.batch(encoded)
    rows, columns, _ = model.answer_places(encoded, batch)
    found: Tensor = model.logits_at(batch, rows, columns).float().log_softmax(-1)
    return found


@torch.no_grad()
def next_by_prompt(
    model: EditableModel, prompts: Sequence[str], *, forward_batch_size: int = DEFAULT_ROWS
) -> Iterator[tuple[int, Tensor]]:
    """The number of each prompt with (vocabulary,), natural log-probabilities of what follows it, batched by length."""
    encoded = to_be_answered(model, prompts)
    for chunk in by_length([len(row) for row in encoded], forward_batch_size):
        yield from zip(chunk, next_tokens(model, [encoded[index] for index in chunk]), strict=True)
