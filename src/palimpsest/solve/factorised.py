"""A second moment, factorised once: every later solve with it costs n in^2 instead of in^3."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.errors import DataError

LARGEST_CONDITION = 1e14
"""Above this the solution of a float64 system has hardly a right digit, so the matrix counts as singular."""


class Factorised:
    """The Cholesky factor L of C + damping * tr(C) / in * I, with L L^T that matrix.

    Arguments:
        moment: C, (in, in), symmetric positive semidefinite: E[k k^T].
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
        self.mean_eigenvalue = float(damped.diagonal().mean())
        damped.diagonal().add_(damping * self.mean_eigenvalue)
        self.lower, info = torch.linalg.cholesky_ex(damped)
        if int(info) or self.condition > LARGEST_CONDITION:
            raise self._singular(damped)

    @property
    def width(self) -> int:
        """Length of a key."""
        return int(self.lower.shape[0])

    @property
    def condition(self) -> float:
        """A lower bound of the condition number, from the factor's diagonal."""
        diagonal = self.lower.diagonal()
        return float((diagonal.max() / diagonal.min()) ** 2)

    def whiten(self, keys: Tensor) -> Tensor:
        """L^-1 k for every key, (n, in). Their inner products are k C^-1 k'."""
        white: Tensor = torch.linalg.solve_triangular(self.lower, self._rows(keys).T, upper=False)
        return white.T

    def solve(self, keys: Tensor) -> Tensor:
        """C^-1 k for every key, (n, in)."""
        solved: Tensor = torch.cholesky_solve(self._rows(keys).T, self.lower)
        return solved.T

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """L^-T w for every row, (n, in): of a whitened key this is C^-1 k."""
        solved: Tensor = torch.linalg.solve_triangular(self.lower.T, whitened.T, upper=True)
        return solved.T

    def spread(self, rows: Tensor) -> Tensor:
        """Rows (n, in) times L, (n, in): their squared lengths are r C r, what a change does to the text's keys."""
        spread: Tensor = self._rows(rows) @ self.lower
        return spread

    def plus(self, moment: Tensor) -> Factorised:
        """That of C and a further moment (in, in) together."""
        return Factorised(self.matrix() + moment.to(self.lower), where=self.where)

    def matrix(self) -> Tensor:
        """C with its ridge, (in, in)."""
        product: Tensor = self.lower @ self.lower.T
        return product

    def _rows(self, keys: Tensor) -> Tensor:
        return keys.to(self.lower.device, torch.float64)

    def _singular(self, damped: Tensor) -> DataError:
        values = torch.linalg.eigvalsh(damped)
        return DataError(
            "A second moment is singular, so it has no inverse.",
            expected="eigenvalues above 0 by more than rounding",
            found=f"a smallest eigenvalue of {float(values[0]):.1e}, where the mean is {self.mean_eigenvalue:.1e}",
            where=self.where,
            remedy="collect it over more tokens; or add a ridge, damping=1e-6 for example (neurons that never fire"
            " need one however many tokens there are)",
        )
