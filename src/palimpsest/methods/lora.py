"""LoRA as an editor: low-rank adapters trained on the new answers (Hu et al., arXiv:2106.09685).

    W' = W + alpha / r * B A,    A (r, in) random, B (out, r) zero at the start

The patch keeps the factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, final

from pydantic import Field

from palimpsest.errors import ConfigError
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig
from palimpsest.methods.fine_tuned import ProjectedConfig, inputs_to_spare, projection_for
from palimpsest.models import EditableModel, Point, layer_numbers
from palimpsest.patches import WeightPatch
from palimpsest.requests import EditRequest
from palimpsest.statistics import KEYS
from palimpsest.training import LoraAdapters, Projection, finetune, require_end


class LoraConfig(ProjectedConfig):
    """Options of `lora`."""

    project: Literal["none", "inputs"] = "none"
    """`inputs`: the change writes nothing for the strongest directions of what each matrix reads of a text (AlphaEdit's
    idea). K-FAC's directions of low curvature are not those of factors; see `crispedit`."""

    rank: int = Field(default=8, ge=1)
    """Inner width r of the factors."""
    alpha: float = Field(default=16.0, gt=0)
    """The update is alpha / rank times the product of the factors."""
    sites: list[str] | Literal["auto", "mlp"] = "auto"
    """Which projections get an adapter; a fused one gets it as a whole. `auto`: queries and values, all attentions'.
    `mlp`: the MLP's down-projection, or as `auto` in a mixture of experts."""
    layers: list[int] | Literal["all", "auto", "lower", "early"] = "all"
    """Layers of these sites; negative numbers count from the last. `auto` is one layer at 0.69 of the depth, `lower`
    one at 0.2 of it, `early` are those from 0.15 to 0.5 of it."""


@final
class Lora(Method[LoraConfig]):
    """Low-rank fine-tuning; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = LoraConfig
    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._projection: Projection | None = None

    def check_model(self, model: EditableModel, config: LoraConfig) -> None:
        require_end(model, config)
        _modules(model, config)
        if config.project != "none":
            for site, layers in _places(model, config).items():
                for layer in layers:
                    KEYS.width(model, Point(site, layer, "input"))
            Projection(config).check_source()

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: LoraConfig, run: EditRun
    ) -> WeightPatch:
        modules, places = _modules(model, config), _places(model, config)
        projection = self._projection = projection_for(self._projection, config)
        if config.project != "none":
            run.diagnostics.notes += projection.check(model, places, is_asked_for="text" in self.options)
        spared = inputs_to_spare(model, requests, config, projection, run, modules=modules, places=places)
        if config.project != "none":
            run.diagnostics.facts["statistics"] = dict(projection.facts)
            run.diagnostics.notes += dict.fromkeys(projection.notes)
        with (
            run.clock.stage("training"),
            LoraAdapters(model, modules, rank=config.rank, alpha=config.alpha, spared=spared) as adapters,
        ):
            result = finetune(model, requests, adapters, config, seed=config.seed, progress=run.progress)
            patch = WeightPatch(adapters.deltas())
        run.diagnostics.facts["sites"] = _sites(model, config)
        run.record_training(result, patch)
        return patch


def _modules(model: EditableModel, config: LoraConfig) -> list[str]:
    """The layers to adapt, each once. Raises `ConfigError` for no site or an unknown one."""
    if not config.sites:
        raise ConfigError("LoRA has nothing to adapt.", expected="at least one site", where="option sites")
    names = {
        model.sites.parameter_name(site, layer): None
        for site, layers in _places(model, config).items()
        for layer in layers
    }
    return [name.removesuffix(".weight") for name in names]


def _places(model: EditableModel, config: LoraConfig) -> dict[str, list[int]]:
    """The sites that are adapted, with their layers."""
    is_without_mlp = config.sites == "mlp" and model.sites.architecture.is_mixture
    layers = "all" if is_without_mlp else config.layers
    return {site: layer_numbers(layers, model.sites.layers_of(site)) for site in _sites(model, config)}


def _sites(model: EditableModel, config: LoraConfig) -> list[str]:
    if config.sites == "auto" or (config.sites == "mlp" and model.sites.architecture.is_mixture):
        return [site for site in model.sites.names() if site.endswith((".q", ".v"))]
    if config.sites == "mlp":
        return ["mlp.down"]
    return list(config.sites)
