"""Training in directions of low curvature: what a fine-tuning loop moves is turned into their basis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from palimpsest.models import whole_tensor
from palimpsest.models.sites import is_transposed
from palimpsest.training.copies import TrainingCopies
from palimpsest.training.curvature import LowCurvature
from palimpsest.training.steps import owner

P = ParamSpec("P")
T = TypeVar("T")


class LowCurvatureSteps:
    """Training copies whose named weights move in directions of low curvature only; see `training.finetune.Trainable`.

    Arguments:
        copies: of the weights, inside their block.
        projectors: by the weight's name; others are trained as they are.
        adam_in: `eigenbasis`: what the optimiser updates is Ub^T dW Ua, of which only the kept entries move. `weights`:
            it updates the weights with projected gradients.
    """

    def __init__(
        self,
        copies: TrainingCopies,
        projectors: Mapping[str, LowCurvature],
        *,
        adam_in: Literal["eigenbasis", "weights"] = "eigenbasis",
    ) -> None:
        self._copies = copies
        self._is_turned = adam_in == "eigenbasis"
        self._weights = dict(zip(copies.names(), copies.masters(), strict=True))
        self._starts = {name: self._weights[name].detach().clone() for name in projectors}
        self._projectors = {name: one.like(self._starts[name]) for name, one in projectors.items()}
        self._turned = {
            name: nn.Parameter(torch.zeros_like(self._as_out_in(name, self._starts[name]).contiguous()))
            for name in (projectors if self._is_turned else ())
        }

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function that computes with the trained weights."""
        return self._copies.run(function, *args, **kwargs)

    def masters(self) -> list[nn.Parameter]:
        return [self._turned.get(name, weight) for name, weight in self._weights.items()]

    def units(self, optimizer: str) -> list[float]:
        """See `training.steps`; a rotation leaves the length of a step as it is."""
        return self._copies.units(optimizer)

    def before_step(self) -> None:
        """Projects the gradients, and turns them into the bases in which the optimiser works."""
        self._copies.before_step()
        for name, projector in self._projectors.items():
            weight = self._weights[name]
            if weight.grad is None:
                continue
            turned = projector.turned(self._as_out_in(name, weight.grad))
            if self._is_turned:
                self._turned[name].grad, weight.grad = turned, None
            else:
                weight.grad = self._as_out_in(name, projector.back(turned)).contiguous()

    @torch.no_grad()
    def after_step(self) -> None:
        """Shows the model the new values, in the directions and inside the ball."""
        for name, turned in self._turned.items():
            start, weight = self._starts[name], self._weights[name]
            back = self._as_out_in(name, self._projectors[name].back(turned))
            delta = self._copies.held(name, back, partial(self._projected, name))
            torch.add(start, delta, out=weight)
            turned.copy_(self._projectors[name].turned(self._as_out_in(name, delta)))
        self._copies.after_step()

    @torch.no_grad()
    def facts(self) -> dict[str, dict[str, float]]:
        """By weight: what is kept, what the change costs, and the share of it that lies outside (none, but for
        rounding, in the eigenbasis).
        """
        found = {}
        for name, projector in self._projectors.items():
            delta = self._as_out_in(name, self._weights[name] - self._starts[name])
            length = float(whole_tensor(delta.norm()))
            outside = float((delta - projector.apply(delta)).norm()) / length if length else 0.0
            found[name] = {**projector.facts(), "cost": projector.cost(delta), "outside": outside}
        return found

    def _projected(self, name: str, stored: Tensor) -> Tensor:
        return self._as_out_in(name, self._projectors[name].apply(self._as_out_in(name, stored)))

    def _as_out_in(self, name: str, stored: Tensor) -> Tensor:
        return stored.T if is_transposed(owner(self._copies.module, name)) else stored
