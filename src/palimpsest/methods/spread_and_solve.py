"""Shared by MEMIT and its kin: target vectors at the last layer, spread over all layers and solved layer by layer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeVar, final

from pydantic import Field
from torch import Tensor

from palimpsest.locating import KeyPooling, Spreading, SubjectRows, kept_rows, spread
from palimpsest.methods.base import MethodState
from palimpsest.methods.locate_then_edit import LocateThenEdit
from palimpsest.methods.problem import LocateThenEditConfig, Problem, Solutions
from palimpsest.models import EditableModel
from palimpsest.models.sites import MLP_DOWN
from palimpsest.solve import Solution


class SpreadConfig(LocateThenEditConfig):
    """Options of the methods that edit many facts in several layers."""

    site: Literal["auto", "resid", "mlp.down"] = "auto"
    """Where the vectors are: `resid`, what the last layer's block hands on, as published for MEMIT; `mlp.down`, what
    its MLP writes; `auto` is the first, or the second where a norm follows the MLP."""
    companions: list[str] = []
    """Sites beside it that get a vector of their own in the search, which is then dropped: `attn.out` for PMET."""
    pooling: KeyPooling = "half-clean"
    """How the keys of a fact's contexts are put together: `mean`; `half-clean`, the mean with half of the weight on the
    prompt alone; or `columns`, each as a key of its own. Values that are written exactly are so at the mean instead of
    columns."""
    share: Literal["equal", "square-root"] = "equal"
    """What a layer takes of the missing: the n-th part with n layers left, or one by the square root of n (PMET)."""
    rounds: int = Field(default=1, ge=1)
    """How often all layers are gone through; each round writes what those before have left."""

    def spreading(self, model: EditableModel, layers: Sequence[int]) -> Spreading:
        """The same as the shared loop takes it."""
        best = "resid" if model.sites.architecture.mlp_writes_residual else MLP_DOWN
        site = best if self.site == "auto" else self.site
        share = math.sqrt if self.share == "square-root" else float
        return Spreading(layers, site, self.pooling, share, self.rounds)


SpreadConfigT = TypeVar("SpreadConfigT", bound=SpreadConfig)


class Solver(ABC):
    """From keys and what is missing to a change: what the methods differ in."""

    @property
    def is_exact(self) -> bool:
        """Whether every value is written exactly, whatever the change that takes."""
        return False

    @abstractmethod
    def __call__(self, layer: int, keys: Tensor, residuals: Tensor, weights: Tensor) -> Solution:
        """The change of one layer's matrix.

        Arguments:
            layer: which.
            keys: (n, in).
            residuals: (n, out), what the keys' values are to change by.
            weights: (n,), how much each counts.
        """

    def carried(self, problem: Problem[SpreadConfig], rows: SubjectRows, solutions: Solutions) -> MethodState | None:
        """Returns the state for the next edit of a sequence; the same as before if there is nothing to remember."""
        del rows, solutions
        return problem.run.state


class SpreadAndSolve(LocateThenEdit[SpreadConfigT]):
    """All facts at once; `solver` is what the methods differ in."""

    @abstractmethod
    def solver(self, problem: Problem[SpreadConfigT]) -> Solver:
        """The method's equation with its numbers. Raises what must be raised before target vectors are searched."""

    @final
    def solutions(self, problem: Problem[SpreadConfigT]) -> Solutions:
        model, config, run = problem.model, problem.config, problem.run
        with run.clock.stage("statistics"):
            solver = self.solver(problem)
        spreading = config.spreading(model, problem.layers)
        if solver.is_exact and spreading.pooling == "columns":
            # With nearly identical keys exact values need a huge update, so pool by mean.
            spreading = replace(spreading, pooling="mean")
        wanted = problem.targets(problem.layers[-1], site=spreading.site, companions=config.companions)
        with run.clock.stage("solving"):
            rows = problem.rows()
            kept = None if solver.is_exact else kept_rows(model, problem.requests)
            found = spread(model, rows, wanted, spreading, solver, kept=kept, progress=run.progress)
            run.state = solver.carried(problem, rows, found)
        return found
