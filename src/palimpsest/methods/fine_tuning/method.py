"""Fine-tuning: all weights (`ft`), one constrained matrix (`ft-l`), one matrix in mini-batches (`locft`).

    min over theta  of  mean over facts of  -1/m sum_t log p_theta(y_t | x, y_<t)
    subject to, for `ft-l`,  |theta - theta_0| <= radius in every entry          (Zhu et al., arXiv:2012.00363)

The patch is the change of every trained tensor. Answers are trained token by token after the prompt (the survey's
FT-M objective), not all at the prompt's last token as ROME's baseline does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final

from pydantic import Field

from palimpsest import processes
from palimpsest.errors import ConfigError
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig
from palimpsest.methods.fine_tuning.compressing import compressed
from palimpsest.models import EditableModel, layer_numbers
from palimpsest.patches import Delta, WeightPatch
from palimpsest.requests import EditRequest
from palimpsest.training import NOTHING_SPARED, Ball, FinetuneOptions, finetune, spared_directions, training_copies


class FineTuningConfig(FinetuneOptions, MethodConfig):
    """Options of `ft`, `ft-l` and `locft`."""

    parameters: str = "all"
    """`all`, or a site such as `mlp.down` (or `encoder.mlp.down`) whose weights alone are trained."""
    layers: list[int] | Literal["all", "auto", "lower", "early"] = "all"
    """Layers of that site; negative numbers count from the last. `auto` is one layer at 0.69 of the depth, `lower` one
    at 0.2 of it, `early` are those from 0.15 to 0.5 of it. Without meaning where all weights are trained."""
    constraint: Literal["none", "linf", "l2"] = "none"
    """Ball around the start in which each trained tensor is kept."""
    radius: float | None = Field(default=None, ge=0)
    """Radius of the constraint: largest change of an entry (linf) or Frobenius norm of the change (l2). Left out,
    `relative_radius` says it in units of each matrix."""
    rank: int = Field(default=0, ge=0)
    """Rank of the change of a site's matrix that the patch keeps, doubled while an edit that held would not hold any
    more; 0 for the whole change."""
    relative_radius: float = Field(default=0.1, ge=0)
    """Where there is no `radius`: the same in multiples of the root mean square of the matrix's entries (linf) or of
    its Frobenius norm (l2)."""


@final
class FineTuning(Method[FineTuningConfig]):
    """Gradient descent on the new answers; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = FineTuningConfig
    capabilities: ClassVar[Capabilities] = Capabilities(is_shared_out=True)

    def check_model(self, model: EditableModel, config: FineTuningConfig) -> None:
        if config.parameters == "all" and "layers" in self.options and config.layers != "all":
            raise ConfigError(
                "Layers are chosen, but all weights are trained.",
                expected="layers together with a site, such as parameters = 'mlp.down'",
                found=f"layers = {config.layers!r}, parameters = 'all'",
                where="option layers",
                remedy="leave layers out, or name the site",
            )
        _names(model, self._fitting(model, config))

    def _fitting(self, model: EditableModel, config: FineTuningConfig) -> FineTuningConfig:
        """In a mixture of experts there is no one MLP: all weights, where no site was asked for."""
        is_open = config.layers == "early" and not {"parameters", "layers"} & set(self.options)
        if is_open and model.sites.architecture.is_mixture:
            return config.model_copy(update={"parameters": "all", "layers": "all"})
        return config

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: FineTuningConfig, run: EditRun
    ) -> WeightPatch:
        config = self._fitting(model, config)
        names = _names(model, config)
        if config.parameters != "all":
            run.diagnostics.facts["layers"] = _layers(model, config)
        spared = NOTHING_SPARED
        if config.spare and config.parameters != "all":
            modules = [name.removesuffix(".weight") for name in names]
            with run.clock.stage("sparing"):
                spared = spared_directions(model, requests, modules, seed=config.seed)
        with (
            run.clock.stage("training"),
            training_copies(model, names, ball=_ball(config), spared=spared) as copies,
        ):
            result = finetune(model, requests, copies, config, seed=config.seed, progress=run.progress)
            deltas: Mapping[str, Delta] = copies.deltas()
        if config.rank and config.parameters != "all" and processes.count() == 1:
            with run.clock.stage("compressing"):
                deltas, rank = compressed(model, requests, deltas, config.rank)
            run.diagnostics.facts["rank"] = rank
        patch = WeightPatch(deltas)
        run.record_training(result, patch)
        return patch


def _ball(config: FineTuningConfig) -> Ball:
    if config.radius is None:
        return Ball(config.constraint, config.relative_radius, is_relative=True)
    return Ball(config.constraint, config.radius)


def _names(model: EditableModel, config: FineTuningConfig) -> list[str]:
    """The parameters to train. Raises `ModelError` for those that cannot be."""
    if config.parameters == "all":
        model.weights.require_plain()
        return model.weights.names()
    return [model.sites.require_weight(config.parameters, layer) for layer in _layers(model, config)]


def _layers(model: EditableModel, config: FineTuningConfig) -> list[int]:
    return layer_numbers(config.layers, model.sites.layers_of(config.parameters))
