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
    subject_rows,
    subject_vectors,
)
from palimpsest.locating.target_vector import find_target_vectors
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig, MethodState
from palimpsest.methods.memory import MemoryConfig
from palimpsest.methods.ordinary import OrdinaryText
from palimpsest.methods.subject_neurons.config import SubjectNeuronsConfig
from palimpsest.methods.subject_neurons.gates import GateOptions, fitted_gates
from palimpsest.methods.subject_neurons.quiet import (
    Readings,
    as_words,
    ordinary_readings,
    readings_beside,
    rest_of_prompts,
)
from palimpsest.methods.subject_neurons.state import EditedSubjects
from palimpsest.models import EditableModel, Point, layer_number
from palimpsest.patches import ModulePatch, Neurons, Patch
from palimpsest.provenance import digest
from palimpsest.requests import EditRequest, normalise
from palimpsest.solve import Factorised
from palimpsest.stopwatch import Progress, silent
from palimpsest.tracing import layers_by_depth

_BLOCK = 8192


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
        self._readings: tuple[str, Readings] | None = None

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
        with run.clock.stage("contexts"), model.weights.without_changes():
            templates = context_templates(model, config.contexts, seed=config.seed)
            requests, sink = apart_from_sink(model, requests, templates, layer)
        with run.clock.stage("targets"):
            searched = templates if config.search_in == "all-contexts" else templates[:1]
            found = find_target_vectors(
                model, requests, layer=layer, options=config.targets, templates=searched, progress=run.progress
            )
        run.diagnostics.losses |= found.losses
        run.diagnostics.notes += [*found.notes(), *first_token_notes(sink)]
        run.diagnostics.facts |= {"first_token": sink} if sink else {}
        point = Point("mlp.up", layer, "input")
        with run.clock.stage("gates"), torch.no_grad():
            text = self._ordinary(model, layer, config, run)
            # What a layer reads is not changed by neurons beside it.
            own = subject_vectors(model, subject_rows(model, requests, templates), [point])[point]
            beside = readings_beside(model, layer, requests, others=config.others, alike=config.alike, seed=config.seed)
            keys, biases = gates(
                [request.subject or "" for request in requests],
                own,
                list(rest_of_prompts(model, layer, requests)),
                text,
                text.joined(beside).joined(earlier.readings()),
                config,
                run.progress,
            )
        run.state = earlier.joined(EditedSubjects.of(requests, own))
        owners = [request.id.removesuffix(PROMPT_ALONE) for request in requests]
        values = _shares(requests).to(found.deltas) * found.deltas
        opened = torch.einsum("fcw,fw->fc", own, keys) + biases[:, None]
        run.diagnostics.facts |= {"layer": layer, "neurons": 2 * len(owners), "opened": opened.tolist()}
        two = _neurons(model, layer, keys, biases, values, owners, config.gate)
        return ModulePatch([replace(two, constant=_constant(text, config.damping).to(keys))])

    def _layer(self, model: EditableModel, config: SubjectNeuronsConfig, run: EditRun) -> int:
        if config.layer != "auto":
            return layer_number(config.layer, model.num_layers)
        (layer,), record = layers_by_depth(model, 1)
        run.diagnostics.facts["layers_chosen"] = record
        return layer

    def _ordinary(self, model: EditableModel, layer: int, config: SubjectNeuronsConfig, run: EditRun) -> Readings:
        """What the unedited model reads of ordinary text, kept from edit to edit."""
        key = digest([model.fingerprint(), model.tokenizer_digest, layer, config.text, config.max_tokens])
        if self._readings is None or self._readings[0] != key:
            rows = self._text.of(model, config.text, MemoryConfig(max_tokens=config.max_tokens), run.progress)
            with model.weights.without_changes():
                self._readings = (key, ordinary_readings(model, layer, rows))
        return self._readings[1]


def gates(
    subjects: Sequence[str],
    own: Tensor,
    rests: Sequence[Tensor],
    text: Readings,
    others: Readings,
    config: SubjectNeuronsConfig,
    progress: Progress = silent,
) -> tuple[Tensor, Tensor]:
    """Keys (facts, width) and biases (facts,): with x what the layer reads, key x + bias is 1 at a fact's subject.

    Arguments:
        subjects: of the facts.
        own: (facts, contexts, width), what is read at the subjects' last tokens.
        rests: for each fact (tokens, width), what is read in front of them.
        text: ordinary text, which says how vectors are spread.
        others: what the gates are to be quiet at, where it does not name their subject.
    """
    mean = text.vectors.mean(dim=0)
    centred = text.vectors - mean
    metric = Factorised(centred.T @ centred / len(centred), where="what the MLP reads", damping=config.damping)

    def whitened(vectors: Tensor) -> Tensor:
        # In blocks: a solve is in float64.
        return torch.cat([metric.whiten(block - mean).float() for block in torch.split(vectors, _BLOCK)])

    places = whitened(own.flatten(0, 1)).view_as(own)
    names = tuple(map(as_words, subjects))
    of_facts = torch.arange(len(own), device=own.device).repeat_interleave(own.shape[1])
    among = Readings(names, own.flatten(0, 1), of_facts)
    pool = Readings(others.texts, whitened(others.vectors), others.text_of).joined(
        Readings(among.texts, places.flatten(0, 1), among.text_of)
    )
    own_rests = [whitened(rest) for rest in rests]
    lengths = torch.tensor([len(one) for one in own_rests])
    rest = torch.cat(own_rests)
    rest_of = torch.arange(len(own)).repeat_interleave(lengths).to(own.device)
    everything = torch.cat([pool.vectors, rest])
    excluded = []
    for index, subject in enumerate(subjects):
        told = pool.telling_of(subject)
        told = torch.zeros(len(pool.vectors), dtype=torch.bool, device=own.device) if told is None else told
        excluded.append(torch.cat([told, rest_of != index]))
    directions = metric.unwhiten(fitted_gates(list(places), everything, excluded, config.gate, progress)).to(own)
    return directions, -directions @ mean


def _constant(text: Readings, damping: float) -> Tensor:
    """(width,), the direction along which ordinary text stands nearest to 1: what a layer reads has a mean."""
    moment = text.vectors.T @ text.vectors / len(text.vectors)
    return Factorised(moment, where="what the MLP reads", damping=damping).solve(text.vectors.mean(0, keepdim=True))[0]


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
