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

from palimpsest.locating import SubjectRows, as_patch
from palimpsest.methods.base import MethodConfig, MethodState
from palimpsest.methods.edited_keys import WrittenKeys, edited_keys
from palimpsest.methods.problem import Problem, Solutions
from palimpsest.methods.spread_and_solve import Solver, SpreadAndSolve, SpreadConfig
from palimpsest.solve import RELATIVE_STRENGTH, EarlierKeys, Factorised, Solution, equality_constrained, ridge


class MemitConfig(SpreadConfig):
    """Options of `memit`, `emmet` and `pmet`."""

    strength: float | None = Field(default=None, ge=0)
    """Weight of the text's second moment against one key: MEMIT's lambda, EMMET's ridge times its weight of C. Left
    out, a tenth of a key's number of dimensions, which is how much a typical key weighs in that metric. 0 gives every
    fact its value exactly, with the least change of all else."""
    exact_for_one: bool = False
    """Whether a single fact gets its value exactly, whatever the strength (EMMET's code)."""
    history: bool = False
    """Whether the keys of earlier edits, carried in the state, are asked to stay in every solve: C becomes C + H /
    strength, H the sum of their k k^T. A sequence of edits in one layer is then one edit of all facts
    (arXiv:2605.26670)."""


@dataclass(frozen=True)
class LeastSquares(Solver):
    """MEMIT's normal equations; with a strength of 0, EMMET's.

    Arguments:
        factors: by layer, the text's second moment, factorised.
        strength: see `MemitConfig`.
        earlier: keys of the edits before, by layer; None where none are kept.
    """

    factors: Mapping[int, Factorised]
    strength: float | None
    earlier: Mapping[int, EarlierKeys] | None = None

    @property
    def is_exact(self) -> bool:
        return self.strength == 0

    def __call__(self, layer: int, keys: Tensor, residuals: Tensor, weights: Tensor) -> Solution:
        factor = self.factors[layer]
        strength = self.strength or RELATIVE_STRENGTH * factor.width
        earlier = (self.earlier or {}).get(layer)
        if earlier is not None:
            factor = factor.plus(earlier.without(keys).sum() / strength)
        if self.is_exact:
            return equality_constrained(factor, keys, residuals)
        return ridge(factor, keys, residuals, strength=strength, weights=weights)

    def carried(self, problem: Problem[SpreadConfig], rows: SubjectRows, solutions: Solutions) -> MethodState | None:
        """The keys of all edits, these included, as the edited model reads them."""
        if self.earlier is None:
            return problem.run.state
        keys = {}
        with problem.model.patched(as_patch(problem.model, solutions)):
            read = edited_keys(problem.model, rows, solutions, problem.config.pooling)
        for layer, found in read.items():
            width = found.shape[1]
            before = self.earlier.get(layer) or EarlierKeys.none(width)
            keys[layer] = before.without(found).joined(found, found.new_zeros(width, 0))
        return WrittenKeys(keys)


@final
class Memit(SpreadAndSolve[MemitConfig]):
    """Least squares at every layer; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = MemitConfig
    State: ClassVar[type[MethodState] | None] = WrittenKeys

    @property
    def carries_state(self) -> bool:
        return bool(self.options.get("history"))

    def solver(self, problem: Problem[MemitConfig]) -> LeastSquares:
        is_alone = problem.config.exact_for_one and len(problem.requests) == 1
        earlier = None
        if problem.config.history:
            widths = {layer: factor.width for layer, factor in problem.metrics.items()}
            earlier = WrittenKeys.before(problem.run.state, widths, method=f"{self.name} with history")
        return LeastSquares(problem.metrics, 0.0 if is_alone else problem.config.strength, earlier)
