"""Inputs and results of a solve, and its accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.errors import DataError

RELATIVE_STRENGTH = 0.1
"""Weight of old knowledge against a typical key of the text where no strength is given; measured on small models."""

VANISHING = 1e-10
"""A key whose leverage is below this share of a typical key's counts as zero: its length is below 1e-5 of it."""


@dataclass(frozen=True)
class Solution:
    """A change of a weight, `left @ right`, and its numbers.

    Arguments:
        left: (out, n), float64.
        right: (n, in), float64. The row of a vanishing key is zero.
        key_norms: (n,), length of each key.
        leverages: (n,), k^T M^-1 k in the metric M of the solve: how little resistance a key meets. A typical key of
            the text that a second moment C was collected on has, in C's metric, as many as it has dimensions.
        residual_norms: (n,), length of what a key's value was to change by.
        remaining_norms: (n,), length of what is missing from that afterwards.
        condition: of the solved system scaled to a unit diagonal, a lower bound.
        vanishing: indices of keys too small to carry a change; nothing is inserted for these.
    """

    left: Tensor
    right: Tensor
    key_norms: Tensor
    leverages: Tensor
    residual_norms: Tensor
    remaining_norms: Tensor
    condition: float
    vanishing: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """The inner dimension of the factors."""
        return int(self.left.shape[1])

    def dense(self) -> Tensor:
        """The change, (out, in)."""
        return self.left @ self.right

    def norm(self) -> float:
        """The Frobenius norm of the change, from its factors."""
        squared = ((self.left.T @ self.left) * (self.right @ self.right.T)).sum()
        return float(squared.clamp(min=0).sqrt())

    def facts(self) -> dict[str, Any]:
        """Returns facts for a method's diagnostics, JSON-ready."""
        return {
            "norm": self.norm(),
            "key_norms": self.key_norms.tolist(),
            "leverages": self.leverages.tolist(),
            "residual_norms": self.residual_norms.tolist(),
            "remaining_norms": self.remaining_norms.tolist(),
            "condition": self.condition,
            "vanishing": list(self.vanishing),
        }


def finished(
    keys: Tensor, residuals: Tensor, right: Tensor, *, leverages: Tensor, condition: float, vanishing: Tensor
) -> Solution:
    """A solution with left = residuals^T: keys (n, in), residuals (n, out), right (n, in), vanishing (n,), boolean."""
    left, right = residuals.T, torch.where(vanishing[:, None], 0.0, right)
    remaining = residuals - keys @ right.T @ left.T
    return Solution(
        left=left,
        right=right,
        key_norms=keys.norm(dim=1),
        leverages=leverages,
        residual_norms=residuals.norm(dim=1),
        remaining_norms=remaining.norm(dim=1),
        condition=condition,
        vanishing=tuple(vanishing.nonzero()[:, 0].tolist()),
    )


def as_rows(vectors: Tensor, width: int | None, what: str, *, device: torch.device) -> Tensor:
    """Vectors as (n, width) in float64. Raises `ValueError` for another shape, `DataError` for what is not finite."""
    rows = vectors.to(device, torch.float64)
    if rows.ndim != 2 or (width is not None and rows.shape[1] != width):
        raise ValueError(f"expected {what}s of shape (n, {width or 'out'}), found {tuple(rows.shape)}")
    broken = (~torch.isfinite(rows)).any(dim=1).nonzero()[:, 0].tolist()
    if broken:
        raise DataError(
            f"A {what} is not finite.",
            expected="finite numbers",
            found="NaN or infinity",
            where=f"{what} {broken[0]}" + (f" and {len(broken) - 1} more" if len(broken) > 1 else ""),
            remedy="compute in float32 or bfloat16, not in float16; a diverged target value has a rate too high",
        )
    return rows
