"""MEMIT, EMMET and PMET: many facts at once, in one or several layers.

With the facts' keys as columns of K and what their values are to change by as columns of R, at every layer

    Delta = R K^T (strength C + K K^T)^-1                    MEMIT, eq. 14 (arXiv:2210.07229)
    Delta = R (K^T C^-1 K)^-1 K^T C^-1                       EMMET (arXiv:2403.14236): the same with a strength of 0
    R     = (Z - H) / n, or / sqrt(n)                        MEMIT, eq. 20; PMET (arXiv:2308.08742)

where Z are the target vectors at the last layer, H what is there now and n how many layers are left. PMET searches a
vector for the attention beside the MLP's and drops it, so that the MLP's is more precise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

from pydantic import Field
from torch import Tensor

from palimpsest.locating.first_token import kept_rows
from palimpsest.locating.spreading import spread
from palimpsest.locating.subject_vectors import subject_rows
from palimpsest.methods.base import EditRun, MethodConfig
from palimpsest.methods.locate_then_edit import (
    LocateThenEdit,
    Solutions,
    SpreadConfig,
)
from palimpsest.models.editable import EditableModel
from palimpsest.requests import EditRequest
from palimpsest.solve.least_squares import equality_constrained, ridge
from palimpsest.solve.solution import RELATIVE_STRENGTH, Solution


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

    def change(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        layers: Sequence[int],
        templates: Sequence[str],
        config: MemitConfig,
        run: EditRun,
    ) -> Solutions:
        is_exact = config.strength == 0 or (config.exact_for_one and len(requests) == 1)

        def solve(layer: int, keys: Tensor, residuals: Tensor, weights: Tensor) -> Solution:
            factor = self.factors[layer]
            if is_exact:
                return equality_constrained(factor, keys, residuals)
            strength = RELATIVE_STRENGTH * factor.width if config.strength is None else config.strength
            return ridge(factor, keys, residuals, strength=strength, weights=weights)

        spreading = config.spreading(model, layers)
        if is_exact and spreading.pooling == "columns":
            # A fact's contexts may give nearly one key, and exact values at all of them be had at a huge change alone.
            spreading = replace(spreading, pooling="mean")
        wanted = self.targets(
            model, requests, layers[-1], spreading.site, templates, config, run, companions=config.companions
        )
        with run.clock.stage("solving"):
            rows = subject_rows(model, requests, templates)
            kept = None if is_exact else kept_rows(model, requests)
            return spread(model, rows, wanted, spreading, solve, kept=kept, progress=run.progress)
