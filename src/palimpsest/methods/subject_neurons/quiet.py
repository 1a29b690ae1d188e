"""What the gates are to be quiet at: ordinary text, the prompts about other subjects, the rest of the prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from palimpsest.locating import about, queries_of, subject_rows, subjects_alike, well_known_subjects
from palimpsest.methods.memory import OrdinaryRow
from palimpsest.models import EditableModel, Encoded
from palimpsest.requests import EditRequest, normalise
from palimpsest.wording import words


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
        found = queries_of(model, rows, layer=layer, skips_first=skips_first)
        text_of = [torch.full((len(one),), index) for index, one in enumerate(found)]
        return cls(tuple(texts), torch.cat(found), torch.cat(text_of).to(found[0].device))

    def joined(self, later: Readings) -> Readings:
        """Both."""
        texts = self.texts + later.texts
        text_of = torch.cat([self.text_of, later.text_of + len(self.texts)])
        return Readings(texts, torch.cat([self.vectors, later.vectors]), text_of)

    def telling_of(self, subject: str) -> Tensor | None:
        """(tokens,), whether each is of a text that names the subject; `None` where none is."""
        name = as_words(subject)
        told = [name in text for text in self.texts]
        return torch.tensor(told, device=self.text_of.device)[self.text_of] if any(told) else None


def as_words(text: str) -> str:
    """The folded words of a text with spaces around each, so that a name is found as a whole only, in any script.

    A possessive's `'s` is a word of its own.
    """
    parts = [part for word in words(normalise(text)) for part in re.findall(r"[^\W_]+", word)]
    return f" {' '.join(parts)} "


def ordinary_readings(model: EditableModel, layer: int, rows: Sequence[OrdinaryRow]) -> Readings:
    """Those of ordinary text, without first tokens, which take attention as nothing else does."""
    return Readings.of(
        model, layer, [as_words(row.text) for row in rows], [row.encoded for row in rows], skips_first=True
    )


def readings_beside(
    model: EditableModel, layer: int, requests: Sequence[EditRequest], *, others: int, alike: int, seed: int
) -> Readings:
    """Those of the requests' prompts about other subjects: well-known ones, and namesakes up to the name.

    Arguments:
        others: well-known subjects for each request.
        alike: names for each request that begin or end as its own subject does.
    """
    draw = torch.Generator().manual_seed(seed)
    found: dict[tuple[int, ...], str] = {}
    for request in requests:
        prompt = normalise(request.prompt)
        known = [name for name in well_known_subjects(request.prompt) if normalise(name) not in prompt]
        for other in (about(request, name) for name in _drawn(known, others, draw)):
            found.setdefault(model.encode(other.prompt).prompt_ids, as_words(other.prompt))
        names = [about(request, name) for name in _drawn(subjects_alike(request.subject or ""), alike, draw)]
        # What follows a namesake reads as it does behind a well-known name.
        if names:
            ids = subject_rows(model, names)
            for other, (number,) in zip(names, ids.numbers.tolist(), strict=True):
                found.setdefault(ids.rows[number], as_words(other.subject or ""))
    rows = [Encoded(ids) for ids in found]
    return Readings.of(model, layer, list(found.values()), rows, skips_first=False)


def rest_of_prompts(model: EditableModel, layer: int, requests: Sequence[EditRequest]) -> Iterator[Tensor]:
    """For each request (tokens, width), what is read in front of its subject's last token."""
    ends = subject_rows(model, requests)
    rows = [Encoded(ends.rows[number]) for (number,) in ends.numbers.tolist()]
    yield from (one[:-1] for one in queries_of(model, rows, layer=layer, skips_first=False))


def _drawn(names: Sequence[str], count: int, draw: torch.Generator) -> list[str]:
    return [names[index] for index in torch.randperm(len(names), generator=draw).tolist()[:count]]
