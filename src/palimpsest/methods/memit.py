"""MEMIT, EMMET and PMET: many facts at once, in one or several layers.

With the facts' keys as columns of K and what their values are to change by as columns of R, at every layer

    Delta = R K^T (strength C + K K^T)^-1                    MEMIT, eq. 14 (arXiv:2210.07229)
    Delta = R (K^T C^-1 K)^-1 K^T C^-1                       EMMET (arXiv:2403.14236): the same with a strength of 0
    R     = (Z - H) / n, or / sqrt(n)                        MEMIT, eq. 20; PMET (arXiv:2308.08742)

where Z are the target vectors at the last layer, H what is there now and n how many layers are left. PMET searches a
vector for the attention beside the MLP's and drops it, so that the MLP's is more precise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from pydantic import Field
from torch import Tensor

from palimpsest.methods.base import MethodConfig
from palimpsest.methods.problem import Problem
from palimpsest.methods.spread_and_solve import Solver, SpreadAndSolve, SpreadConfig
from palimpsest.solve import RELATIVE_STRENGTH, Factorised, Solution, equality_constrained, ridge


class MemitConfig(SpreadConfig):
    """Options of `memit`, `emmet` and `pmet`."""

    strength: float | None = Field(default=None, ge=0)
    """Weight of the text's second moment against one key: MEMIT's lambda, EMMET's ridge times its weight of C. Left
    out, a tenth of a key's number of dimensions, which is how much a typical key weighs in that metric. 0 gives every
    fact its value exactly, with the least change of all else."""
    exact_for_one: bool = False
    """Whether a single fact gets its value exactly, whatever the strength (EMMET's code)."""


@dataclass(frozen=True)
class LeastSquares(Solver):
    """MEMIT's normal equations; with a strength of 0, EMMET's.

    Arguments:
        factors: by layer, the text's second moment, factorised.
        strength: see `MemitConfig`.
    """

    factors: Mapping[int, Factorised]
    strength: float | None

    @property
    def is_exact(self) -> bool:
        return self.strength == 0

    def __call__(self, layer: int, keys: Tensor, residuals: Tensor, weights: Tensor) -> Solution:
        factor = self.factors[layer]
        if self.is_exact:
            return equality_constrained(factor, keys, residuals)
        strength = RELATIVE_STRENGTH * factor.width if self.strength is None else self.strength
        return ridge(factor, keys, residuals, strength=strength, weights=weights)


@final
class Memit(SpreadAndSolve[MemitConfig]):
    """Least squares at every layer; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = MemitConfig

    def solver(self, problem: Problem[MemitConfig]) -> LeastSquares:
        is_alone = problem.config.exact_for_one and len(problem.requests) == 1
        return LeastSquares(problem.metrics, 0.0 if is_alone else problem.config.strength)
