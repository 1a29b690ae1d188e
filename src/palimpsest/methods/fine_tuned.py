"""Shared by methods that fine-tune matrices: options, trained parameters, directions, and the patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from palimpsest import processes
from palimpsest.errors import ConfigError, ModelError
from palimpsest.methods.base import EditRun, MethodConfig
from palimpsest.methods.compressing import compressed
from palimpsest.models import EditableModel, Point, layer_numbers
from palimpsest.models.sites import layer_of
from palimpsest.patches import Delta, WeightPatch
from palimpsest.requests import EditRequest
from palimpsest.statistics import KEYS
from palimpsest.training import (
    GRADIENTS,
    NOTHING_SPARED,
    Ball,
    FinetuneOptions,
    LowCurvature,
    LowCurvatureSteps,
    Projection,
    ProjectionOptions,
    Trainable,
    TrainingCopies,
    finetune,
    spared_directions,
    training_copies,
    united,
)


class ProjectedConfig(FinetuneOptions, ProjectionOptions, MethodConfig):
    """Options of whatever is fine-tuned, in some directions or in all."""


class FineTuningConfig(ProjectedConfig):
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
    """If there is no `radius`: the same in multiples of the root mean square of the matrix's entries (linf) or of
    its Frobenius norm (l2)."""


def projection_for(before: Projection | None, config: ProjectedConfig) -> Projection:
    """The one that was made for an edit before, where it is of the same text and options."""
    return before if before is not None and before.fits(config) else Projection(config)


def check_text(
    model: EditableModel, projection: Projection, config: FineTuningConfig, *, is_asked_for: bool
) -> list[str]:
    """Reads what is missing of the projection's text; see `KeyMetrics.check`."""
    if config.project == "none":
        return []
    return projection.check(model, {config.parameters: trained_layers(model, config)}, is_asked_for=is_asked_for)


def spared_inputs(
    model: EditableModel,
    requests: Sequence[EditRequest],
    config: FineTuningConfig,
    projection: Projection,
    run: EditRun,
) -> Mapping[str, Tensor]:
    """See `inputs_to_spare`; nothing where all weights are trained."""
    if config.parameters == "all":
        return NOTHING_SPARED
    modules = [layer_of(name) for name in trained_names(model, config)]
    places = {config.parameters: trained_layers(model, config)}
    return inputs_to_spare(model, requests, config, projection, run, modules=modules, places=places)


def inputs_to_spare(
    model: EditableModel,
    requests: Sequence[EditRequest],
    config: ProjectedConfig,
    projection: Projection,
    run: EditRun,
    *,
    modules: Sequence[str],
    places: Mapping[str, Sequence[int]],
) -> Mapping[str, Tensor]:
    """Module name to inputs for which nothing may be written, by `spare` and by `project = "inputs"`.

    Arguments:
        modules: what is trained.
        places: the same, by site the layers.
    """
    spared = NOTHING_SPARED
    if config.spare:
        with run.clock.stage("sparing"):
            spared = spared_directions(model, requests, modules, seed=config.seed, alike=config.spare_alike)
    if config.project == "inputs":
        with run.clock.stage("statistics"):
            spared = united(projection.bases(model, places, progress=run.progress), spared)
    return spared


def fine_tuned(
    model: EditableModel,
    requests: Sequence[EditRequest],
    config: FineTuningConfig,
    run: EditRun,
    projection: Projection,
    *,
    spared: Mapping[str, Tensor],
    projectors: Mapping[str, LowCurvature],
) -> WeightPatch:
    """The patch of a training run with these options.

    Arguments:
        projection: for what it has to say of the text.
        spared: module name to inputs for which nothing may be written.
        projectors: weight to the directions that it may move in; empty for all.
    """
    names = trained_names(model, config)
    facts = run.diagnostics.facts
    if config.parameters != "all":
        facts["layers"] = trained_layers(model, config)
    if config.project != "none":
        facts["statistics"] = dict(projection.facts)
        run.diagnostics.notes += dict.fromkeys(projection.notes)
    with (
        run.clock.stage("training"),
        training_copies(model, names, ball=_ball(config), spared={} if projectors else spared) as copies,
    ):
        trainable: Trainable = copies
        if projectors and isinstance(copies, TrainingCopies):
            trainable = LowCurvatureSteps(copies, projectors, adam_in=config.adam_in)
        result = finetune(model, requests, trainable, config, seed=config.seed, progress=run.progress)
        deltas: Mapping[str, Delta] = copies.deltas()
        if isinstance(trainable, LowCurvatureSteps):
            facts["curvature"] = trainable.facts()
    if config.rank and config.parameters != "all" and processes.count() == 1:
        with run.clock.stage("compressing"):
            deltas, rank = compressed(model, requests, deltas, config.rank)
        facts["rank"] = rank
    patch = WeightPatch(deltas)
    run.record_training(result, patch)
    return patch


def require_projectable(model: EditableModel, config: FineTuningConfig) -> None:
    """Raises `ConfigError` where `project` cannot be had."""
    if config.project == "none":
        return
    if config.parameters == "all":
        raise ConfigError(
            "Only linear layers have directions to project on.",
            expected="a site, such as parameters = 'mlp.down'",
            found=f"parameters = 'all', project = {config.project!r}",
            where="option project",
            remedy="name the site, or leave project out",
        )
    if config.project == "curvature" and processes.count() > 1:
        raise ConfigError(
            "Directions of low curvature are trained in one process.",
            expected="one process, or project = 'inputs'",
            found=f"{processes.count()} processes",
            where="option project",
        )
    for layer in trained_layers(model, config):
        if model.sites.holds_experts(config.parameters, layer):
            raise ModelError(
                "There are no directions to project on in a mixture of experts.",
                expected="a site that is one matrix, such as attn.out",
                found=f"project = {config.project!r} at {config.parameters} of layer {layer}, which holds experts",
                where="option project",
                remedy="set project = 'none', as ft-l and locft have it, or name a site of the attention",
            )
        KEYS.width(model, Point(config.parameters, layer, "input"))
        if config.project == "curvature":
            GRADIENTS.width(model, Point(config.parameters, layer))
    Projection(config).check_source()


def _ball(config: FineTuningConfig) -> Ball:
    is_relative = config.radius is None
    radius = config.relative_radius if config.radius is None else config.radius
    # A projection that is asked for is kept exactly; what is spared by default is not worth a smaller change.
    return Ball(config.constraint, radius, is_relative=is_relative, gives_way=config.project != "none")


def trained_names(model: EditableModel, config: FineTuningConfig) -> list[str]:
    """The parameters to train. Raises `ModelError` for those that cannot be."""
    if config.parameters == "all":
        model.weights.require_plain()
        return model.weights.names()
    return [
        model.sites.require_weight(config.parameters, layer, takes_experts=True)
        for layer in trained_layers(model, config)
    ]


def trained_layers(model: EditableModel, config: FineTuningConfig) -> list[int]:
    """The layers of the site that is trained."""
    return layer_numbers(config.layers, model.sites.layers_of(config.parameters))
