"""AlphaEdit (arXiv:2410.02355): changes that no key of the preserved text can see.

P projects onto the directions that hold next to nothing of the text's keys. With K_p the keys of all edits before,

    Delta = R K^T P ((K_p K_p^T + K K^T) P + strength I)^-1            (eq. 14)

so Delta P = Delta: along the text's main directions nothing moves, and earlier edits are asked to stay. What is
missing, R, is spread over the layers as in MEMIT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from pydantic import Field
from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.files import shaped
from palimpsest.locating.first_token import kept_rows
from palimpsest.locating.spreading import SITE, as_patch, spread
from palimpsest.locating.subject_vectors import key_columns, subject_rows, subject_vectors
from palimpsest.methods.base import EditRun, MethodConfig, MethodState
from palimpsest.methods.locate_then_edit import (
    LocateThenEdit,
    Solutions,
    SpreadConfig,
    record_statistics,
)
from palimpsest.models.editable import EditableModel
from palimpsest.models.hooks import Point
from palimpsest.requests import EditRequest
from palimpsest.solve.null_space import EarlierKeys, null_space_projected
from palimpsest.solve.solution import RELATIVE_STRENGTH, Solution
from palimpsest.statistics.subspaces import ENERGY, THRESHOLD, Projector, Spectrum, below_threshold, lowest_energy


class AlphaEditConfig(SpreadConfig):
    """Options of `alphaedit`."""

    strength: float | None = Field(default=None, gt=0)
    """The ridge: AlphaEdit's L2. Left out, a tenth of the squared length that the text's keys have in the null space on
    average, whatever their scale."""
    null_space: Literal["energy", "threshold"] = "energy"
    """How the null space is chosen: the lowest directions that hold a share of the keys' energy, whatever their scale;
    or those with an eigenvalue of E[k k^T] below a fixed number, as published."""
    energy: float = Field(default=ENERGY, ge=0, lt=1)
    """That share."""
    threshold: float = Field(default=THRESHOLD, gt=0)
    """That number."""


@dataclass(frozen=True)
class EditedKeys(MethodState):
    """Keys of all edits so far, by layer: root-weighted, read from the edited model, and projected."""

    keys: dict[int, EarlierKeys]

    def tensors(self) -> dict[str, Tensor]:
        """See `MethodState.tensors`."""
        rows = {f"{layer}.rows": earlier.rows for layer, earlier in self.keys.items()}
        moments = {f"{layer}.moment": one.moment for layer, one in self.keys.items() if one.moment is not None}
        return rows | moments

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> EditedKeys:
        """See `MethodState.from_tensors`."""
        keys = {}
        for name, rows in tensors.items():
            at, _, what = name.partition(".")
            if what not in ("rows", "moment"):
                raise ValueError(f"tensor {name}, which no state of alphaedit has")
            if what == "rows":
                width = int(shaped(rows, None, None, name=name).shape[1])
                moment = tensors.get(f"{at}.moment")
                moment = None if moment is None else shaped(moment, width, width, name=f"{at}.moment").double()
                keys[int(at)] = EarlierKeys(rows.double(), moment)
        return cls(keys)


@final
class AlphaEdit(LocateThenEdit[AlphaEditConfig]):
    """Pass the state that an edit returns to the next one, and it keeps what was edited before."""

    Config: ClassVar[type[MethodConfig]] = AlphaEditConfig
    State: ClassVar[type[MethodState] | None] = EditedKeys

    def prepare(self, model: EditableModel, layers: Sequence[int], config: AlphaEditConfig, run: EditRun) -> None:
        spectra = record_statistics(self.metrics(config).spectra(model, layers, progress=run.progress), run)
        self._spectra: dict[int, Spectrum] = spectra
        self._projectors: dict[int, Projector] = {
            layer: lowest_energy(spectrum, config.energy)
            if config.null_space == "energy"
            else below_threshold(spectrum, config.threshold)
            for layer, spectrum in spectra.items()
        }
        self._lengths = {layer: p.energy * float(spectra[layer].values.sum()) for layer, p in self._projectors.items()}
        run.diagnostics.facts["null_dimensions"] = {str(at): p.null_dimension for at, p in self._projectors.items()}
        for layer, projector in self._projectors.items():
            if not projector.null_dimension:
                raise ConfigError(
                    "Nothing is left of the space in which AlphaEdit may change a layer.",
                    expected="directions that hold next to nothing of the text's keys",
                    found=f"none with {config.null_space} {getattr(config, config.null_space):g}",
                    where=f"layer {layer}",
                    remedy=f"choose it by energy, or raise {config.null_space}",
                )

    def prepared(self) -> dict[int, Spectrum]:
        return self._spectra

    def change(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        layers: Sequence[int],
        templates: Sequence[str],
        config: AlphaEditConfig,
        run: EditRun,
    ) -> Solutions:
        before = earlier_keys(run.state, {layer: len(self._projectors[layer].basis) for layer in layers})

        def solve(layer: int, keys: Tensor, residuals: Tensor, weights: Tensor) -> Solution:
            strength = config.strength or RELATIVE_STRENGTH * self._lengths[layer]
            basis, previous = self._projectors[layer].basis, before.get(layer)
            return null_space_projected(basis, keys, residuals, strength=strength, previous=previous, weights=weights)

        spreading = config.spreading(model, layers)
        wanted = self.targets(
            model, requests, layers[-1], spreading.site, templates, config, run, companions=config.companions
        )
        with run.clock.stage("solving"):
            rows = subject_rows(model, requests, templates)
            kept = kept_rows(model, requests)
            change = spread(model, rows, wanted, spreading, solve, kept=kept, progress=run.progress)
            points = {layer: Point(SITE, layer, "input") for layer in layers}
            with model.patched(as_patch(model, change)):
                found = subject_vectors(model, rows, list(points.values()))
        run.state = EditedKeys(
            {
                layer: (before.get(layer) or EarlierKeys.none(found[point].shape[-1])).joined(
                    root_weighted(found[point], config.pooling), self._projectors[layer].basis
                )
                for layer, point in points.items()
            }
        )
        return change


def earlier_keys(state: MethodState | None, widths: Mapping[int, int]) -> dict[int, EarlierKeys]:
    """The keys of the edits before, none at first. Raises `ConfigError` for the state of other layers or methods.

    Arguments:
        state: what the last edit returned.
        widths: layer to the length of its keys.
    """
    if state is None:
        return {}
    own = {at: one.rows.shape[1] for at, one in state.keys.items()} if isinstance(state, EditedKeys) else {}
    if not isinstance(state, EditedKeys) or own != widths:
        lengths = sorted(set(widths.values()))
        raise ConfigError(
            "This state is not of this method at these layers.",
            expected=f"the state that alphaedit returned for layers {sorted(widths)}, keys of length {lengths}",
            found=f"layers {sorted(own)}, keys of length {sorted(set(own.values()))}" if own else type(state).__name__,
            remedy="give the layers as an option, so that all edits of a sequence change the same ones",
        )
    return state.keys


def root_weighted(vectors: Tensor, pooling: str) -> Tensor:
    """Keys times the square root of their weights, so that their products add up to the weighted sum of k k^T."""
    keys, weights = key_columns(vectors, pooling)  # type: ignore[arg-type]
    return keys * weights.sqrt()[:, None]
