"""Inputs that an edit must not change while weights are trained: its own prompt about other subjects.

With k what a trained matrix reads at the tokens of such prompts, in two ways, which can be had together:

    dW k = 0                  the change is kept orthogonal to all k, so that it writes nothing there   (`spare`)
    + weight KL(base||trained)  of the next token behind these prompts, part of the loss                (`keep_weight`)

What damages a model first is the edit's own wording, which other facts share: what is taught about the capital of one
country must not become what every capital is. So the prompt is asked with other subjects in the subject's place, of
every kind, since nobody says which kind it is. Without a subject, or where it stands in no prompt, ordinary beginnings
of sentences are asked. The methods of the papers have neither. The first is AlphaEdit's idea (arXiv:2410.02355) for
gradient descent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.locating import about, subjects_alike, well_known_subjects
from palimpsest.models import EditableModel, Encoded, PaddedBatch, next_tokens, to_be_answered
from palimpsest.models.sites import EXPERTS_MATRIX, is_experts, number_of_experts, read_by
from palimpsest.requests import EditRequest, normalise

NEUTRAL_PROMPTS = (
    "The weather this morning was",
    "She opened the door and saw",
    "In the first half of the century,",
    "The most important thing about cooking is",
    "He wrote a letter to his",
    "Water boils at a temperature of",
    "The children were playing in the",
    "One of the main reasons for this is",
)
"""Beginnings of sentences that no edit is about."""

_POOL = 8
_LARGEST_SHARE = 0.25
"""Of a matrix's inputs, the share of directions that may be spared; the strongest ones are."""
_SMALLEST = 1e-3
"""Directions weaker than this share of the strongest are not spared."""


@dataclass(frozen=True)
class Kept:
    """Prompts with what the model says next before any step.

    Arguments:
        encoded: the prompts, each with a token after it, which is not read.
        base: (prompts, vocabulary), natural log-probabilities of the next token.
    """

    encoded: tuple[Encoded, ...]
    base: Tensor

    def loss(self, model: EditableModel, at: Sequence[int]) -> Tensor:
        """Mean divergence over some of the prompts, by their indices; differentiable."""
        base = self.base[list(at)]
        return (base.exp() * (base - next_tokens(model, [self.encoded[index] for index in at]))).sum(-1).mean()


@torch.no_grad()
def kept_prompts(model: EditableModel, requests: Sequence[EditRequest], *, seed: int, most: int = 64) -> Kept | None:
    """The prompts that the edits must keep, under the patches on the model; `None` if the edits are about all of them.

    Arguments:
        most: prompts at most; with many edits each gives one, until there are so many.
    """
    draw = torch.Generator().manual_seed(seed)
    each = max(1, min(_POOL, most // max(1, len(requests))))
    order = torch.randperm(len(requests), generator=draw).tolist()[: most // each]
    taught = {normalise(request.prompt) for request in requests}
    texts = {text: None for index in order for text in prompts_apart_from(requests[index], each, draw)}
    kept = [text for text in texts if normalise(text) not in taught]
    if not kept:
        return None
    encoded = tuple(to_be_answered(model, kept))
    return Kept(encoded, next_tokens(model, encoded))


def prompts_apart_from(request: EditRequest, count: int, draw: torch.Generator, *, alike: float = 0.0) -> list[str]:
    """A request's prompt with other subjects in the subject's place, or ordinary beginnings of sentences.

    Arguments:
        count: how many, at most.
        alike: of these, the share whose subject begins or ends as the request's own does, if that has several words.
    """
    if request.subject is None:
        return some_of(NEUTRAL_PROMPTS, count, draw)
    near = some_of(subjects_alike(request.subject), round(alike * count), draw)
    prompt = normalise(request.prompt)
    known = [one for one in well_known_subjects(request.prompt) if normalise(one) not in prompt]
    return [about(request, name).prompt for name in (*near, *some_of(known, count - len(near), draw))]


def some_of(texts: Sequence[str], count: int, draw: torch.Generator) -> list[str]:
    """Texts drawn without repetition, at most `count`."""
    return [texts[index] for index in torch.randperm(len(texts), generator=draw).tolist()[:count]]


@torch.no_grad()
def spared_directions(
    model: EditableModel,
    requests: Sequence[EditRequest],
    modules: Sequence[str],
    *,
    seed: int,
    most: int = 16,
    alike: float = 0.0,
) -> dict[str, Tensor]:
    """Name of each linear layer to (in, directions), an orthonormal basis of what it reads that is to be left alone; of
    experts a basis each, (experts, width, directions), filled up with zeros.

    That is what it reads of prompts about others, of ordinary beginnings of sentences, and at the last token of the
    edits' own answers: how a text goes on behind an answer is not the edit's, which would begin it again and again.

    Arguments:
        modules: full names of linear layers, or of experts.
        most: prompts about well-known others, at most; ordinary beginnings of sentences are added to them.
        alike: under 1; so many more are added that this share of all is about subjects that begin or end as an edit's
            own does.

    Raises `ModelError` when these layers' weights are offloaded, before anything is computed.
    """
    layers = {name: model.module.get_submodule(name) for name in modules}
    model.weights.require_present(
        f"{name}.{EXPERTS_MATRIX if is_experts(layer) else 'weight'}" for name, layer in layers.items()
    )
    draw = torch.Generator().manual_seed(seed)
    most = round(most / (1 - alike))
    each = max(1, most // max(1, len(requests)))
    order = torch.randperm(len(requests), generator=draw).tolist()[: most // each]
    texts = {text: None for index in order for text in prompts_apart_from(requests[index], each, draw, alike=alike)}
    others = model.batch(to_be_answered(model, [*texts, *NEUTRAL_PROMPTS]))
    answered = model.batch([_answered(model, requests[index]) for index in order])
    read, behind = _read(model, others, modules), _read(model, answered, modules)
    bases = {}
    for name in (one for one in modules if one in read):
        keys = torch.cat([_tokens(read[name], others), _tokens(behind[name], answered, is_last=True)])
        bases[name] = _bases(keys, number_of_experts(layers[name])) if is_experts(layers[name]) else _basis(keys)
    return bases


def _answered(model: EditableModel, request: EditRequest) -> Encoded:
    """A request's prompt with its new answer, of which all is read."""
    row = model.encode(request.prompt, request.target_new)
    if model.is_encoder_decoder:
        return Encoded(row.prompt_ids, (*row.target_ids, 0))
    return Encoded((*row.prompt_ids, *row.target_ids), (0,))


def _read(model: EditableModel, batch: PaddedBatch, modules: Sequence[str]) -> dict[str, Tensor]:
    """Returns the inputs of linear layers by name: (rows, tokens, in), or (tokens, in) if experts share them."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            keys = read_by(module, args, kwargs).detach()
            found[name] = keys.view(*batch.attention_mask.shape, -1) if is_experts(module) else keys

        return hook

    handles = [
        model.module.get_submodule(name).register_forward_pre_hook(keep(name), with_kwargs=True) for name in modules
    ]
    try:
        model.forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _tokens(read: Tensor, batch: PaddedBatch, *, is_last: bool = False) -> Tensor:
    """(tokens, in): a batch's real tokens; or the last one of each row, and none of a layer that reads no answers."""
    part = batch.decoder or batch
    if is_last:
        if read.shape[:2] != part.attention_mask.shape:
            return read.new_empty(0, read.shape[-1])
        rows = torch.arange(len(read), device=read.device)
        return read[rows, part.last_columns.to(read.device)]
    masks = [one.attention_mask.bool() for one in (batch, batch.decoder) if one is not None]
    mask = next((one for one in masks if one.shape == read.shape[:2]), None)
    return read.flatten(0, -2) if mask is None else read[mask.to(read.device)]


def _basis(read: Tensor) -> Tensor:
    """(in, directions), orthonormal, of what a layer reads, (tokens, in)."""
    keys = read.cpu().double()
    # From the smaller of the two square matrices.
    values, vectors = torch.linalg.eigh(keys @ keys.t())
    most = max(1, int(_LARGEST_SHARE * keys.shape[1]))
    strong = (values > _SMALLEST**2 * values[-1]).nonzero()[:, 0][-most:]
    directions: Tensor = keys.t() @ vectors[:, strong] / values[strong].sqrt()
    return directions.to(read.device, torch.float32)


def _bases(read: Tensor, experts: int) -> Tensor:
    """(experts, width, directions), of what experts read, (tokens, experts * width): a basis each, then zeros.

    What is written for none of an expert's own keys is written for no sum of them. An expert that no token was sent to
    has nothing to be left alone, and where it is not trained nothing of others is brought into it.
    """
    keys = read.view(len(read), experts, -1)
    own = [keys[:, index][keys[:, index].any(dim=1)] for index in range(experts)]
    found = [_basis(one) if len(one) else one.float().t() for one in own]
    most = max(one.shape[1] for one in found)
    return torch.stack([functional.pad(one, (0, most - one.shape[1])) for one in found])
