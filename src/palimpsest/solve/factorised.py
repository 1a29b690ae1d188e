"""A second moment, factorised once: every later solve with it costs n in^2 instead of in^3."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.errors import DataError
from palimpsest.solve.blocks import apart, diagonal_blocks, together, width_of

LARGEST_CONDITION = 1e14
"""Above this the solution of a float64 system has hardly a right digit, so the matrix counts as singular."""


class Factorised:
    """The Cholesky factor L of C + damping * tr(C) / in * I, with L L^T that matrix.

    Of a C of which only the blocks on the diagonal are kept, L has the same blocks, and keys are as long as all of them
    together; see `solve.blocks`.

    Arguments:
        moment: C, (in, in), symmetric positive semidefinite: E[k k^T]; or its blocks, (blocks, width, width).
        where: what it is the second moment of, for messages: "site mlp.down, layer 5".
        damping: a ridge, as a share of C's mean eigenvalue.

    Raises `DataError` when C is not finite, or singular to working precision.
    """

    def __init__(self, moment: Tensor, *, where: str = "", damping: float = 0.0) -> None:
        if not torch.isfinite(moment).all():
            raise DataError(
                "A second moment is not finite.", expected="finite numbers", found="NaN or infinity", where=where,
                remedy="collect it again; for float16 weights load the model in float32 or bfloat16",
            )  # fmt: skip
        # A copy: the ridge must not reach the caller's matrix.
        damped = moment.to(torch.float64, copy=True)
        self.where = where
        self.mean_eigenvalue = float(_diagonal(damped).mean())
        _diagonal(damped).add_(damping * self.mean_eigenvalue)
        self.lower, info = torch.linalg.cholesky_ex(damped)
        if bool(info.any()) or self.condition > LARGEST_CONDITION:
            raise self._singular(damped)

    @property
    def width(self) -> int:
        """Length of a key."""
        return width_of(self.lower)

    @property
    def condition(self) -> float:
        """A lower bound of the condition number, from the factor's diagonal; of blocks the largest."""
        diagonal = _diagonal(self.lower)
        return float((diagonal.amax(-1) / diagonal.amin(-1)).max() ** 2)

    def whiten(self, keys: Tensor) -> Tensor:
        """L^-1 k for every key, (n, in). Their inner products are k C^-1 k'."""
        return together(torch.linalg.solve_triangular(self.lower, self._rows(keys).mT, upper=False).mT)

    def solve(self, keys: Tensor) -> Tensor:
        """C^-1 k for every key, (n, in)."""
        return together(torch.cholesky_solve(self._rows(keys).mT, self.lower).mT)

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """L^-T w for every row, (n, in): of a whitened key this is C^-1 k."""
        return together(torch.linalg.solve_triangular(self.lower.mT, self._rows(whitened).mT, upper=True).mT)

    def spread(self, rows: Tensor) -> Tensor:
        """Rows (n, in) times L, (n, in): their squared lengths are r C r, what a change does to the text's keys."""
        return together(self._rows(rows) @ self.lower)

    def drawn(self, rows: Tensor) -> Tensor:
        """Rows (n, in) times L^T, (n, in): of uncorrelated entries of unit size, vectors whose second moment is C."""
        return together(self._rows(rows) @ self.lower.mT)

    def plus(self, moment: Tensor) -> Factorised:
        """That of C and a further moment (in, in) together, of which blocks on the diagonal count where C has them."""
        return Factorised(self.matrix() + diagonal_blocks(moment.to(self.lower), self.lower), where=self.where)

    def matrix(self) -> Tensor:
        """C with its ridge, (in, in), or its blocks."""
        product: Tensor = self.lower @ self.lower.mT
        return product

    def _rows(self, keys: Tensor) -> Tensor:
        return apart(keys.to(self.lower.device, torch.float64), self.lower)

    def _singular(self, damped: Tensor) -> DataError:
        values = torch.linalg.eigvalsh(damped)
        return DataError(
            "A second moment is singular, so it has no inverse.",
            expected="eigenvalues above 0 by more than rounding",
            found=f"a smallest eigenvalue of {float(values.min()):.1e}, where the mean is {self.mean_eigenvalue:.1e}",
            where=self.where,
            remedy="collect it over more tokens; or add a ridge, damping=1e-6 for example (neurons that never fire"
            " need one however many tokens there are)",
        )


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)
