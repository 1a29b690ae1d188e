"""Objectives of training loops, and the losses of answers: negative log-likelihoods of chosen tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from palimpsest.models import EditableModel, Encoded, leads


@dataclass(frozen=True, eq=False)
class FactLosses:
    """The losses of some facts in one pass.

    Arguments:
        minimised: (facts,), differentiable; a step takes their sum over the number of its facts (or of its tokens,
            where each is a sum over tokens).
        per_token: (facts,), negative log-likelihood of the answer, in nats per token.
        takes_part: (facts,), whether a fact takes part in this step; training ends when none does.
    """

    minimised: Tensor
    per_token: Tensor
    takes_part: Tensor


class FinetuneObjective(Protocol):
    """The objective, fact by fact."""

    def losses(self, model: EditableModel, rows: Sequence[Encoded], facts: Sequence[int]) -> FactLosses:
        """Those of some facts.

        Arguments:
            rows: prompts and answers.
            facts: the number of each among all facts.
        """


def answer_losses(
    model: EditableModel, encoded: Sequence[Encoded], *, loss_on: Literal["answer", "all"]
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods of the trained tokens, in nats.

    Returns (facts, ) sums over each fact's tokens, and (facts, ) counts of these tokens. Differentiable.
    """
    sums, counts, _ = losses_and_margins(model, encoded, loss_on=loss_on)
    return sums, counts


def losses_and_margins(
    model: EditableModel, encoded: Sequence[Encoded], *, loss_on: Literal["answer", "all"]
) -> tuple[Tensor, Tensor, Tensor]:
    """`answer_losses`, and (facts, ) by how many nats each fact's least certain token leads all other tokens."""
    if loss_on == "all":
        # The first token has nothing before it that could predict it.
        encoded = [Encoded(row.ids[:1], row.ids[1:]) for row in encoded]
    batch = model.batch(encoded)
    rows, columns, labels = model.answer_places(encoded, batch)
    logits = model.logits_at(batch, rows, columns).float()
    token_losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    sums = token_losses.new_zeros(len(encoded)).index_add(0, rows, token_losses)
    counts = torch.tensor([len(row.target_ids) for row in encoded], device=sums.device)
    with torch.no_grad():
        own = torch.split(leads(logits, labels), [len(row.target_ids) for row in encoded])
    return sums, counts, torch.stack([one.min() for one in own])
