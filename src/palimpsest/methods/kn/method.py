"""KN, knowledge neurons (Dai et al., arXiv:2104.08696): the neurons that say the old answer get new columns.

A neuron is one entry w_i of what multiplies the MLP's down-projection; it writes the column v_i of that matrix. With
P(w) the probability of the old answer when the layer's activations at the prompt's last token are w (equation 2),

    Attr_i = w_i / m * sum over k = 1..m of  dP(a_k w) / dw_i,     a_k = (k - 1/2) / m,

(`methods/kn/attribution.py`), so that sum_i Attr_i = P(w) - P(0) up to the error of the sum. Neurons above `threshold`
times the largest attribution in more than `share` of the prompts are the fact's knowledge neurons (section 3). An
update adds -l1 e(old) + l2 e(new) to their columns, an erasure makes these zero (section 4.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig
from palimpsest.methods.kn.attribution import attribute
from palimpsest.models import EditableModel, layer_numbers
from palimpsest.models.sites import MLP_DOWN, factors_to_storage, features, weight_as_out_in
from palimpsest.patches import LowRank, WeightPatch
from palimpsest.requests import EditRequest

Neuron = tuple[int, int]
"""Layer, and index in what multiplies its down-projection."""


class KnowledgeNeuronsConfig(MethodConfig):
    """Options of `kn`."""

    layers: list[int] | Literal["all"] = "all"
    """Layers whose neurons are looked at; negative numbers count from the last."""
    steps: int = Field(default=20, ge=1)
    """Points on the way from no activation to the present one at which gradients are taken (the midpoints)."""
    threshold: float = Field(default=0.2, ge=0, lt=1)
    """Share of the prompt's largest attribution that a neuron must exceed: the paper's t."""
    share: float = Field(default=0.7, ge=0, lt=1)
    """Share of a fact's prompts in which it must do so: the paper's p. Without effect on a fact with one prompt."""
    prefixes: list[str] = []
    """Texts to put in front of every prompt, each of which gives one more prompt for a fact."""
    prompts: dict[str, list[str]] = {}
    """More prompts with the same answer, by request id. A request's probes are never used: they are its tests."""
    operation: Literal["update", "erase"] = "update"
    """`update` writes the new answer in the old one's place; `erase` removes what the neurons write."""
    old_weight: float = Field(default=1.0, ge=0)
    """How much of the old answer's embedding is subtracted: lambda 1."""
    new_weight: float = Field(default=8.0, ge=0)
    """How much of the new answer's embedding is added: lambda 2."""
    embedding: Literal["output", "input"] = "output"
    """Rows of the head, which raise a token's logit, or of the input embedding as published. The same where tied."""
    forward_batch_size: int = Field(default=256, ge=1)
    """Rows in one forward pass; smaller needs less memory and gives the same neurons."""


@final
class KnowledgeNeurons(Method[KnowledgeNeuronsConfig]):
    """Attribution, selection, and new columns; see the module's docstring. Facts of a batch do not see each other."""

    Config: ClassVar[type[MethodConfig]] = KnowledgeNeuronsConfig
    capabilities: ClassVar[Capabilities] = Capabilities(needs_old_answer=True)

    def check_model(self, model: EditableModel, config: KnowledgeNeuronsConfig) -> None:
        for layer in layer_numbers(config.layers, model.num_layers):
            model.sites.require_weight(MLP_DOWN, layer)

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: KnowledgeNeuronsConfig, run: EditRun
    ) -> WeightPatch:
        layers = layer_numbers(config.layers, model.num_layers)
        columns: dict[Neuron, Tensor] = {}
        neurons: dict[str, list[Neuron]] = {}
        for done, request in enumerate(requests):
            run.progress("attribution", done, len(requests))
            with run.clock.stage("attribution"):
                found = [
                    attribute(model, prompt, str(request.target_old), layers, config.steps, config.forward_batch_size)
                    for prompt in prompts_of(request, config)
                ]
            marked = [above_threshold(one.scores, config.threshold) for one in found]
            neurons[request.id] = [(layers[row], index) for row, index in in_most(marked, config.share)]
            change = answer_change(model, request, config)
            for layer, index in neurons[request.id]:
                if config.operation == "erase":
                    columns[layer, index] = -column(model, layer, index)
                else:
                    # A neuron that is active below zero would lower what its column is to raise.
                    sign = found[0].activations[layers.index(layer), index].sign()
                    columns[layer, index] = columns.get((layer, index), 0.0) + sign * change
        run.progress("attribution", len(requests), len(requests))
        run.diagnostics.facts |= {
            "layers": layers,
            "neurons": {key: list(map(list, at)) for key, at in neurons.items()},
        }
        if not model.sites.architecture.mlp_writes_residual:
            run.diagnostics.notes.append(
                "A norm follows the MLP and takes out the scale of what it writes: attributions are unreliable."
            )
        without = [key for key, at in neurons.items() if not at]
        if without:
            run.diagnostics.notes.append(f"No neuron stands out for {len(without)} edit(s): {', '.join(without[:5])}.")
        return WeightPatch(column_deltas(model, columns))


def prompts_of(request: EditRequest, config: KnowledgeNeuronsConfig) -> list[str]:
    """The prompts that a fact's neurons are looked for with."""
    prefixed = [f"{prefix} {request.prompt}" for prefix in config.prefixes]
    return [request.prompt, *prefixed, *config.prompts.get(request.id, [])]


def above_threshold(scores: Tensor, threshold: float) -> set[Neuron]:
    """(row, index) of the scores, (layers, neurons), above a share of the largest; none where that is not positive."""
    top = float(scores.max())
    return {(row, index) for row, index in (scores > threshold * top).nonzero().tolist()} if top > 0 else set()


def in_most(marked: Sequence[set[Neuron]], share: float) -> list[Neuron]:
    """Neurons that more than a share of the sets hold, in order."""
    counts = Counter(neuron for one in marked for neuron in one)
    return sorted(neuron for neuron, count in counts.items() if count > share * len(marked))


def answer_change(model: EditableModel, request: EditRequest, config: KnowledgeNeuronsConfig) -> Tensor:
    """(width,), -l1 e(old) + l2 e(new); the e of an answer is the sum over its tokens."""
    module = model.sites.module("unembed" if config.embedding == "output" else "embed")
    rows = module.weight if isinstance(module, torch.nn.Embedding) else weight_as_out_in(module)

    def embedded(answer: str) -> Tensor:
        return rows[list(model.encode(request.prompt, answer).target_ids)].detach().float().sum(0)

    old, new = embedded(str(request.target_old)), embedded(request.target_new)
    return config.new_weight * new - config.old_weight * old


def column(model: EditableModel, layer: int, index: int) -> Tensor:
    """(width,), what a neuron writes when its activation is one, in float32."""
    return weight_as_out_in(model.sites.module(MLP_DOWN, layer))[:, index].detach().float()


def column_deltas(model: EditableModel, columns: Mapping[Neuron, Tensor]) -> dict[str, LowRank]:
    """Changes of single columns as one low-rank delta a layer: the columns times the rows that pick them out."""
    deltas = {}
    for layer in sorted({layer for layer, _ in columns}):
        module = model.sites.module(MLP_DOWN, layer)
        indices = sorted(index for other, index in columns if other == layer)
        left = torch.stack([columns[layer, index] for index in indices], dim=1)
        right = torch.zeros(len(indices), features(module)[1], device=left.device)
        right[range(len(indices)), indices] = 1.0
        name = model.sites.parameter_name(MLP_DOWN, layer)
        deltas[name] = LowRank(*factors_to_storage(module, left, right))
    return deltas
