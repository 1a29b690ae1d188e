"""Networks that turn a gradient's factors into a change of weights, and what they are trained for: MEND's and KE's kin.

    edit:      -log p(new answer | a rephrasing of the prompt), with the change, mean over the answer's tokens
    locality:  KL(p || p with the change) on unrelated prompts, mean over tokens

The base model is frozen and its gradient's factors are constants, so no second derivatives are taken.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from palimpsest.models import EditableModel, Encoded, frozen_parameters, layer_numbers
from palimpsest.requests import EditRequest
from palimpsest.training.examples import EditExample
from palimpsest.training.gradient_factors import Update, WeightPlace, places, updated
from palimpsest.training.metatraining import MetaTrainingOptions

MLP_MATRICES = ("mlp.up", "mlp.gate", "mlp.down")


class HypernetworkOptions(MetaTrainingOptions):
    """Options of a hypernetwork: the weights that it changes, and its losses."""

    sites: list[str] | Literal["mlp", "all"] = "mlp"
    """Sites whose weights are changed; `mlp` for the MLP's matrices, `all` for those of attention too; of both stacks
    where there are two."""
    layers: list[int] | Literal["last"] = "last"
    """Layers of these sites; negative numbers count from the last. `last`: three, two in each stack of two."""
    with_prompt: bool = False
    """Whether the loss is taken at the edit's own prompt too, where the gradient comes from."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of the loss on the new answer."""
    rephrasings_per_edit: int = Field(default=1, ge=1)
    """Rephrasings drawn for an edit at a step."""
    unrelated_per_edit: int = Field(default=1, ge=1)
    """Unrelated prompts drawn for an edit at a step."""
    locality_tokens: Literal["all", "answer"] = "all"
    """Where the unrelated prompts are compared: at every token of prompt and answer, or at the answer's."""
    edits_together: list[int] = [1]
    """Sizes of batches to train for: at a step one is drawn, and so many edits are made at once."""


class Hypernetwork(nn.Module, ABC):
    """Makes a change of weights from requests. Its parameters are all that is trained."""

    places: list[WeightPlace]

    @abstractmethod
    def propose(self, model: EditableModel, requests: Sequence[EditRequest]) -> dict[str, Update]:
        """Each request's change of each weight, by the weight's name; differentiable in the network's parameters."""


def chosen_places(model: EditableModel, options: HypernetworkOptions) -> list[WeightPlace]:
    """The weights that the options name. Raises `ConfigError` for layers out of range, `ModelError` as `places`."""
    sites = list(options.sites)
    if isinstance(options.sites, str):
        whole = [name for name in model.sites.names() if _is_matrix(model, name)]
        sites = [name for name in whole if options.sites == "all" or model.sites.locate(name)[1] in MLP_MATRICES]
        # A mixture of experts has none; asking for one says so.
        sites = sites or ["mlp.down"]
    layers = []
    for site in sites:
        count = model.sites.layers_of(site)
        newest = 2 if model.is_encoder_decoder else 3
        last = list(range(max(0, count - newest), count))
        layers.append(last if options.layers == "last" else layer_numbers(options.layers, count))
    return places(model, sites, layers)


def _is_matrix(model: EditableModel, site: str) -> bool:
    """Whether a site is a whole matrix of its own."""
    part = model.sites.part(site)
    return model.sites.has_weight(site) and not part.is_slice and not part.is_experts


def editing_losses(
    model: EditableModel,
    network: Hypernetwork,
    examples: Sequence[EditExample],
    draw: random.Random,
    options: HypernetworkOptions,
) -> dict[str, Tensor]:
    """`edit` and `locality` (nats per token), and the shares of rephrasings answered and of unrelated prompts kept.

    An answer counts as given, or kept, when each of its tokens is the most probable one.
    """
    together = draw.choice(options.edits_together)
    updates = network.propose(model, [example.request for example in examples])
    if together > 1:
        updates = {name: update.together(together) for name, update in updates.items()}
    rephrased, unrelated = [], []
    for index, example in enumerate(examples):
        size = min(options.rephrasings_per_edit, len(example.rephrasings))
        own = [example.request.prompt] * options.with_prompt
        for prompt in [*own, *draw.sample(example.rephrasings, size)]:
            rephrased.append((index // together, model.encode(prompt, example.request.target_new)))
        for prompt, answer in draw.sample(example.unrelated, min(options.unrelated_per_edit, len(example.unrelated))):
            unrelated.append((index // together, model.encode(prompt, answer)))
    edit, given = _edit_loss(model, updates, rephrased, options.smoothing)
    locality, kept = _locality_loss(model, updates, unrelated, options.locality_tokens)
    return {"edit": edit, "locality": locality, "answered": given, "kept": kept}


UpdateRows = Sequence[tuple[int, Encoded]]
"""Rows with the number of the update that each is computed with."""


def _edit_loss(
    model: EditableModel, updates: Mapping[str, Update], rows: UpdateRows, smoothing: float
) -> tuple[Tensor, Tensor]:
    encoded = [row for _, row in rows]
    log_probs, places_, labels = _predictions(model, updates, rows, encoded)
    exact = -log_probs.gather(-1, labels[:, None])[:, 0]
    losses = (1 - smoothing) * exact - smoothing * log_probs.mean(-1)
    hits = (log_probs.argmax(-1) == labels).float()
    return _mean_by_row(losses, places_, len(rows)), _share_of_rows(hits, places_, len(rows))


def _locality_loss(
    model: EditableModel, updates: Mapping[str, Update], rows: UpdateRows, tokens: Literal["all", "answer"]
) -> tuple[Tensor, Tensor]:
    encoded = [row for _, row in rows]
    if tokens == "all" and not model.is_encoder_decoder:
        encoded = [Encoded(row.ids[:1], row.ids[1:]) for row in encoded]
    with torch.no_grad():
        base, _, _ = _predictions(model, {}, rows, encoded)
    log_probs, places_, _ = _predictions(model, updates, rows, encoded)
    divergence = (base.exp() * (base - log_probs)).sum(-1)
    # Of the whole row where all tokens are compared: the answer's are its last.
    same = (base.argmax(-1) == log_probs.argmax(-1)).float()
    is_answer = torch.cat([_is_answer(row, len(one.target_ids)) for (_, row), one in zip(rows, encoded, strict=True)])
    same = torch.where(is_answer.to(same.device), same, 1.0)
    return _mean_by_row(divergence, places_, len(rows)), _share_of_rows(same, places_, len(rows))


def _is_answer(row: Encoded, compared: int) -> Tensor:
    return torch.arange(compared) >= compared - len(row.target_ids)


def _predictions(
    model: EditableModel, updates: Mapping[str, Update], rows: UpdateRows, encoded: Sequence[Encoded]
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities at the answers' places, (places, vocabulary); the row of each place; the label of each."""
    batch = model.batch(encoded)
    at, columns, labels = model.answer_places(encoded, batch)
    owners = torch.tensor([owner for owner, _ in rows], device=model.device)
    with frozen_parameters(model.module), updated(model, updates, owners):
        logits = model.logits_at(batch, at, columns)
    return logits.float().log_softmax(-1), at, labels


def _mean_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """The mean over rows of each row's mean."""
    sums = values.new_zeros(count).index_add(0, rows, values)
    sizes = values.new_zeros(count).index_add(0, rows, torch.ones_like(values))
    return (sums / sizes).mean()


def _share_of_rows(hits: Tensor, rows: Tensor, count: int) -> Tensor:
    """The share of rows all of whose places are hits."""
    return hits.new_ones(count).scatter_reduce(0, rows, hits, "amin").mean()
