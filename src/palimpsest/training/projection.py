"""The directions that a fine-tuned change may take, from a text's second moments: the option `project`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from palimpsest.config import Config
from palimpsest.errors import ConfigError
from palimpsest.models import EditableModel
from palimpsest.statistics import (
    OWN_WRITING,
    KeyMetrics,
    Prepared,
    Spectrum,
    StatisticsConfig,
    lowest_energy,
)
from palimpsest.stopwatch import Progress, silent
from palimpsest.training.curvature import LowCurvature, low_curvature
from palimpsest.training.gradient_moments import GRADIENTS

_SMALLEST = 1e-4


class ProjectionOptions(Config):
    """Which directions a change may take, for whatever is fine-tuned."""

    project: Literal["none", "inputs", "curvature"] = "none"
    """`inputs`: the change writes nothing for the strongest directions of what each matrix reads of a text (AlphaEdit's
    idea). `curvature`: it stays in the directions in which that text's loss curves least (CrispEdit)."""
    energy: float = Field(default=0.8, ge=0, le=1)
    """Share of the curvature, or of the inputs' energy, that is given up; 0 for none."""
    text: str = OWN_WRITING
    """That text: `own`, what the model itself writes; `wikipedia`, `wikitext`, `world`; a text file, a .jsonl, a
    .parquet, or a folder of them; owner/name of a data set on the hub."""
    statistics: StatisticsConfig = StatisticsConfig()
    """How the second moments of what the matrices read, and of the loss's gradients at what they write, are taken."""
    adam_in: Literal["eigenbasis", "weights"] = "eigenbasis"
    """Where the optimiser takes its steps under `curvature`: among the directions that are kept, which no step leaves;
    or in the weights with projected gradients, as published, where Adam's steps leave them."""


@dataclass(frozen=True, eq=False)
class CurvatureFactors:
    """K-FAC's factors of one matrix, and the tokens that they are means over.

    Arguments:
        inputs: the spectrum of A, (in, in).
        outputs: the spectrum of B, (out, out).
        tokens: of A and of B.
    """

    inputs: Spectrum
    outputs: Spectrum
    tokens: tuple[int, int]


class Projection:
    """The statistics for `project`, collected once and kept for further edits.

    Arguments:
        options: which directions.
    """

    def __init__(self, options: ProjectionOptions) -> None:
        self.options = options.model_copy()
        self._inputs = KeyMetrics(options.text, options.statistics)
        self._outputs = KeyMetrics(options.text, options.statistics, vectors=GRADIENTS)
        self.facts: dict[str, Any] = {}
        """What was found at the last call, by weight."""
        self.notes: list[str] = []
        """Each once, however many edits use what was collected."""

    def fits(self, options: ProjectionOptions) -> bool:
        """Whether these options ask for the same."""
        wanted = ("project", "energy", "text", "statistics")
        return all(getattr(self.options, name) == getattr(options, name) for name in wanted)

    def check(self, model: EditableModel, places: Mapping[str, Sequence[int]], *, is_asked_for: bool) -> list[str]:
        """Reads what is missing of the text, before anything is computed; notes as `KeyMetrics.check` gives them.

        Arguments:
            places: site to its layers.
        """
        notes: list[str] = []
        for site, layers in places.items():
            for metrics in self._metrics():
                notes += metrics.check(model, layers, site=site, is_asked_for=is_asked_for)
        return list(dict.fromkeys(notes))

    def check_source(self) -> None:
        """Opens the text. Raises `DataError` or `ConfigError` if there is none that can be had."""
        for metrics in self._metrics():
            _ = metrics.source

    def bases(
        self, model: EditableModel, places: Mapping[str, Sequence[int]], *, progress: Progress = silent
    ) -> dict[str, Tensor]:
        """Module name to (in, r), the strongest directions of what it reads. Raises `ConfigError` if that is all."""
        found = {}
        for site, layers in places.items():
            for layer, one in self._inputs.spectra(model, layers, site=site, progress=progress).items():
                name = model.sites.parameter_name(site, layer).removesuffix(".weight")
                projector = lowest_energy(one.value, 1 - self.options.energy)
                if not projector.null_dimension:
                    raise ConfigError(
                        "No direction is left to change the model in.",
                        expected="a share of the inputs' energy below 1",
                        found=f"{self.options.energy:g}",
                        where=f"option energy, {name}",
                        remedy="lower energy, for instance to 0.8",
                    )
                found[name] = projector.basis.float().to(model.device)
                self._record(name, one, directions=projector.null_dimension)
        return found

    def factors(
        self, model: EditableModel, site: str, layers: Sequence[int], *, progress: Progress = silent
    ) -> dict[str, CurvatureFactors]:
        """K-FAC's factors by the weight's name."""
        first, second = (metrics.spectra(model, layers, site=site, progress=progress) for metrics in self._metrics())
        found = {}
        for layer in layers:
            name = model.sites.parameter_name(site, layer)
            tokens = first[layer].facts["tokens"], second[layer].facts["tokens"]
            found[name] = CurvatureFactors(first[layer].value, second[layer].value, tokens)
            self._record(name, first[layer], gradients=second[layer].facts)
            self._note(second[layer].notes)
        return found

    def projectors(
        self, factors: Mapping[str, CurvatureFactors], spared: Mapping[str, Tensor]
    ) -> dict[str, LowCurvature]:
        """P by the weight's name.

        Arguments:
            spared: module name to inputs for which nothing may be written.
        """
        return {
            name: low_curvature(
                one.inputs, one.outputs, self.options.energy, spared=spared.get(name.removesuffix(".weight"))
            )
            for name, one in factors.items()
        }

    def _metrics(self) -> list[KeyMetrics]:
        return [self._inputs, self._outputs] if self.options.project == "curvature" else [self._inputs]

    def _record(self, name: str, one: Prepared[Any], **more: Any) -> None:
        self.facts[name] = {**one.facts, **more}
        self._note(one.notes)

    def _note(self, notes: Sequence[str]) -> None:
        self.notes = list(dict.fromkeys([*self.notes, *notes]))


def united(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Module name to an orthonormal basis of what two bases span together."""
    found = dict(first)
    for name, basis in second.items():
        before = found.get(name)
        if before is None:
            found[name] = basis
            continue
        before = before.to(basis)
        left, sizes, _ = torch.linalg.svd(basis - before @ (before.T @ basis), full_matrices=False)
        more = left[:, sizes > _SMALLEST]
        # Once more: what is left of a direction that was nearly in the first is mostly rounding.
        found[name] = torch.linalg.qr(torch.cat([before, more], dim=1))[0]
    return found
