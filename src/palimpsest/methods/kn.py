"""KN, knowledge neurons (Dai et al., arXiv:2104.08696): the neurons that say the old answer get new columns.

A neuron is one entry w_i of what multiplies the MLP's down-projection; it writes the column v_i of that matrix. With
P(w) the probability of the old answer when the layer's activations at the prompt's last token are w (equation 2),

    Attr_i = w_i / m * sum over k = 1..m of  dP(a_k w) / dw_i,     a_k = (k - 1/2) / m,

so that sum_i Attr_i = P(w) - P(0), up to the error of the sum. Neurons above `threshold` times the largest attribution
in more than `share` of the prompts are the fact's knowledge neurons (section 3). An update adds to their columns
-l1 e(old) + l2 e(new), an erasure makes them zero (section 4.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from palimpsest.errors import ModelError
from palimpsest.methods.base import Capabilities, Method, MethodConfig, Run
from palimpsest.models.bypass import frozen
from palimpsest.models.editable import EditableModel
from palimpsest.models.hooks import Point, intervened
from palimpsest.models.linear import factors_to_storage, features, weight_as_out_in
from palimpsest.models.suffix import Suffix, prepare
from palimpsest.optimise.selection import layer_numbers
from palimpsest.patches.base import Manifest
from palimpsest.patches.weights import LowRank, WeightPatch
from palimpsest.requests import EditRequest

SITE = "mlp.down"
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

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: KnowledgeNeuronsConfig, run: Run
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
        without = [key for key, at in neurons.items() if not at]
        if without:
            run.diagnostics.notes.append(f"No neuron stands out for {len(without)} edit(s): {', '.join(without[:5])}.")
        return WeightPatch(column_deltas(model, columns), Manifest(label=self.name))


def prompts_of(request: EditRequest, config: KnowledgeNeuronsConfig) -> list[str]:
    """The prompts that a fact's neurons are looked for with."""
    prefixed = [f"{prefix} {request.prompt}" for prefix in config.prefixes]
    return [request.prompt, *prefixed, *config.prompts.get(request.id, [])]


@dataclass(frozen=True)
class Attribution:
    """What the neurons of some layers have to do with an answer.

    Arguments:
        scores: (layers, neurons), Attr.
        activations: (layers, neurons), w, the mean over the tokens of the answer.
    """

    scores: Tensor
    activations: Tensor


def attribute(
    model: EditableModel, prompt: str, answer: str, layers: Sequence[int], steps: int, forward_batch_size: int
) -> Attribution:
    """Integrated gradients for an answer after a prompt.

    An answer of several tokens is the mean over its tokens, each after the prompt and the tokens before it, with the
    activations at the last of these. All neurons of a layer are scaled together.

    Raises `ModelError` when a probability is not finite.
    """
    encoded = model.encode(prompt, answer)
    rows = [encoded.prompt_ids + encoded.target_ids[:count] for count in range(len(encoded.target_ids))]
    labels = torch.tensor(encoded.target_ids, device=model.device)
    scores, activations, from_cache = [], [], None
    for layer in layers:
        point = Point(SITE, layer, "input")
        suffix, states = prepare(
            model, rows, [len(row) - 1 for row in rows], layer, points=[point], from_cache=from_cache
        )
        from_cache = suffix.prefix is not None
        gradients = mean_gradients(suffix, point, states[point], labels, steps, forward_batch_size)
        scores.append((states[point].float() * gradients).mean(0))
        activations.append(states[point].float().mean(0))
    if not all(one.isfinite().all() for one in scores):
        raise ModelError(
            "The model's probabilities are not finite.",
            expected="finite attributions",
            found="NaN or infinity",
            where=f"prompt {prompt!r}",
            remedy="load the model in float32",
        )
    return Attribution(torch.stack(scores).cpu(), torch.stack(activations).cpu())


def mean_gradients(
    suffix: Suffix, point: Point, activations: Tensor, labels: Tensor, steps: int, forward_batch_size: int
) -> Tensor:
    """(answer tokens, neurons), dP/dw averaged over the way from zero to the activations, which are of that shape."""
    count, device = len(labels), labels.device
    total = torch.zeros_like(activations, dtype=torch.float32)
    scales = (torch.arange(steps, device=device) + 0.5) / steps
    every_row, every_scale = torch.arange(count, device=device).repeat(steps), scales.repeat_interleave(count)
    with frozen(suffix.model.module):
        for start in range(0, count * steps, forward_batch_size):
            chunk = slice(start, start + forward_batch_size)
            rows, scale = every_row[chunk], every_scale[chunk]
            scaled = (scale[:, None] * activations[rows].float()).requires_grad_()
            probabilities = answer_probabilities(suffix.select(rows), point, scaled, labels[rows])
            (gradients,) = torch.autograd.grad(probabilities.sum(), scaled)
            total.index_add_(0, rows, gradients)
    return total / steps


def answer_probabilities(suffix: Suffix, point: Point, activations: Tensor, labels: Tensor) -> Tensor:
    """(rows,), P(w): the probability of each row's label when its activations at the last token are given ones."""
    rows = torch.arange(len(labels), device=labels.device)

    def put(tensor: Tensor) -> Tensor:
        return tensor.index_put((rows, suffix.first_columns), activations.to(tensor.dtype))

    with intervened(suffix.model.sites, {point: put}):
        logits = suffix.logits(rows, suffix.columns)
    return logits.float().softmax(-1)[rows, labels]


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
    return weight_as_out_in(model.sites.module(SITE, layer))[:, index].detach().float()


def column_deltas(model: EditableModel, columns: Mapping[Neuron, Tensor]) -> dict[str, LowRank]:
    """Changes of single columns as one low-rank delta a layer: the columns times the rows that pick them out."""
    deltas = {}
    for layer in sorted({layer for layer, _ in columns}):
        module = model.sites.module(SITE, layer)
        indices = sorted(index for other, index in columns if other == layer)
        left = torch.stack([columns[layer, index] for index in indices], dim=1)
        right = torch.zeros(len(indices), features(module)[1], device=left.device)
        right[range(len(indices)), indices] = 1.0
        name = model.sites.parameter_name(SITE, layer)
        deltas[name] = LowRank(*factors_to_storage(module, left, right))
    return deltas
