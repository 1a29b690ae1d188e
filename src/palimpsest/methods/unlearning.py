"""Forgetting by a loss of its own: an alternative to a first learner of F-Learning whose change is subtracted.

The change already leads away from the answers, so F-Learning adds it; a change towards them it subtracts. The losses
are in `training/unlearning.py`. What is to stay is held by their divergence from the model as it was where the edit's
own prompt is asked about other subjects (`keep_weight`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

from pydantic import Field

from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig
from palimpsest.models import EditableModel, layer_number, layer_numbers
from palimpsest.patches import Manifest, WeightPatch
from palimpsest.requests import EditRequest
from palimpsest.training import (
    NOTHING_SPARED,
    FinetuneOptions,
    Forgetting,
    LoraAdapters,
    finetune,
    spared_directions,
    training_copies,
    unlearning_of,
)


class UnlearnConfig(FinetuneOptions, MethodConfig):
    """Options of `grad-diff`, `npo`, `simnpo`, `undial` and `rmu`, the learners that forget."""

    loss: Forgetting = "npo"
    """What is minimised; see `training/unlearning.py`."""
    sharpness: float = Field(default=0.1, gt=0)
    """b of `npo`, `simnpo` and `undial`."""
    margin: float = Field(default=0.0, ge=0)
    """d of `simnpo`, in nats per token."""
    scale: float = Field(default=2.0, gt=0)
    """c of `rmu`, as a multiple of the mean length of what its layer hands on."""
    steer: int | Literal["auto"] = "auto"
    """The layer whose output `rmu` steers; negative numbers count from the last. `auto`: the last that is trained, or
    the middle one where all weights are."""
    ceiling: float = Field(default=3.0, gt=0)
    """A fact is done once the negative log-likelihood per token of its answer exceeds this."""
    parameters: str = "mlp.down"
    """`all`, or a site such as `mlp.down` whose weights alone are trained."""
    layers: list[int] | Literal["all", "auto", "lower", "early"] = "early"
    """Layers of that site; see `ft`."""
    adapter_rank: int = Field(default=0, ge=0)
    """Rank of adapters that are trained instead of the site's weights; 0 for none."""


@final
class Unlearn(Method[UnlearnConfig]):
    """Descent on a loss that is small once the answers are gone. A request's new answer is what is forgotten."""

    Config: ClassVar[type[MethodConfig]] = UnlearnConfig
    capabilities: ClassVar[Capabilities] = Capabilities(is_shared_out=True, leads_away=True)

    def check_model(self, model: EditableModel, config: UnlearnConfig) -> None:
        _names(model, config)
        _steered(model, config)

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: UnlearnConfig, run: EditRun
    ) -> WeightPatch:
        names = _names(model, config)
        modules = [name.removesuffix(".weight") for name in names]
        spared = NOTHING_SPARED
        if config.spare and config.parameters != "all":
            with run.clock.stage("sparing"):
                spared = spared_directions(model, requests, modules, seed=config.seed, alike=config.spare_alike)
        with run.clock.stage("references"):
            objective = unlearning_of(
                model,
                [model.encode(request.prompt, request.target_new) for request in requests],
                config.loss,
                sharpness=config.sharpness,
                margin=config.margin,
                ceiling=config.ceiling,
                scale=config.scale,
                layer=_steered(model, config),
                seed=config.seed,
                forward_batch_size=config.forward_batch_size,
            )
        adapted = config.adapter_rank > 0 and config.parameters != "all"
        trained = (
            LoraAdapters(model, modules, rank=config.adapter_rank, alpha=2.0 * config.adapter_rank, spared=spared)
            if adapted
            else training_copies(model, names, spared=spared)
        )
        with run.clock.stage("training"), trained as trainable:
            result = finetune(
                model, requests, trainable, config, seed=config.seed, objective=objective, progress=run.progress
            )
            patch = WeightPatch(trainable.deltas(), Manifest(label=self.name))
        run.record_training(result, patch)
        return patch


def _names(model: EditableModel, config: UnlearnConfig) -> list[str]:
    """The parameters to train. Raises `ModelError` for those that cannot be."""
    if config.parameters == "all":
        model.weights.require_plain()
        return model.weights.names()
    layers = layer_numbers(config.layers, model.sites.layers_of(config.parameters))
    return [model.sites.require_weight(config.parameters, layer) for layer in layers]


def _steered(model: EditableModel, config: UnlearnConfig) -> int:
    """The layer whose output `rmu` steers, in the decoder."""
    if config.steer != "auto":
        return layer_number(config.steer, model.num_layers)
    if config.parameters == "all" or model.sites.locate(config.parameters)[0] != "decoder":
        return model.num_layers // 2
    return layer_numbers(config.layers, model.num_layers)[-1]
