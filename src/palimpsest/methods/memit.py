"""MEMIT, EMMET and PMET: many facts at once, in one or several layers.

With the facts' keys as columns of K and what their values are to change by as columns of R, at every layer

    Delta = R K^T (strength C + K K^T)^-1                    MEMIT, eq. 14 (arXiv:2210.07229)
    Delta = R (K^T C^-1 K)^-1 K^T C^-1                       EMMET (arXiv:2403.14236): the same with a strength of 0
    R     = (Z - H) / n, or / sqrt(n)                        MEMIT, eq. 20; PMET (arXiv:2308.08742)

where Z are the target vectors at the last layer, H what is there now and n how many layers are left. PMET searches a
vector for the attention beside the MLP's and drops it, so that the MLP's is more precise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, final

from pydantic import Field
from torch import Tensor

from palimpsest.methods.base import MethodConfig, Run
from palimpsest.methods.locate_then_edit import Change, LocateThenEdit, LocateThenEditConfig, record_statistics
from palimpsest.models.editable import EditableModel
from palimpsest.optimise.spreading import SITE, Spreading, spread
from palimpsest.optimise.subject_vectors import Pooling, subject_rows
from palimpsest.requests import EditRequest
from palimpsest.solve.factorised import Factorised
from palimpsest.solve.least_squares import equality_constrained, ridge
from palimpsest.solve.solution import Solution

RELATIVE_STRENGTH = 0.1
"""Weight of old knowledge against a typical key of the text where no strength is given; measured on small models."""


class SpreadConfig(LocateThenEditConfig):
    """Options of the methods that edit many facts in several layers."""

    site: Literal["auto", "resid", "mlp.down"] = "auto"
    """Where the vectors are: `resid`, what the last layer's block hands on, as published for MEMIT; `mlp.down`, what
    its MLP writes; `auto` is the first, or the second where a norm follows the MLP."""
    companions: list[str] = []
    """Sites beside it that get a vector of their own in the search, which is then dropped: `attn.out` for PMET."""
    pooling: Pooling = "half-clean"
    """How the keys of a fact's contexts are put together: `mean`; `half-clean`, the mean with half of the weight on the
    prompt alone; or `columns`, each as a key of its own."""
    share: Literal["equal", "square-root"] = "equal"
    """What a layer takes of the missing: the n-th part with n layers left, or one by the square root of n (PMET)."""
    rounds: int = Field(default=1, ge=1)
    """How often all layers are gone through; each round writes what those before have left."""

    def spreading(self, model: EditableModel, layers: Sequence[int]) -> Spreading:
        """The same as the shared loop takes it."""
        best = "resid" if model.sites.architecture.mlp_writes_residual else SITE
        site = best if self.site == "auto" else self.site
        share = math.sqrt if self.share == "square-root" else float
        return Spreading(layers, site, self.pooling, share, self.rounds)


class MemitConfig(SpreadConfig):
    """Options of `memit`, `emmet` and `pmet`."""

    strength: float | None = Field(default=None, ge=0)
    """Weight of the text's second moment against one key: MEMIT's lambda, EMMET's ridge times its weight of C. Left
    out, a tenth of a key's number of dimensions, which is how much a typical key weighs in that metric. 0 gives every
    fact its value exactly, with the least change of all else."""
    exact_for_one: bool = False
    """Whether a single fact gets its value exactly, whatever the strength (EMMET's code)."""


@final
class Memit(LocateThenEdit[MemitConfig]):
    """Least squares at every layer; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = MemitConfig

    def prepare(self, model: EditableModel, layers: Sequence[int], config: MemitConfig, run: Run) -> None:
        factors = self.metrics(config).factors(model, layers, progress=run.progress)
        self._factors: dict[int, Factorised] = record_statistics(factors, run)

    def change(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        layers: Sequence[int],
        templates: Sequence[str],
        config: MemitConfig,
        run: Run,
    ) -> Change:
        is_exact = config.exact_for_one and len(requests) == 1

        def solve(layer: int, keys: Tensor, residuals: Tensor, weights: Tensor) -> Solution:
            factor = self._factors[layer]
            strength = RELATIVE_STRENGTH * factor.width if config.strength is None else config.strength
            if strength > 0 and not is_exact:
                return ridge(factor, keys, residuals, strength=strength, weights=weights)
            return equality_constrained(factor, keys, residuals)

        spreading = config.spreading(model, layers)
        wanted = self.targets(
            model, requests, layers[-1], spreading.site, templates, config, run, companions=config.companions
        )
        with run.clock.stage("solving"):
            rows = subject_rows(model, requests, templates)
            return spread(model, rows, wanted, spreading, solve, progress=run.progress)
