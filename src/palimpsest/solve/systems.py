"""Small symmetric systems: scaled to a unit diagonal, factorised, and named where two facts contradict each other."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.errors import DataError
from palimpsest.solve.factorised import LARGEST_CONDITION


def solve_symmetric(matrix: Tensor, rows: Tensor, *, where: str = "") -> tuple[Tensor, float]:
    """(matrix^-1 rows, condition) for a positive definite matrix (n, n) and rows (n, m).

    The condition is a lower bound of that of the matrix scaled to a unit diagonal.

    Raises `DataError` that names two keys where the matrix is singular to working precision.
    """
    if not len(matrix):
        return rows, 1.0
    scale = matrix.diagonal().rsqrt()
    scaled = matrix * scale[:, None] * scale
    lower, info = torch.linalg.cholesky_ex(scaled)
    diagonal = lower.diagonal()
    condition = float((diagonal.max() / diagonal.min()) ** 2)
    if int(info) or condition > LARGEST_CONDITION:
        raise _dependent(scaled, int(info) - 1 if int(info) else int(diagonal.argmin()), where)
    return scale[:, None] * torch.cholesky_solve(scale[:, None] * rows, lower), condition


def _dependent(scaled: Tensor, index: int, where: str) -> DataError:
    likeness = scaled[index].abs()
    likeness[index] = -1
    other = int(likeness.argmax())
    return DataError(
        "The keys of some facts depend on each other, so not every value can be inserted exactly.",
        expected="keys that are linearly independent",
        found=f"key {index} is a combination of the others, most like key {other} (cosine {likeness[other]:.6f})",
        where=where,
        remedy="leave one of the two facts out, or allow a ridge above 0",
    )
