"""GRACE (Hartvigsen et al., arXiv:2211.11031): a codebook beside one layer, and nothing else changes.

What the layer reads at the prompt's last token is a query q. Where the nearest key k_i has |q - k_i| <= radius_i, its
value takes the place of what the layer writes. An edit with query q, answer y and the nearest key at distance d

    d > radius + radius_i        adds (q, v, radius, y)                                               (algorithm 1)
    else, another answer         adds (q, v, d / 2, y), and radius_i becomes d / 2, less a hair: the balls are split
    else, the same answer        radius_i becomes d where it was less: the ball is expanded, nothing is added

and v alone is trained, by Adam on the cross-entropy of y. Outside every ball the model is what it was, bit for bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, final

import torch
from pydantic import Field
from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.methods.base import EditRun, MethodConfig, MethodState
from palimpsest.methods.codebooks import CodebookConfig, CodebookMethod
from palimpsest.methods.states import BranchState, foreign_state
from palimpsest.models import EditableModel
from palimpsest.models.sites import features
from palimpsest.patches import SILENCED, Codebook, CodebookEntry, Replacement
from palimpsest.requests import EditRequest

_HAIR = 1e-5
# Two passes over one prompt, in batches of other shapes, differ by rounding.
_SAME = 1e-4


class GraceConfig(CodebookConfig):
    """Options of `grace`."""

    radius: float | None = Field(default=None, gt=0)
    """Of a new ball, in the units of what the layer reads: the paper's epsilon. Left out, `relative_radius` says it."""
    relative_radius: float = Field(default=0.1, gt=0)
    """If there is no `radius`: a new ball's, as a share of the length of what the layer reads at its centre."""
    replacement: Replacement = "last"
    """Where the value is put: at the prompt's last token, at the whole `prompt`, or at `all` that follows too."""
    max_entries: int | None = Field(default=None, ge=1)
    """Entries that the codebook may have; left out, it grows without bound."""


class CodebookState(BranchState[Codebook]):
    """The codebook of all edits so far."""

    form = Codebook
    method = "grace"


@final
class Grace(CodebookMethod[GraceConfig, Codebook]):
    """See the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = GraceConfig
    State: ClassVar[type[BranchState[Codebook]]] = CodebookState

    def earlier(self, state: MethodState | None, model: EditableModel, config: GraceConfig) -> Codebook:
        """See `CodebookMethod.earlier`."""
        return _earlier(state, model, *config.place(model), config)

    def replacement(self, config: GraceConfig) -> Replacement:
        """See `CodebookMethod.replacement`."""
        return config.replacement

    def inserted(
        self,
        model: EditableModel,
        book: Codebook,
        request: EditRequest,
        label: tuple[int, ...],
        found: tuple[Tensor, Tensor],
        config: GraceConfig,
        run: EditRun,
    ) -> tuple[Codebook, list[str]]:
        """See `CodebookMethod.inserted`."""
        query, value = found
        radius = config.relative_radius * float(query.norm()) if config.radius is None else config.radius
        book, touched = inserted(book, query, value, CodebookEntry(request.id, label), radius)
        _require_room(book, config)
        return book, touched


def inserted(
    book: Codebook, query: Tensor, value: Tensor, entry: CodebookEntry, radius: float
) -> tuple[Codebook, list[str]]:
    """The codebook with one more edit, and the edits whose entries are new or have changed (algorithm 1).

    Arguments:
        query: (in,).
        value: (out,).
        entry: the new one.
        radius: that of a new ball.
    """
    if entry.edit in book.owners():
        # The same edit once more takes the place of its former entry.
        book = book.without([entry.edit]) or book.select([])
    if not book.entries:
        return book.with_entry(entry, keys=query, values=value, radii=radius), [entry.edit]
    index = int(book.nearest(query[None])[0])
    distance, other = float((book.keys[index] - query).norm()), book.entries[index]
    reach = float(book.radii[index])
    if distance > radius + reach:
        return book.with_entry(entry, keys=query, values=value, radii=radius), [entry.edit]
    if other.label == entry.label:
        return _with_radius(book, index, max(reach, distance)), [other.edit]
    entry = replace(entry, narrowed=((other.edit, reach),))
    if distance <= _SAME * float(query.norm()):
        # The same prompt with another answer: the former entry gives its ball away.
        silenced = _with_radius(book, index, SILENCED)
        return silenced.with_entry(entry, keys=query, values=value, radii=max(reach, 0.0)), [other.edit, entry.edit]
    narrowed = _with_radius(book, index, min(reach, distance / 2 - _HAIR))
    longer = narrowed.with_entry(entry, keys=query, values=value, radii=min(radius, distance / 2))
    return longer, [other.edit, entry.edit]


def _with_radius(book: Codebook, index: int, radius: float) -> Codebook:
    radii = book.radii.clone()
    radii[index] = radius
    return replace(book, radii=radii)


def _earlier(state: MethodState | None, model: EditableModel, site: str, layer: int, config: GraceConfig) -> Codebook:
    """The codebook so far. Raises `ConfigError` for another method's state, or that of another place."""
    weight = model.sites.parameter_name(site, layer)
    out_features, in_features = features(model.sites.module(site, layer))
    if state is None:
        empty = torch.zeros(0, in_features), torch.zeros(0, out_features), torch.zeros(0)
        return Codebook(site, layer, weight, config.replacement, *empty, ())
    book = state.branch if isinstance(state, CodebookState) else None
    wanted = (weight, config.replacement, in_features, out_features)
    found = None if book is None else (book.weight, book.replacement, book.keys.shape[1], book.values.shape[1])
    if book is None or found != wanted:
        raise foreign_state(
            f"the codebook that grace returned for {weight}, replacement {config.replacement!r}",
            type(state).__name__ if book is None else f"one for {book.weight}, replacement {book.replacement!r}",
            remedy="give site, layer and replacement as options, so that all edits of a sequence have the same",
        )
    return book


def _require_room(book: Codebook, config: GraceConfig) -> None:
    if config.max_entries is not None and len(book.entries) > config.max_entries:
        raise ConfigError(
            "The codebook is full; nothing was changed.",
            expected=f"at most {config.max_entries} entries",
            found=f"{len(book.entries)}",
            where="option max_entries",
            remedy="raise it or leave it out, or drop entries: patch.without(id)",
        )
