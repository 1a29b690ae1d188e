"""Gates: for each subject a direction along which its own vectors stand at one and all others stay quiet.

With z the vectors, whitened by the covariance of ordinary text and d long, a gate is the w that minimises

    ridge d |w|^2  +  weight mean_own max(0, 1 - w z)^2  +  sum_others max(0, w z - quiet)^2

a support vector machine with squared hinges. Few of the many others ever matter, so that w is found on a working set:
solve, look which others are too loud, add them, solve again, until no new one is. The minimum over the working set is
then that over all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from palimpsest.config import Config
from palimpsest.stopwatch import Progress, silent

_AT_ONCE = 64
_MOST_LOOKS = 30
_MOST_STEPS = 100
_SMALLEST_STEP = 1e-6


class GateOptions(Config):
    """How a gate is fitted, and where it opens."""

    ridge: float = Field(default=0.2, gt=0)
    """Weight of a short direction, times the number of dimensions."""
    weight: float = Field(default=1000.0, gt=0)
    """Weight of the subject's own vectors together, against one other vector."""
    quiet: float = Field(default=0.1, ge=0, lt=1)
    """Where the others are asked to stay below; its own stand at 1."""
    opens: float = Field(default=0.45, gt=0, lt=1)
    """Where the gate begins to open."""
    full: float = Field(default=0.75, gt=0, le=1)
    """Where it is fully open; in between its opening rises linearly."""

    @model_validator(mode="after")
    def _opens_between(self) -> Self:
        if not self.quiet < self.opens < self.full:
            raise ValueError(
                f"quiet, opens and full have to rise: {self.quiet:g}, {self.opens:g} and {self.full:g} do not"
            )
        return self


def fitted_gates(
    own: Sequence[Tensor],
    others: Tensor,
    excluded: Sequence[Tensor | None],
    options: GateOptions,
    progress: Progress = silent,
) -> Tensor:
    """The gates of some subjects, (subjects, width).

    Arguments:
        own: for each subject (contexts, width), whitened.
        others: (n, width), whitened: what the gates are to be quiet at.
        excluded: for each subject (n,), which of the others do not count; `None` for none.
    """
    found = []
    for start in range(0, len(own), _AT_ONCE):
        progress("gates", start, len(own))
        chunk = range(start, min(start + _AT_ONCE, len(own)))
        found.append(_fitted([own[i] for i in chunk], others, [excluded[i] for i in chunk], options))
    progress("gates", len(own), len(own))
    return torch.cat(found)


def _fitted(own: Sequence[Tensor], others: Tensor, excluded: Sequence[Tensor | None], options: GateOptions) -> Tensor:
    nothing = others[:0]
    gates = torch.stack([least_hinges(one, nothing, options) for one in own])
    working = [torch.zeros(len(others), dtype=torch.bool, device=others.device) for _ in own]
    unsettled = list(range(len(own)))
    for _ in range(_MOST_LOOKS):
        loud = gates[unsettled] @ others.T > options.quiet
        still = []
        for row, index in enumerate(unsettled):
            mask = excluded[index]
            new = loud[row] & ~working[index] if mask is None else loud[row] & ~working[index] & ~mask
            if bool(new.any()):
                working[index] |= new
                gates[index] = least_hinges(own[index], others[working[index]], options, start=gates[index])
                still.append(index)
        unsettled = still
        if not unsettled:
            break
    return gates


def least_hinges(own: Tensor, others: Tensor, options: GateOptions, *, start: Tensor | None = None) -> Tensor:
    """The minimum for one subject, (width,), by Newton's steps: each solves exactly for the hinges that are active now.

    Arguments:
        own: (contexts, width), at least one.
        others: (n, width).
        start: where to begin; left out, at zero.
    """
    rows = torch.cat([own * (options.weight / len(own)) ** 0.5, others]).double()
    wanted = rows.new_full((len(rows),), options.quiet)
    wanted[: len(own)] = (options.weight / len(own)) ** 0.5
    # An own vector counts while it is below what is wanted, another one while it is above.
    side = rows.new_ones(len(rows))
    side[: len(own)] = -1
    ridge = options.ridge * rows.shape[1]
    gate = rows.new_zeros(rows.shape[1]) if start is None else start.double()

    def missing(at: Tensor) -> Tensor:
        return (side * (rows @ at - wanted)).clamp(min=0)

    def loss(at: Tensor) -> float:
        return float(ridge * at @ at + missing(at).square().sum())

    active = missing(gate) > 0
    now = loss(gate)
    for _ in range(_MOST_STEPS):
        step = _ridge_solution(rows[active], wanted[active], ridge) - gate
        length = 1.0
        while (after := loss(gate + length * step)) > now and length > _SMALLEST_STEP:
            length /= 2
        if after >= now:
            break
        gate, now = gate + length * step, after
        before, active = active, missing(gate) > 0
        if bool((before == active).all()):
            break
    return gate.to(own.dtype)


def _ridge_solution(rows: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    """The minimum of ridge |w|^2 + |rows w - wanted|^2, through the smaller of the two systems."""
    if len(rows) <= rows.shape[1]:
        inner = rows @ rows.T
        inner.diagonal().add_(ridge)
        least: Tensor = rows.T @ torch.linalg.solve(inner, wanted)
        return least
    outer = rows.T @ rows
    outer.diagonal().add_(ridge)
    solved: Tensor = torch.linalg.solve(outer, rows.T @ wanted)
    return solved
