"""HoReN (arXiv:2605.08143): a codebook whose keys have length one, for long sequences; each entry can be taken out.

The query of a prompt is the mean of what a layer reads over the last share of its tokens, at length one; perhaps a step
of a Hopfield network draws it to the keys that it is like (`patches/retrieval.py`). Where its cosine with the most
alike key is above that key's threshold, the key's value is added to what the layer writes at the prompt's last token.
An edit adds an entry, unless one with its very answer decides there already: that one gets a new value. There are no
radii, and nothing is split: of two answers to one prompt the later one decides, and without it the earlier one again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig, MethodState
from palimpsest.methods.states import BranchState, foreign_state
from palimpsest.models import EditableModel, Point, frozen_parameters, layer_number
from palimpsest.models.sites import features
from palimpsest.patches import Manifest, ModulePatch, Patch, Retrieval, RetrievalEntry, prompt_columns
from palimpsest.requests import EditRequest
from palimpsest.training import ValueOptions, find_values, prompts_apart_from, value_passes


class HorenConfig(ValueOptions, MethodConfig):
    """Options of `horen`."""

    site: str = "auto"
    """The linear site: `auto` is `mlp.down`, of the encoder where there is one."""
    layer: int | Literal["auto"] = "auto"
    """Its layer; negative numbers count from the last. `auto` is the one at 0.69 of the depth."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Of the prompt's tokens, the last ones, that make its query."""
    damping: float = Field(default=0.0, ge=0, lt=1)
    """How far the step draws a query to the keys it is like; 0.1 as published. 0: no step, so that an entry decides for
    itself alone."""
    beta: float = Field(default=20.0, gt=0)
    """Sharpness of the step."""
    threshold: float | None = Field(default=None, ge=-1, lt=1)
    """Cosine above which a value is added; 0.55 to 0.85 as published, by the model. Left out, `margin` says it."""
    margin: float = Field(default=0.5, gt=0, lt=1)
    """Where there is no `threshold`: that of an entry is so far from 1, its own prompt's cosine, on the way to the
    largest one that its prompt has about another subject, or an ordinary beginning of a sentence."""


class RetrievalState(BranchState[Retrieval]):
    """The codebook of all edits so far."""

    form = Retrieval
    method = "horen"


@final
class Horen(Method[HorenConfig]):
    """Values of a call are found together, for they do not see each other; then they go in one after another."""

    Config: ClassVar[type[MethodConfig]] = HorenConfig
    State: ClassVar[type[MethodState] | None] = RetrievalState
    capabilities: ClassVar[Capabilities] = Capabilities(gives_weight_patch=False)

    def check_model(self, model: EditableModel, config: HorenConfig) -> None:
        site, layer = _place(model, config)
        model.sites.parameter_name(site, layer)

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: HorenConfig, run: EditRun
    ) -> Patch:
        book = _earlier(run.state, model, config)
        encoded = [model.encode(request.prompt, request.target_new) for request in requests]
        scores = model.score([r.prompt for r in requests], [r.target_new for r in requests])
        wrong = [index for index, score in enumerate(scores) if not all(score.matches)]
        if len(wrong) < len(requests):
            count = len(requests) - len(wrong)
            run.diagnostics.notes.append(f"{count} edit(s) were right before, and nothing was added for them.")
        changed: list[str] = []
        for first in range(0, len(wrong), config.forward_batch_size):
            run.progress("values", first, len(wrong))
            chunk = wrong[first : first + config.forward_batch_size]
            with run.clock.stage("values"), frozen_parameters(model.module):
                passes = value_passes(model, [encoded[i] for i in chunk], book.site, book.layer, "last")
                found, losses = find_values(passes, config)
                # The layer's own, whatever an earlier entry adds to it.
                module = model.sites.module(book.site, book.layer)
                with torch.no_grad():
                    written = module.forward(passes.queries.to(model.module.dtype)).float()
            for row, index in enumerate(chunk):
                request = requests[index]
                with run.clock.stage("keys"):
                    key, threshold = _key(model, book, request, config)
                entry = RetrievalEntry(request.id, encoded[index].target_ids)
                book, touched = inserted(book, key, found[row] - written[row], threshold, entry)
                changed.append(touched)
                run.diagnostics.losses[request.id] = losses[row]
        run.progress("values", len(wrong), len(wrong))
        run.state = RetrievalState(book)
        run.diagnostics.facts |= {"entries": len(book.entries), "layer": book.layer, "site": book.site}
        own = book.owners()
        return ModulePatch(
            [book.select([own.index(edit) for edit in dict.fromkeys(changed)])], Manifest(label=self.name)
        )


def inserted(
    book: Retrieval, key: Tensor, value: Tensor, threshold: float, entry: RetrievalEntry
) -> tuple[Retrieval, str]:
    """The codebook with one more edit, and the edit whose entry is new or has changed.

    Arguments:
        key: (in,), of length one.
        value: (out,).
    """
    book = book.without([entry.edit]) or book.select([])
    at, is_hit = book.most_like(key[None].to(book.keys))
    if bool(is_hit) and book.entries[int(at)].label == entry.label:
        values = book.values.clone()
        values[int(at)] = value.to(values)
        return replace(book, values=values), book.entries[int(at)].edit
    return book.with_entry(key, value, threshold, entry), entry.edit


@torch.no_grad()
def _key(model: EditableModel, book: Retrieval, request: EditRequest, config: HorenConfig) -> tuple[Tensor, float]:
    """The key of a prompt, (in,), and the cosine above which it decides."""
    draw = torch.Generator().manual_seed(config.seed)
    others = prompts_apart_from(request, 16, draw) if config.threshold is None else []
    point = Point(book.site, book.layer, "input")
    batch, found = model.capture([request.prompt, *others], [point])
    with model.reads(batch):
        prompts = prompt_columns(model, model.sites.locate(book.site)[0], found[point])
    queries = book.queries(found[point], prompts)
    if config.threshold is not None:
        return queries[0], config.threshold
    nearest = float((queries[1:] @ queries[0]).max())
    return queries[0], 1 - config.margin * (1 - nearest)


def _place(model: EditableModel, config: HorenConfig) -> tuple[str, int]:
    """The site and its layer."""
    site = config.site
    if site == "auto":
        site = "encoder.mlp.down" if model.is_encoder_decoder else "mlp.down"
    return site, layer_number(config.layer, model.sites.layers_of(site))


def _earlier(state: MethodState | None, model: EditableModel, config: HorenConfig) -> Retrieval:
    """The codebook so far. Raises `ConfigError` for another method's state, or that of another place."""
    site, layer = _place(model, config)
    weight = model.sites.parameter_name(site, layer)
    out, into = features(model.sites.module(site, layer))
    fresh = Retrieval(
        site,
        layer,
        weight,
        config.share,
        config.damping,
        config.beta,
        keys=torch.zeros(0, into),
        values=torch.zeros(0, out),
        thresholds=torch.zeros(0),
        entries=(),
    )
    if state is None:
        return fresh
    book = state.branch if isinstance(state, RetrievalState) else None
    if book is None or book.place() != fresh.place() or (book.keys.shape[1], book.values.shape[1]) != (into, out):
        raise foreign_state(
            f"the codebook that horen returned for {weight}, share, damping and beta {fresh.place()[2:]}",
            type(state).__name__ if book is None else f"one for {book.weight}, {book.place()[2:]}",
            remedy="give site, layer, share, damping and beta as options, so that all edits have the same",
        )
    return book
