"""AlphaEdit (arXiv:2410.02355): changes that no key of the preserved text can see.

P projects onto the directions that hold next to nothing of the text's keys. With K_p the keys of all edits before,

    Delta = R K^T P ((K_p K_p^T + K K^T) P + strength I)^-1            (eq. 14)

so Delta P = Delta: along the text's main directions nothing moves, and earlier edits are asked to stay. What is
missing, R, is spread over the layers as in MEMIT. BetaEdit (arXiv:2605.09285) adds `leak` P C P to the products of
keys, for the null space holds a little of the text's keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.locating import SubjectRows, as_patch
from palimpsest.methods.base import MethodConfig, MethodState
from palimpsest.methods.edited_keys import EditedKeys, edited_keys
from palimpsest.methods.problem import Problem, Solutions
from palimpsest.methods.spread_and_solve import Solver, SpreadAndSolve, SpreadConfig
from palimpsest.solve import EarlierKeys, Solution, null_space_projected, whole
from palimpsest.statistics import (
    NULL_SPACE_ENERGY,
    NULL_SPACE_THRESHOLD,
    Projector,
    Spectrum,
    below_threshold,
    lowest_energy,
)


class AlphaEditConfig(SpreadConfig):
    """Options of `alphaedit`."""

    strength: float | None = Field(default=None, gt=0)
    """The ridge: AlphaEdit's L2. Left out, the squared length that the text's keys have in the null space on average,
    whatever their scale."""
    null_space: Literal["energy", "threshold"] = "energy"
    """How the null space is chosen: the lowest directions that hold a share of the keys' energy, whatever their scale;
    or those with an eigenvalue of E[k k^T] below a fixed number, as published."""
    leak: float = Field(default=0.0, ge=0)
    """Weight, against one key, of what the change writes for the text's keys inside the null space, which is not quite
    empty: BetaEdit's first lambda (arXiv:2605.09285)."""
    energy: float = Field(default=NULL_SPACE_ENERGY, ge=0, lt=1)
    """That share."""
    threshold: float = Field(default=NULL_SPACE_THRESHOLD, gt=0)
    """That number."""


@dataclass(frozen=True)
class NullSpace(Solver):
    """Least squares inside the null spaces.

    Arguments:
        projectors: onto the directions that may change, by layer.
        strengths: of the ridge, by layer.
        earlier: keys of the edits before, by layer.
        leaks: by layer, weight times P C P, (in, in), of the text's second moment C; empty without.
    """

    projectors: Mapping[int, Projector]
    strengths: Mapping[int, float]
    earlier: Mapping[int, EarlierKeys]
    leaks: Mapping[int, Tensor] = field(default_factory=dict)

    def __call__(self, layer: int, keys: Tensor, residuals: Tensor, weights: Tensor) -> Solution:
        basis, strength, previous = self.projectors[layer].basis, self.strengths[layer], self.earlier.get(layer)
        if layer in self.leaks:
            previous = (previous or EarlierKeys.none(keys.shape[1])).plus(self.leaks[layer])
        return null_space_projected(basis, keys, residuals, strength=strength, previous=previous, weights=weights)

    def carried(self, problem: Problem[SpreadConfig], rows: SubjectRows, solutions: Solutions) -> MethodState:
        """The keys of all edits, these included, as the edited model reads them."""
        with problem.model.patched(as_patch(problem.model, solutions)):
            found = edited_keys(problem.model, rows, solutions, problem.config.pooling)
        return EditedKeys(
            {
                layer: (self.earlier.get(layer) or EarlierKeys.none(keys.shape[1])).joined(
                    keys, self.projectors[layer].basis
                )
                for layer, keys in found.items()
            }
        )


def _inside(spectrum: Spectrum, null_dimension: int, weight: float) -> Tensor:
    """`weight` times P C P, (in, in), P the projector onto the lowest directions."""
    values = torch.where(spectrum.lowest(null_dimension), spectrum.values, 0.0)
    return weight * whole(spectrum.vectors * values[..., None, :] @ spectrum.vectors.mT, "leak")


@final
class AlphaEdit(SpreadAndSolve[AlphaEditConfig]):
    """Pass the state that an edit returns to the next one, and it keeps what was edited before."""

    Config: ClassVar[type[MethodConfig]] = AlphaEditConfig
    State: ClassVar[type[MethodState] | None] = EditedKeys
    reads: ClassVar[Literal["factors", "spectra"]] = "spectra"

    def solver(self, problem: Problem[AlphaEditConfig]) -> NullSpace:
        config = problem.config
        projectors: dict[int, Projector] = {
            layer: lowest_energy(spectrum, config.energy)
            if config.null_space == "energy"
            else below_threshold(spectrum, config.threshold)
            for layer, spectrum in problem.metrics.items()
        }
        problem.run.diagnostics.facts["null_dimensions"] = {str(at): p.null_dimension for at, p in projectors.items()}
        for layer, projector in projectors.items():
            if not projector.null_dimension:
                raise ConfigError(
                    "The null space in which AlphaEdit may change a layer is empty.",
                    expected="directions that hold next to nothing of the text's keys",
                    found=f"none with {config.null_space} {getattr(config, config.null_space):g}",
                    where=f"layer {layer}",
                    remedy=f"choose it by energy, or raise {config.null_space}",
                )
        lengths = {layer: p.energy * float(problem.metrics[layer].values.sum()) for layer, p in projectors.items()}
        strengths = {layer: config.strength or length for layer, length in lengths.items()}
        widths = {layer: projector.width for layer, projector in projectors.items()}
        earlier = EditedKeys.before(problem.run.state, widths, method=self.name)
        leaks = {
            layer: _inside(problem.metrics[layer], projector.null_dimension, config.leak)
            for layer, projector in projectors.items()
            if config.leak
        }
        return NullSpace(projectors, strengths, earlier, leaks)
