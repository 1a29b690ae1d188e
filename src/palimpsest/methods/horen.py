"""HoReN (arXiv:2605.08143): a codebook whose keys have length one, for long sequences; each entry can be taken out.

The query of a prompt is the mean of what a layer reads over the last share of its tokens, at length one; perhaps a step
of a Hopfield network draws it to the keys that it is like (`patches/retrieval.py`). Where its cosine with the most
alike key is above that key's threshold, the key's value is added to what the layer writes at the prompt's last token.
An edit adds an entry, unless one with its very answer decides there already: that one gets a new value. There are no
radii, and nothing is split: of two answers to one prompt the later one decides, and without it the earlier one again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, final

import torch
from pydantic import Field
from torch import Tensor

from palimpsest.methods.base import EditRun, MethodConfig, MethodState
from palimpsest.methods.codebooks import CodebookConfig, CodebookMethod
from palimpsest.methods.states import BranchState, foreign_state
from palimpsest.models import EditableModel, Point
from palimpsest.models.sites import features
from palimpsest.patches import Replacement, Retrieval, RetrievalEntry, prompt_columns
from palimpsest.requests import EditRequest
from palimpsest.training import ValuePasses, prompts_apart_from


class HorenConfig(CodebookConfig):
    """Options of `horen`."""

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
    """If there is no `threshold`: that of an entry is so far from 1, its own prompt's cosine, on the way to the
    largest one that its prompt has about another subject, or an ordinary beginning of a sentence."""


class RetrievalState(BranchState[Retrieval]):
    """The codebook of all edits so far."""

    form = Retrieval
    method = "horen"


@final
class Horen(CodebookMethod[HorenConfig, Retrieval]):
    """See the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = HorenConfig
    State: ClassVar[type[BranchState[Retrieval]]] = RetrievalState

    def earlier(self, state: MethodState | None, model: EditableModel, config: HorenConfig) -> Retrieval:
        """See `CodebookMethod.earlier`."""
        return _earlier(state, model, config)

    def replacement(self, config: HorenConfig) -> Replacement:
        """See `CodebookMethod.replacement`."""
        return "last"

    def values(self, model: EditableModel, book: Retrieval, passes: ValuePasses, found: Tensor) -> Tensor:
        """See `CodebookMethod.values`: what has to be added to what the layer writes by itself."""
        # The layer's own, whatever an earlier entry adds to it.
        module = model.sites.module(book.site, book.layer)
        written: Tensor = module.forward(passes.queries.to(model.module.dtype)).float()
        return found - written

    def inserted(
        self,
        model: EditableModel,
        book: Retrieval,
        request: EditRequest,
        label: tuple[int, ...],
        found: tuple[Tensor, Tensor],
        config: HorenConfig,
        run: EditRun,
    ) -> tuple[Retrieval, list[str]]:
        """See `CodebookMethod.inserted`."""
        with run.clock.stage("keys"):
            key, threshold = _key(model, book, request, config)
        book, touched = inserted(book, key, found[1], threshold, RetrievalEntry(request.id, label))
        return book, [touched]


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
    return book.with_entry(entry, keys=key, values=value, thresholds=threshold), entry.edit


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


def _earlier(state: MethodState | None, model: EditableModel, config: HorenConfig) -> Retrieval:
    """The codebook so far. Raises `ConfigError` for another method's state, or that of another place."""
    site, layer = config.place(model)
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
