"""Answers of two models at once: a mixture of their probabilities, token by token, each reading its own prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.errors import ModelError
from palimpsest.models import tokens
from palimpsest.models.generation import Steps, Until, continuations, logits_by_step
from palimpsest.models.reader import Reader
from palimpsest.models.scores import TargetScore, target_scores
from palimpsest.models.tokens import Encoded


@dataclass(frozen=True)
class Mixed:
    """The inputs of two models.

    Arguments:
        prompt: the first one's prompt.
        other: the second one's.
        weight: the second one's share of the probability, between 0 and 1.
    """

    prompt: str
    other: str
    weight: float


@torch.no_grad()
def mixed_scores(
    model: Reader, reader: Reader, pairs: Sequence[Mixed], targets: Sequence[str], rows: int
) -> list[TargetScore]:
    """Scores of targets under (1 - weight) p + weight q, p of the model and q of the reader.

    Arguments:
        rows: in one forward pass.

    Raises `ModelError` when the two read a target as different tokens.
    """
    found: dict[int, TargetScore] = {}
    first = [model.encode(pair.prompt, target) for pair, target in zip(pairs, targets, strict=True)]
    second = [reader.encode(pair.other, target) for pair, target in zip(pairs, targets, strict=True)]
    for chunk in tokens.by_length([len(row) for row in second], rows):
        encoded, others = [first[row] for row in chunk], [second[row] for row in chunk]
        _require_same_targets(encoded, others)
        logits, places, labels = _answer_logits(model, encoded)
        other_logits, _, _ = _answer_logits(reader, others)
        weights = torch.tensor([pairs[row].weight for row in chunk], device=logits.device)[places]
        scores = target_scores(encoded, labels, log_mixture(logits, other_logits, weights))
        found.update(zip(chunk, scores, strict=True))
    return [found[row] for row in range(len(pairs))]


@torch.no_grad()
def mixed_texts(
    model: Reader,
    reader: Reader,
    pairs: Sequence[Mixed],
    max_new_tokens: int,
    until: Until,
    rows: int,
) -> list[str]:
    """Greedy continuations under the mixture; see `generation.continuations`."""
    found: dict[int, str] = {}
    first, second = [model.asked(pair.prompt) for pair in pairs], [reader.asked(pair.other) for pair in pairs]
    for chunk in tokens.by_length([len(row) for row in second], rows):
        batch = model.batch([first[row] for row in chunk], side="left")
        other = reader.batch([second[row] for row in chunk], side="left")
        room = min(model.room_after(batch.input_ids.shape[1]), reader.room_after(other.input_ids.shape[1]))
        weights = torch.tensor([pairs[row].weight for row in chunk], device=model.device)
        steps = _mixed_steps(logits_by_step(model, batch), logits_by_step(reader, other), weights)
        with model.reads(batch):
            texts = continuations(model, batch, max_new_tokens=max_new_tokens, room=room, until=until, steps=steps)
        found.update(zip(chunk, texts, strict=True))
    return [found[row] for row in range(len(pairs))]


def log_mixture(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """(rows, vocabulary), log of (1 - weight) softmax(first) + weight softmax(second); sums to one.

    Arguments:
        first: (rows, vocabulary), logits.
        second: likewise; the larger vocabulary of two that share a tokenizer is padding, and cut off.
        weights: (rows,).
    """
    size = min(first.shape[-1], second.shape[-1])
    parts = [logits[:, :size].float().log_softmax(-1) for logits in (first, second)]
    share = weights[:, None].float()
    # Added as logarithms: a token that both find next to impossible keeps a finite one.
    return torch.logaddexp(parts[0] + torch.log1p(-share), parts[1] + share.log())


def _mixed_steps(first: Steps, second: Steps, weights: Tensor) -> Steps:
    logits, other = next(first), next(second)
    while True:
        chosen = yield log_mixture(logits, other.to(logits.device), weights)
        logits, other = first.send(chosen), second.send(chosen.to(other.device))


def _answer_logits(model: Reader, encoded: Sequence[Encoded]) -> tuple[Tensor, Tensor, Tensor]:
    """(places, vocabulary), the row of each place, and the target ids."""
    batch = model.batch(encoded)
    rows, columns, labels = model.answer_places(encoded, batch)
    return model.logits_at(batch, rows, columns), rows, labels


def _require_same_targets(first: Sequence[Encoded], second: Sequence[Encoded]) -> None:
    for one, other in zip(first, second, strict=True):
        if one.target_ids != other.target_ids:
            raise ModelError(
                "Two models read one answer as different tokens, so their probabilities cannot be mixed.",
                expected=f"the same tokens from both: {list(one.target_ids)}",
                found=str(list(other.target_ids)),
                remedy="route hard, or mix models that share a tokenizer",
            )
