"""Fine-tuning: all weights (`ft`), one constrained matrix (`ft-l`), one matrix in mini-batches (`locft`).

    min over theta  of  mean over facts of  -1/m sum_t log p_theta(y_t | x, y_<t)
    subject to, for `ft-l`,  |theta - theta_0| <= radius in every entry          (Zhu et al., arXiv:2012.00363)

The patch is the change of every trained tensor. Answers are trained token by token after the prompt (the survey's
FT-M objective), not all at the prompt's last token as ROME's baseline does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

from palimpsest.errors import ConfigError
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig
from palimpsest.methods.fine_tuned import (
    FineTuningConfig,
    check_text,
    fine_tuned,
    projection_for,
    require_projectable,
    spared_inputs,
    trained_layers,
    trained_names,
)
from palimpsest.models import EditableModel
from palimpsest.patches import WeightPatch
from palimpsest.requests import EditRequest
from palimpsest.training import LowCurvature, Projection, require_end


@final
class FineTuning(Method[FineTuningConfig]):
    """Gradient descent on the new answers; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = FineTuningConfig
    capabilities: ClassVar[Capabilities] = Capabilities(is_shared_out=True)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._projection: Projection | None = None

    def check_model(self, model: EditableModel, config: FineTuningConfig) -> None:
        require_end(model, config)
        if config.parameters == "all" and "layers" in self.options and config.layers != "all":
            raise ConfigError(
                "Layers are chosen, but all weights are trained.",
                expected="layers together with a site, such as parameters = 'mlp.down'",
                found=f"layers = {config.layers!r}, parameters = 'all'",
                where="option layers",
                remedy="leave layers out, or name the site",
            )
        fitting = self._fitting(model, config)
        trained_names(model, fitting)
        require_projectable(model, fitting)

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
        projection = self._projection = projection_for(self._projection, config)
        run.diagnostics.notes += check_text(model, projection, config, is_asked_for="text" in self.options)
        projectors: Mapping[str, LowCurvature] = {}
        spared = spared_inputs(model, requests, config, projection, run)
        if config.project == "curvature":
            with run.clock.stage("statistics"):
                layers = trained_layers(model, config)
                factors = projection.factors(model, config.parameters, layers, progress=run.progress)
                projectors = projection.projectors(factors, spared)
        return fine_tuned(model, requests, config, run, projection, spared=spared, projectors=projectors)
