"""Fine-tuning: all weights (`ft`), one constrained matrix (`ft-l`), one matrix in mini-batches (`locft`).

    min over theta  of  mean over facts of  -1/m sum_t log p_theta(y_t | x, y_<t)
    subject to, for `ft-l`,  |theta - theta_0| <= radius in every entry          (Zhu et al., arXiv:2012.00363)

The patch is the change of every trained tensor. Answers are trained token by token after the prompt (the survey's
FT-M objective), not all at the prompt's last token as ROME's baseline does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

from pydantic import Field, model_validator

from palimpsest.errors import ConfigError
from palimpsest.methods.base import Capabilities, Method, MethodConfig, Run
from palimpsest.models.editable import EditableModel
from palimpsest.optimise.copies import training_copies
from palimpsest.optimise.finetune import FinetuneOptions, finetune
from palimpsest.optimise.selection import layer_numbers
from palimpsest.patches.base import Manifest
from palimpsest.patches.weights import WeightPatch
from palimpsest.requests import EditRequest


class FineTuningConfig(FinetuneOptions, MethodConfig):
    """Options of `ft`, `ft-l` and `locft`."""

    parameters: str = "all"
    """`all`, or a site such as `mlp.down` (or `encoder.mlp.down`) whose weights alone are trained."""
    layers: list[int] | Literal["all", "auto"] = "all"
    """Layers of that site; negative numbers count from the last. `auto` is one layer at 0.69 of the depth."""
    constraint: Literal["none", "linf", "l2"] = "none"
    """Ball around the start in which each trained tensor is kept."""
    radius: float | None = Field(default=None, ge=0)
    """Radius of the constraint: largest change of an entry (linf) or Frobenius norm of the change (l2)."""

    @model_validator(mode="after")
    def _layers_need_a_site(self) -> FineTuningConfig:
        if self.parameters == "all" and self.layers != "all":
            raise ValueError("layers can only be chosen together with a site, such as parameters = 'mlp.down'")
        return self


@final
class FineTuning(Method[FineTuningConfig]):
    """Gradient descent on the new answers; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = FineTuningConfig
    capabilities: ClassVar[Capabilities] = Capabilities(is_shared_out=True)

    def check_model(self, model: EditableModel, config: FineTuningConfig) -> None:
        _names(model, config)
        if config.constraint != "none" and config.radius is None:
            raise ConfigError(
                f"The method {self.name!r} has no radius for this model.",
                expected="how far an entry may move; ROME's go from 5e-5 (six billion weights) to 2e-3 (350 million)",
                found="no preset that fits the model, and no option",
                where="option radius",
                remedy="give one (--option radius=1e-3), or take a constraint of 'none'",
            )

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: FineTuningConfig, run: Run
    ) -> WeightPatch:
        names = _names(model, config)
        if config.parameters != "all":
            run.diagnostics.facts["layers"] = _layers(model, config)
        with (
            run.clock.stage("training"),
            training_copies(model, names, constraint=config.constraint, radius=config.radius or 0.0) as copies,
        ):
            result = finetune(model, requests, copies, config, seed=config.seed, progress=run.progress)
            patch = WeightPatch(copies.deltas(), Manifest(label=self.name))
        run.record_training(result, patch)
        return patch


def _names(model: EditableModel, config: FineTuningConfig) -> list[str]:
    """The parameters to train. Raises `ModelError` for those that cannot be."""
    if config.parameters == "all":
        model.weights.require_plain()
        return model.weights.names()
    return [model.sites.require_weight(config.parameters, layer) for layer in _layers(model, config)]


def _layers(model: EditableModel, config: FineTuningConfig) -> list[int]:
    return layer_numbers(config.layers, model.sites.layers_of(config.parameters))
