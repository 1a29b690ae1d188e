"""How a model takes a text that it is given as the answer: log-probabilities and what it would have said itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from palimpsest.models.tokens import Encoded


@dataclass(frozen=True)
class TargetScore:
    """How a model takes one target after one prompt.

    Arguments:
        log_probs: natural log-probability of each target token, given the prompt and the tokens before it.
        predicted: the most probable token id in each place.
        matches: whether that is the target's token.
    """

    log_probs: tuple[float, ...]
    predicted: tuple[int, ...]
    matches: tuple[bool, ...]

    @property
    def log_prob(self) -> float:
        """Log-probability of the whole target."""
        return sum(self.log_probs)

    @property
    def mean_log_prob(self) -> float:
        """Log-probability per token, as CounterFact compares answers of different length."""
        return self.log_prob / len(self.log_probs)

    @property
    def accuracy(self) -> float:
        """Share of target tokens that are the most probable ones: the papers' teacher-forced accuracy."""
        return sum(self.matches) / len(self.matches)


def target_scores(encoded: Sequence[Encoded], labels: Tensor, logits: Tensor) -> list[TargetScore]:
    """The scores of rows from the logits of their answer places.

    Arguments:
        encoded: the rows.
        labels: (places,), the target ids; see `EditableModel.answer_places`.
        logits: (places, vocabulary).
    """
    picked = logits.gather(-1, labels[:, None])[:, 0] - logits.logsumexp(-1)
    predicted = logits.argmax(-1)
    values, ids, hits = picked.tolist(), predicted.tolist(), (predicted == labels).tolist()
    scores, start = [], 0
    for row in encoded:
        end = start + len(row.target_ids)
        scores.append(TargetScore(tuple(values[start:end]), tuple(ids[start:end]), tuple(hits[start:end])))
        start = end
    return scores


def leads(logits: Tensor, labels: Tensor) -> Tensor:
    """(places,), by how many nats each place's label is more probable than any other token.

    Arguments:
        logits: (places, vocabulary).
        labels: (places,), token ids.
    """
    own = logits.gather(-1, labels[:, None])[:, 0]
    return own - logits.scatter(-1, labels[:, None], -math.inf).amax(-1)
