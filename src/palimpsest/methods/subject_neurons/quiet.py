"""What the gates are fitted to: what is read at the subjects, and where they are to be quiet, at ordinary text, the
prompts about other subjects and the rest of the prompts.

Ordinary text also says how what is read is spread: the metric that all of it is whitened in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from palimpsest.files import shaped
from palimpsest.locating import (
    PROMPT_ALONE,
    about,
    kept_rows,
    queries_of,
    subject_rows,
    subject_vectors,
    subjects_alike,
)
from palimpsest.methods.memory import OrdinaryRow
from palimpsest.models import EditableModel, Encoded, Point
from palimpsest.provenance import digest
from palimpsest.requests import EditRequest, normalise
from palimpsest.solve import Factorised
from palimpsest.statistics import Cache, whole_identity
from palimpsest.training import prompts_apart_from, some_of
from palimpsest.wording import words

_BLOCK = 8192


@dataclass(frozen=True)
class Readings:
    """What a layer's MLP reads at the tokens of some texts.

    Arguments:
        texts: the texts, as `as_words` writes them.
        vectors: (tokens, width), in float32.
        text_of: (tokens,), index of each one's text.
    """

    texts: tuple[str, ...]
    vectors: Tensor
    text_of: Tensor

    @classmethod
    def of(
        cls, model: EditableModel, layer: int, texts: Sequence[str], rows: Sequence[Encoded], *, skips_first: bool
    ) -> Self:
        """Those of some rows, which belong to the texts."""
        if not rows:
            return cls.none(model)
        return cls.by_text(texts, queries_of(model, rows, layer=layer, skips_first=skips_first))

    @classmethod
    def none(cls, model: EditableModel) -> Self:
        """Those of no text."""
        nothing = torch.zeros(0, model.sites.d_model, device=model.device)
        return cls((), nothing, torch.zeros(0, dtype=torch.long, device=model.device))

    @classmethod
    def by_text(cls, texts: Sequence[str], vectors: Sequence[Tensor]) -> Self:
        """Of what was read at each text, (tokens, width)."""
        text_of = [torch.full((len(one),), index) for index, one in enumerate(vectors)]
        return cls(tuple(texts), torch.cat(list(vectors)), torch.cat(text_of).to(vectors[0].device))

    def joined(self, later: Readings) -> Readings:
        """Both."""
        texts = self.texts + later.texts
        text_of = torch.cat([self.text_of, later.text_of + len(self.texts)])
        return Readings(texts, torch.cat([self.vectors, later.vectors]), text_of)

    def telling_of(self, subject: str) -> Tensor:
        """(tokens,), whether each is of a text that names the subject."""
        name = as_words(subject)
        return torch.tensor([name in text for text in self.texts], device=self.text_of.device)[self.text_of]

    def of_text(self, index: int) -> Tensor:
        """(tokens, width), those of one text."""
        return self.vectors[self.text_of == index]


@dataclass(frozen=True)
class TextMetric:
    """How what a layer's MLP reads of ordinary text is spread, in which all readings are whitened.

    Arguments:
        mean: (width,).
        factor: of the covariance.
        constant: (width,), the direction along which the text stands nearest to 1: what a layer reads has a mean.
        text: the readings, whitened.
    """

    mean: Tensor
    factor: Factorised
    constant: Tensor
    text: Readings

    @classmethod
    def of(cls, text: Readings, damping: float) -> Self:
        """That of some readings; `damping` is a share of the mean eigenvalue."""
        vectors, mean, where = text.vectors, text.vectors.mean(dim=0), "what the MLP reads"
        centred = vectors - mean
        factor = Factorised(centred.T @ centred / len(vectors), where=where, damping=damping)
        moment = Factorised(vectors.T @ vectors / len(vectors), where=where, damping=damping)
        constant = moment.solve(mean[None])[0].to(vectors)
        return cls(mean, factor, constant, replace(text, vectors=_whitened(vectors, mean, factor)))

    def whitened(self, readings: Readings) -> Readings:
        """The same readings in the metric, in float32."""
        return replace(readings, vectors=_whitened(readings.vectors, self.mean, self.factor))


def _whitened(vectors: Tensor, mean: Tensor, factor: Factorised) -> Tensor:
    # In blocks: a solve is in float64.
    return torch.cat([factor.whiten(block - mean).float() for block in torch.split(vectors, _BLOCK)])


def as_words(text: str) -> str:
    """The folded words of a text with spaces around each, so that a name is found as a whole only, in any script.

    A possessive's `'s` is a word of its own.
    """
    parts = [part for word in words(normalise(text)) for part in re.findall(r"[^\W_]+", word)]
    return f" {' '.join(parts)} "


def ordinary_readings(model: EditableModel, layer: int, rows: Sequence[OrdinaryRow], cache: Cache) -> Readings:
    """Those of ordinary text, without first tokens, which take attention as nothing else does.

    Arguments:
        model: without patches.
        cache: where they are kept: many edits read the same text.
    """
    texts, encoded = [as_words(row.text) for row in rows], [row.encoded for row in rows]
    lengths = [max(0, len(row) - 1) for row in encoded]
    shape = sum(lengths), model.sites.d_model
    known = {
        "kind": "what an MLP reads",
        **whole_identity(model),
        "layer": layer,
        "dtype": str(model.module.dtype).removeprefix("torch."),
        "rows": digest([row.ids for row in encoded]),
    }
    kept = cache.read(known, lambda entry: shaped(entry.tensors["vectors"], *shape, name="vectors").float())
    if kept is not None:
        return Readings.by_text(texts, torch.split(kept.to(model.device), lengths))
    found = Readings.of(model, layer, texts, encoded, skips_first=True)
    cache.write(known, {"vectors": found.vectors})
    return found


def readings_at_subjects(
    model: EditableModel, layer: int, requests: Sequence[EditRequest], templates: Sequence[str]
) -> Readings:
    """Those at the requests' subjects behind every context, as of texts that name these only.

    What is written for a prompt alone is not wanted behind other texts.
    """
    point = Point("mlp.up", layer, "input")
    own = subject_vectors(model, subject_rows(model, requests, templates), [point])[point]
    alone = [request.id.endswith(PROMPT_ALONE) for request in requests]
    vectors = [one[:1] if is_alone else one for one, is_alone in zip(own, alone, strict=True)]
    return Readings.by_text([as_words(request.subject or "") for request in requests], vectors)


def readings_kept(model: EditableModel, layer: int, requests: Sequence[EditRequest]) -> Readings:
    """Those of the rows that are to be left alone beside what is written for a prompt alone, if anything is."""
    point, kept = Point("mlp.up", layer, "input"), kept_rows(model, requests)
    if kept is None:
        return Readings.none(model)
    return Readings.by_text([""] * len(kept.rows), list(subject_vectors(model, kept, [point])[point]))


def readings_beside(
    model: EditableModel, layer: int, requests: Sequence[EditRequest], *, others: int, alike: int, seed: int
) -> Readings:
    """Those of the requests' prompts about other subjects: well-known ones, and namesakes up to the name.

    What is too long for the model's context is left out, for nobody has asked for it.

    Arguments:
        others: well-known subjects for each request.
        alike: names for each request that begin or end as its own subject does.
    """
    draw = torch.Generator().manual_seed(seed)
    found: dict[tuple[int, ...], str] = {}
    for request in requests:
        for prompt in filter(model.fits, prompts_apart_from(request, others, draw)):
            found.setdefault(model.encode(prompt).prompt_ids, as_words(prompt))
        names = [about(request, name) for name in some_of(subjects_alike(request.subject or ""), alike, draw)]
        names = [other for other in names if model.fits(other.prompt)]
        # What follows a namesake reads as it does behind a well-known name.
        if names:
            ids = subject_rows(model, names)
            for other, (number,) in zip(names, ids.numbers.tolist(), strict=True):
                found.setdefault(ids.rows[number], as_words(other.subject or ""))
    rows = [Encoded(ids) for ids in found]
    return Readings.of(model, layer, list(found.values()), rows, skips_first=False)


def rest_of_prompts(model: EditableModel, layer: int, requests: Sequence[EditRequest]) -> Readings:
    """What is read in front of each request's subject's last token, as of texts in the requests' order."""
    ends = subject_rows(model, requests)
    rows = [Encoded(ends.rows[number]) for (number,) in ends.numbers.tolist()]
    found = [one[:-1] for one in queries_of(model, rows, layer=layer, skips_first=False)]
    return Readings.by_text([as_words(request.prompt) for request in requests], found)
