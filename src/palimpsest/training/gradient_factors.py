"""Gradients of weights as their factors, from one backward pass that makes no gradient of a whole weight.

For a linear layer y = W u with loss L, tokens t and delta_t = dL/dy_t:   dL/dW = sum_t delta_t u_t^T, (out, in).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.models import EditableModel, Encoded, Intervention, Point, captured, frozen_parameters, intervened
from palimpsest.models.sites import factors_to_storage
from palimpsest.patches import LowRank
from palimpsest.training.objectives import answer_losses

# Gradients in float16 vanish below 6e-8; the loss is scaled by this before the backward pass and they are divided.
_HALF_SCALE = 1024.0


@dataclass(frozen=True)
class WeightPlace:
    """One linear layer: a site of a layer, and the full name of its weight."""

    site: str
    layer: int
    name: str


@dataclass(frozen=True)
class Factors:
    """A gradient's factors at one layer, fact by fact, in float32; zero where `mask` is false.

    Arguments:
        inputs: (facts, tokens, in), u.
        gradients: (facts, tokens, out), delta.
        mask: (facts, tokens), tokens that take part: real ones whose delta is not zero.
    """

    inputs: Tensor
    gradients: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Update:
    """Changes of one weight, fact by fact, as factors: that of a fact is `left^T right`, (out, in).

    Arguments:
        left: (facts, rank, out).
        right: (facts, rank, in).
    """

    left: Tensor
    right: Tensor

    def together(self, count: int) -> Update:
        """Size of groups of neighbouring facts whose changes are added up: (groups, count * rank, ...)."""
        missing = -len(self.left) % count
        grouped = (torch.cat([one, one.new_zeros(missing, *one.shape[1:])]) for one in (self.left, self.right))
        return Update(*(one.reshape(-1, count * one.shape[1], one.shape[2]) for one in grouped))

    def times(self, inputs: Tensor, owners: Tensor) -> Tensor:
        """Applies the changes to a layer's input.

        Arguments:
            inputs: (rows, tokens, in), or (rows * tokens, in).
            owners: (rows,), the fact or group whose change each row computes with.
        """
        rows = inputs.reshape(len(owners), -1, inputs.shape[-1]).float()
        added = rows @ self.right[owners].transpose(1, 2) @ self.left[owners]
        return added.reshape(*inputs.shape[:-1], added.shape[-1])


def places(model: EditableModel, sites: Sequence[str], layers: Sequence[Sequence[int]]) -> list[WeightPlace]:
    """The layers of some sites. Raises `ModelError` for a weight that cannot be changed.

    Arguments:
        layers: for each site its layers.
    """
    return [
        WeightPlace(site, layer, model.sites.require_weight(site, layer))
        for site, its in zip(sites, layers, strict=True)
        for layer in its
    ]


def gradient_factors(model: EditableModel, rows: Sequence[Encoded], where: Sequence[WeightPlace]) -> dict[str, Factors]:
    """The factors of each fact's own gradient, by the weight's name.

    A fact's loss is the mean over its answer's tokens of -log p, in nats; facts do not see each other, so the factors
    of a fact do not depend on which others are in the batch.
    """
    scale = _HALF_SCALE if model.module.dtype == torch.float16 else 1.0
    added: dict[str, Tensor] = {}

    def adds_nothing(place: WeightPlace) -> Intervention:
        # The gradient of what is added to an output is the output's own, and nothing below it needs a graph.
        def change(output: Tensor) -> Tensor:
            added[place.name] = torch.zeros_like(output, requires_grad=True)
            return output + added[place.name]

        return change

    entrances = {place.name: Point(place.site, place.layer, "input") for place in where}
    exits = {Point(place.site, place.layer): adds_nothing(place) for place in where}
    with (
        frozen_parameters(model.module),
        torch.enable_grad(),
        captured(model.sites, list(entrances.values())) as read,
        intervened(model.sites, exits),
    ):
        sums, counts = answer_losses(model, rows, loss_on="answer")
        gradients = torch.autograd.grad(scale * (sums / counts).sum(), [added[place.name] for place in where])
    batch = model.batch(rows)
    found = {}
    for place, gradient in zip(where, gradients, strict=True):
        is_encoder = batch.decoder is not None and model.sites.locate(place.site)[0] == "encoder"
        real = (batch if is_encoder or batch.decoder is None else batch.decoder).attention_mask.bool()
        delta = gradient.detach().float() / scale
        # Normalisation would make something of a zero.
        mask = real.to(delta.device) & delta.ne(0).any(-1)
        inputs = read[entrances[place.name]].detach().float()
        found[place.name] = Factors(inputs * mask[..., None], delta * mask[..., None], mask)
    return found


@contextmanager
def updated(model: EditableModel, updates: Mapping[str, Update], owners: Tensor) -> Iterator[None]:
    """Inside the block a batch's rows are computed with the updates of their owners; gradients reach the factors.

    Arguments:
        updates: by the weight's name.
        owners: (rows,), the fact or group whose change each row of every batch computes with.
    """

    def adding(update: Update) -> Intervention:
        return lambda inputs: update.times(inputs, owners.to(inputs.device))

    layer = model.weights.push("update", {}, {name: adding(update) for name, update in updates.items()})
    try:
        yield
    finally:
        model.weights.remove(layer)


def low_rank(model: EditableModel, where: Sequence[WeightPlace], updates: Mapping[str, Update]) -> dict[str, LowRank]:
    """The changes of all facts together, one low-rank delta a weight, in storage order."""
    deltas = {}
    for place in where:
        update = updates[place.name]
        left, right = (one.detach().flatten(0, 1) for one in (update.left, update.right))
        # Tokens that take no part have no share in the rank.
        kept = left.ne(0).any(1) & right.ne(0).any(1)
        module = model.sites.module(place.site, place.layer)
        if kept.any():
            deltas[place.name] = LowRank(*factors_to_storage(module, left[kept].t().contiguous(), right[kept]))
    return deltas
