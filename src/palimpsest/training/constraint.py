"""Constraints on training: a ball around the start, and inputs whose outputs must not change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import Tensor, nn

from palimpsest.models import whole_tensor
from palimpsest.models.sites import is_transposed
from palimpsest.training.steps import root_mean_square

Constraint = Literal["none", "linf", "l2"]


@dataclass(frozen=True)
class Ball:
    """How far trained tensors may go from where they started (arXiv:2012.00363).

    Arguments:
        constraint: `linf` bounds every entry's change, `l2` the Frobenius norm of each tensor's, `none` nothing.
        radius: that bound.
        is_relative: whether the bound is in multiples of the tensor's own size: of the root mean square of its entries
            (`linf`) or of its Frobenius norm (`l2`).
        gives_way: whether a change that must lie in some directions only lies there exactly, at the price of being
            shorter; else the ball comes last, and what it cuts may leave those directions a little.
    """

    constraint: Constraint = "none"
    radius: float = 0.0
    is_relative: bool = False
    gives_way: bool = False

    def radius_of(self, start: Tensor) -> float:
        """The bound for a tensor that starts from this value."""
        if not self.is_relative or self.constraint == "none":
            return self.radius
        entries = 1 if self.constraint == "linf" else start.numel()
        return self.radius * root_mean_square(start) * math.sqrt(entries)


NO_BALL = Ball()

_ROUNDS = 8


NOTHING_SPARED: Mapping[str, Tensor] = MappingProxyType({})


def spare(delta: Tensor, basis: Tensor | None, module: nn.Module) -> Tensor:
    """A change of a module's weight, in the way it is stored, without what it would write for a basis of inputs.

    Arguments:
        basis: (in, directions), orthonormal; of experts (experts, width, directions), each column so or zero.
    """
    if basis is None:
        return delta
    basis = basis.to(delta)
    if is_transposed(module):
        return delta - basis @ (basis.mT @ delta)
    return delta - (delta @ basis) @ basis.mT


def project(delta: Tensor, constraint: Constraint, radius: float) -> Tensor:
    """The nearest change inside the ball of the constraint."""
    if constraint == "linf":
        return delta.clamp(-radius, radius)
    if constraint == "l2":
        norm = float(whole_tensor(delta.norm()))
        return delta * (radius / norm) if norm > radius else delta
    return delta


def held(delta: Tensor, directions: Callable[[Tensor], Tensor], ball: Ball, radius: float) -> Tensor:
    """A change near to this one, in some directions and inside the ball.

    Where the ball gives way, what either takes away is taken away in turn, and what is still outside of the ball then
    is shortened as a whole. That happens at every step and teaches less: held so to the inputs that it spares, FT-L
    taught SmolLM2 two of five facts, and all five with the ball last.

    Arguments:
        directions: an orthogonal projection.
        radius: of the ball, see `Ball.radius_of`.
    """
    delta = directions(delta)
    if not ball.gives_way:
        return project(delta, ball.constraint, radius)
    for _ in range(_ROUNDS):
        inside = project(delta, ball.constraint, radius)
        if ball.constraint == "none" or whole_tensor((inside == delta).all()):
            return delta
        delta = directions(inside)
    size = float(whole_tensor(delta.abs().max() if ball.constraint == "linf" else delta.norm()))
    return delta * min(1.0, radius / size) if size else delta
