"""Subject neurons (ours): a fact's value stands beside one MLP, behind a gate that opens at its subject only.

ROME and its kin add a value v to what an MLP writes at the subject's last token by changing a matrix, which then
answers a little to every key: what many facts change adds up. Here the same v stands behind a gate. With x what the MLP
reads,

    MLP'(x) = MLP(x) + sum_facts clamp((w x + b - opens) / (full - opens), 0, 1) v

where w x + b is 1 at the subject, in front of which other texts may stand, and close to 0 elsewhere (`gates.py`). Two
neurons with `relu` make one gate, so that a patch is plain added neurons; where all gates are shut not a bit moves.

The value is the target vector of ROME and MEMIT, found by the same search. NeuralDB (arXiv:2507.18028) puts MEMIT's
values behind a gate too, one for all facts, by the likeness of keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor

from palimpsest.locating import (
    PROMPT_ALONE,
    apart_from_sink,
    context_templates,
    first_token_notes,
)
from palimpsest.locating.target_vector import find_target_vectors
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig, MethodState
from palimpsest.methods.memory import MemoryConfig
from palimpsest.methods.ordinary import OrdinaryText
from palimpsest.methods.subject_neurons.config import SubjectNeuronsConfig
from palimpsest.methods.subject_neurons.gates import GateOptions, fitted_gates
from palimpsest.methods.subject_neurons.quiet import (
    Readings,
    TextMetric,
    ordinary_readings,
    readings_at_subjects,
    readings_beside,
    readings_kept,
    rest_of_prompts,
)
from palimpsest.methods.subject_neurons.state import EditedSubjects
from palimpsest.models import EditableModel, layer_number
from palimpsest.patches import ModulePatch, Neurons, Patch
from palimpsest.provenance import digest
from palimpsest.requests import EditRequest, normalise
from palimpsest.statistics import Cache
from palimpsest.stopwatch import Progress, silent
from palimpsest.tracing import layers_by_depth

_TOKENS, _TOKENS_FOR_MANY, _MANY = 7_500, 16_000, 10


@final
class SubjectNeurons(Method[SubjectNeuronsConfig]):
    """See the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = SubjectNeuronsConfig
    State: ClassVar[type[MethodState] | None] = EditedSubjects
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs_subject=True, gives_weight_patch=False, edits_encoder_decoders=False
    )

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._text = OrdinaryText()
        self._metric: tuple[str, TextMetric] | None = None

    def check_model(self, model: EditableModel, config: SubjectNeuronsConfig) -> None:
        layers = range(model.num_layers) if config.layer == "auto" else [layer_number(config.layer, model.num_layers)]
        for layer in layers:
            for site in ("mlp.up", "mlp.down"):
                model.sites.parameter_name(site, layer)

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: SubjectNeuronsConfig, run: EditRun
    ) -> Patch:
        layer = self._layer(model, config, run)
        earlier = EditedSubjects.before(run.state, model)
        # First of all, for a text may not be there.
        with run.clock.stage("text"), torch.no_grad():
            together = len(earlier.texts) + len(requests)
            max_tokens = config.max_tokens or (_TOKENS_FOR_MANY if together >= _MANY else _TOKENS)
            metric = self._metric_of(model, layer, config, max_tokens, run)
        with run.clock.stage("contexts"), model.weights.without_changes():
            templates = context_templates(model, config.contexts, seed=config.seed)
            asked = requests
            requests, sink = apart_from_sink(model, asked, templates, layer)
        with run.clock.stage("targets"):
            searched = templates if config.search_in == "all-contexts" else templates[:1]
            found = find_target_vectors(
                model, requests, layer=layer, options=config.targets, templates=searched, progress=run.progress
            )
        run.diagnostics.losses |= found.losses
        run.diagnostics.notes += [*found.notes(), *first_token_notes(sink)]
        run.diagnostics.facts |= {"first_token": sink} if sink else {}
        with run.clock.stage("gates"), torch.no_grad():
            # What a layer reads is not changed by neurons beside it.
            edited = readings_at_subjects(model, layer, requests, templates)
            beside = readings_beside(model, layer, asked, others=config.others, alike=config.alike, seed=config.seed)
            others = beside.joined(readings_kept(model, layer, requests)).joined(earlier)
            rests = rest_of_prompts(model, layer, requests)
            keys, biases = gates(metric, requests, edited, rests, others, config.gate, run.progress)
        run.state = EditedSubjects(earlier.joined(edited))
        owners = [request.id.removesuffix(PROMPT_ALONE) for request in requests]
        values = _shares(requests).to(found.deltas) * found.deltas
        opened = [
            (edited.of_text(index) @ key + bias).tolist()
            for index, (key, bias) in enumerate(zip(keys, biases, strict=True))
        ]
        run.diagnostics.facts |= {"layer": layer, "neurons": 2 * len(owners), "opened": opened}
        two = _neurons(model, layer, keys, biases, values, owners, config.gate)
        return ModulePatch([replace(two, constant=metric.constant)])

    def _layer(self, model: EditableModel, config: SubjectNeuronsConfig, run: EditRun) -> int:
        if config.layer != "auto":
            return layer_number(config.layer, model.num_layers)
        (layer,), record = layers_by_depth(model, 1)
        run.diagnostics.facts["layers_chosen"] = record
        return layer

    def _metric_of(
        self, model: EditableModel, layer: int, config: SubjectNeuronsConfig, max_tokens: int, run: EditRun
    ) -> TextMetric:
        """That of what the unedited model reads of so much ordinary text, kept from edit to edit."""
        options = [layer, config.text, max_tokens, config.damping]
        key = digest([model.fingerprint(), model.tokenizer_digest, *options])
        if self._metric is None or self._metric[0] != key:
            rows = self._text.of(model, config.text, MemoryConfig(max_tokens=max_tokens), run.progress)
            with model.weights.without_changes():
                self._metric = (key, TextMetric.of(ordinary_readings(model, layer, rows, Cache()), config.damping))
        return self._metric[1]


def gates(
    metric: TextMetric,
    requests: Sequence[EditRequest],
    edited: Readings,
    rests: Readings,
    others: Readings,
    options: GateOptions,
    progress: Progress = silent,
) -> tuple[Tensor, Tensor]:
    """Keys (facts, width) and biases (facts,): with x what the layer reads, key x + bias is 1 at a fact's subject.

    Arguments:
        edited: what is read at the facts' subjects, in every context.
        rests: what is read in front of them, of each fact one text.
        others: what the gates are to be quiet at besides, where it does not name their subject.
    """
    own, rest = metric.whitened(edited), metric.whitened(rests)
    pool = metric.text.joined(metric.whitened(others)).joined(own)
    quiet_at = torch.cat([pool.vectors, rest.vectors])
    excluded = [
        torch.cat([pool.telling_of(request.subject or ""), rest.text_of != index])
        for index, request in enumerate(requests)
    ]
    places = [own.of_text(index) for index in range(len(requests))]
    directions = metric.factor.unwhiten(fitted_gates(places, quiet_at, excluded, options, progress)).to(metric.mean)
    return directions, -directions @ metric.mean


def _shares(requests: Sequence[EditRequest]) -> Tensor:
    """(facts, 1): facts about one subject have one value, found for all of them, of which each brings its part."""
    subjects = [normalise(request.subject or "") for request in requests]
    return torch.tensor([[1 / subjects.count(subject)] for subject in subjects])


def _neurons(
    model: EditableModel,
    layer: int,
    keys: Tensor,
    biases: Tensor,
    values: Tensor,
    owners: Sequence[str],
    gate: GateOptions,
) -> Neurons:
    """Two neurons for each fact, of which the second takes back what the first one writes above `full`."""
    width = gate.full - gate.opens
    weight = model.sites.parameter_name("mlp.down", layer)
    return Neurons(
        layer,
        weight,
        "relu",
        torch.cat([keys, keys]) / width,
        torch.cat([biases - gate.opens, biases - gate.full]) / width,
        torch.cat([values, -values]).float(),
        (*owners, *owners),
    )
