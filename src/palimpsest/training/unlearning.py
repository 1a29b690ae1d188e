"""Losses that make a model forget answers, each fact's as a number to be made small.

With L a fact's negative log-likelihood summed over its n answer tokens (nats), L0 that of the model as it was, z its
logits, z0 those of the model as it was, y the answer's token, h a layer's output, u a random unit vector:

    ascent   -L / n                                      gradient ascent; GradDiff with a weight on what is to stay
    npo      -(2 / b) log sigmoid(b (L - L0))            arXiv:2404.05868, bounded by the model as it was
    simnpo   -(2 / b) log sigmoid(b (L / n - d))         arXiv:2410.07163, without it
    undial   mean over tokens of CE(softmax(z0 - b onehot(y)), softmax z)          arXiv:2402.10052
    rmu      mean over tokens and entries of (h - c u)^2                           arXiv:2403.03218
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from palimpsest.models import EditableModel, Encoded, Point, captured
from palimpsest.training.objectives import FactLosses

Forgetting = Literal["ascent", "npo", "simnpo", "undial", "rmu"]


def npo(sums: Tensor, references: Tensor, sharpness: float) -> Tensor:
    """(facts,), from the answers' negative log-likelihoods now and before, (facts,) each."""
    return -(2 / sharpness) * logsigmoid(sharpness * (sums - references))


def simnpo(means: Tensor, sharpness: float, margin: float) -> Tensor:
    """(facts,), from the answers' negative log-likelihoods per token, (facts,)."""
    return -(2 / sharpness) * logsigmoid(sharpness * (means - margin))


def undial(logits: Tensor, references: Tensor, labels: Tensor, sharpness: float) -> Tensor:
    """(tokens,), from the logits now and before, (tokens, vocabulary) each, and the answer's ids, (tokens,)."""
    lowered = references.scatter_add(-1, labels[:, None], references.new_full((len(labels), 1), -sharpness))
    return -(lowered.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def rmu(hidden: Tensor, target: Tensor) -> Tensor:
    """(tokens,), from what a layer hands on, (tokens, width), and where that is to go, (width,)."""
    return (hidden - target).square().mean(-1)


@dataclass(frozen=True, eq=False)
class Unlearning:
    """The objective of unlearning for some facts; see `objectives.FinetuneObjective`.

    Arguments:
        loss: which.
        sharpness: b.
        margin: d of `simnpo`, in nats per token.
        ceiling: a fact takes no part in a step once the negative log-likelihood per token of its answer exceeds this.
        sums: (facts,), L0.
        logits: fact by fact, (tokens, vocabulary), z0, in float16; of `undial`, else empty.
        layer: whose output `rmu` steers.
        target: c u, (width,), of `rmu`.
    """

    loss: Forgetting
    sharpness: float
    margin: float
    ceiling: float
    sums: Tensor
    logits: tuple[Tensor, ...] = ()
    layer: int = 0
    target: Tensor | None = None

    def losses(self, model: EditableModel, rows: Sequence[Encoded], facts: Sequence[int]) -> FactLosses:
        """See `objectives.FinetuneObjective`."""
        batch = model.batch(rows)
        owners, columns, labels = model.answer_places(rows, batch)
        points = [Point("resid", self.layer)] if self.loss == "rmu" else []
        with captured(model.sites, points) as read:
            logits = model.logits_at(batch, owners, columns).float()
        counts = torch.tensor([len(row.target_ids) for row in rows], device=logits.device)

        def by_fact(tokens: Tensor) -> Tensor:
            return tokens.new_zeros(len(rows)).index_add(0, owners.to(tokens.device), tokens)

        own = logits.gather(-1, labels[:, None].to(logits.device))[:, 0]
        sums = by_fact(logits.logsumexp(-1) - own)
        if self.loss == "ascent":
            found = -sums / counts
        elif self.loss == "npo":
            found = npo(sums, self.sums[list(facts)].to(sums), self.sharpness)
        elif self.loss == "simnpo":
            found = simnpo(sums / counts, self.sharpness, self.margin)
        elif self.loss == "undial":
            before = torch.cat([self.logits[fact] for fact in facts]).to(logits)
            found = by_fact(undial(logits, before, labels, self.sharpness)) / counts
        else:
            if self.target is None:
                raise ValueError("rmu needs where the layer's output is to go")
            hidden = read[points[0]]
            hidden = hidden[owners.to(hidden.device), columns.to(hidden.device)].float()
            # As a share of the target's own size, so that steps do not depend on the model's scale.
            found = by_fact(rmu(hidden, self.target) / self.target.square().mean()) / counts
        means = (sums / counts).detach()
        return FactLosses(found, means, means <= self.ceiling)


@torch.no_grad()
def unlearning_of(
    model: EditableModel,
    encoded: Sequence[Encoded],
    loss: Forgetting,
    *,
    sharpness: float,
    margin: float,
    ceiling: float,
    scale: float,
    layer: int,
    seed: int,
    forward_batch_size: int,
) -> Unlearning:
    """The loss of some facts, with what it needs of the model as it is.

    Arguments:
        scale: length of `rmu`'s target, as a multiple of the mean length of what the layer hands on at these places.
        layer: that layer.
        seed: of the target's direction.
    """
    sums: list[Tensor] = []
    logits: list[Tensor] = []
    lengths: list[Tensor] = []
    for start in range(0, len(encoded), forward_batch_size):
        rows = encoded[start : start + forward_batch_size]
        batch = model.batch(rows)
        owners, columns, labels = model.answer_places(rows, batch)
        point = Point("resid", layer)
        with captured(model.sites, [point]) as read:
            here = model.logits_at(batch, owners, columns).float()
        nll = here.logsumexp(-1) - here.gather(-1, labels[:, None].to(here.device))[:, 0]
        sums.append(nll.new_zeros(len(rows)).index_add(0, owners.to(nll.device), nll))
        lengths.append(read[point][owners.to(read[point].device), columns.to(read[point].device)].float().norm(dim=-1))
        if loss == "undial":
            logits += torch.split(here.half(), [len(row.target_ids) for row in rows])
    target = None
    if loss == "rmu":
        draw = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(seed))
        where = lengths[0].device
        target = scale * torch.cat([one.to(where) for one in lengths]).mean() * (draw / draw.norm()).to(where)
    return Unlearning(loss, sharpness, margin, ceiling, torch.cat(sums), tuple(logits), layer, target)
