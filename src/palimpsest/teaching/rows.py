"""Sentences as short training rows, with the subject-bottleneck attention mask.

A row begins at a sentence's start, because a prompt stands at position 0 when a model is used, and holds two
or three sentences. In masked rows whatever follows a subject reads it through its last token alone; without
that a small model reads the subject's words from the prompt's last position, and no single place holds the
fact.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from palimpsest.errors import DataError
from palimpsest.world import Sentence

T = TypeVar("T")


@dataclass(frozen=True)
class SentenceIds:
    """A sentence's token ids; `subject` and `object` are half-open token spans."""

    ids: tuple[int, ...]
    subject: tuple[int, int]
    object: tuple[int, int]


@dataclass(frozen=True)
class EncodedSentence:
    """A sentence as it stands at a row's start and, with a leading space, behind another sentence."""

    name: str
    first: SentenceIds
    later: SentenceIds


@dataclass(frozen=True)
class RowBatch:
    """Rows as tensors: `ids` [rows, length] (long), `labels` alike, `weights` [rows, length] (the loss's
    weight of
    each label, 0 on padding) and `mask` [rows, 1, length, length], additive: 0 where query (third) may see
    key.
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor
    mask: Tensor
    num_sentences: int

    @property
    def num_tokens(self) -> int:
        """How many labels count."""
        return int((self.weights > 0).sum())


def encode(sentences: Sequence[Sentence], tokenizer: PreTrainedTokenizerFast) -> list[EncodedSentence]:
    """Token ids and spans of sentences.

    Raises:
        DataError: a prompt and its object share a token.
    """
    first = _encode(sentences, tokenizer, "")
    later = _encode(sentences, tokenizer, " ")
    return [EncodedSentence(s.subject or s.prompt, a, b) for s, a, b in zip(sentences, first, later, strict=True)]


def subject_mask(length: int, subjects: Sequence[tuple[int, int]]) -> Tensor:
    """The bottleneck of one row: [length, length] booleans, True where the query (row) may see the key
    (column).

    It is causal, and positions behind a subject see its last token but none of its earlier ones.
    """
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    for start, end in subjects:
        allowed[end:, start : max(start, end - 1)] = False
    return allowed


def shuffled(examples: Sequence[T], rng: random.Random) -> Iterator[T]:
    """Examples without end, every epoch in another order.

    Raises:
        DataError: there are none.
    """
    if not examples:
        raise DataError("There are no sentences to train on.")
    while True:
        yield from rng.sample(examples, len(examples))


class RowPacker:
    """Draws shuffled sentences without end, epoch after epoch, and packs them into batches.

    Arguments:
        sentences: what is read; every epoch shows each once.
        rng: decides the order of sentences and which rows are masked.
        end_id, pad_id: the tokens behind a row's last sentence.
        masked_share: share of the rows with the subject-bottleneck mask.
        other_weight: the loss's weight on tokens that do not belong to an object.
    """

    def __init__(
        self,
        sentences: Sequence[EncodedSentence],
        rng: random.Random,
        *,
        end_id: int,
        pad_id: int,
        masked_share: float,
        other_weight: float,
    ) -> None:
        self.rng = rng
        self.end_id = end_id
        self.pad_id = pad_id
        self.masked_share = masked_share
        self.other_weight = other_weight
        self.consumed = 0
        self._stream = shuffled(sentences, rng)
        self._next = next(self._stream)

    def batch(self, rows: int, length: int) -> RowBatch:
        """The next batch: `rows` rows of at most `length` tokens, or of one sentence where that is longer.

        `consumed` counts the sentences read so far.
        """
        before = self.consumed
        packed = [self._row(length) for _ in range(rows)]
        width = max(len(ids) for ids, _, _ in packed)
        ids = torch.full((rows, width), self.pad_id)
        weights = torch.zeros(rows, width)
        mask = torch.zeros(rows, 1, width, width)
        hidden = torch.finfo(mask.dtype).min
        for index, (row, row_weights, subjects) in enumerate(packed):
            ids[index, : len(row)] = torch.tensor(row)
            weights[index, : len(row)] = torch.tensor(row_weights)
            if self.rng.random() >= self.masked_share:
                subjects = []
            mask[index, 0].masked_fill_(~subject_mask(width, subjects), hidden)
        labels = ids.roll(-1, dims=1)
        weights = weights.roll(-1, dims=1)
        weights[:, -1] = 0
        return RowBatch(ids, labels, weights, mask, self.consumed - before)

    def _row(self, length: int) -> tuple[list[int], list[float], list[tuple[int, int]]]:
        ids: list[int] = []
        weights: list[float] = []
        subjects: list[tuple[int, int]] = []
        while True:
            encoded = self._next.later if ids else self._next.first
            # A sentence longer than a row has one to itself.
            if ids and len(ids) + len(encoded.ids) > length:
                break
            offset = len(ids)
            ids.extend(encoded.ids)
            start, end = encoded.object
            # The "." behind the object is part of the answer: a model that does not stop has not answered.
            weights.extend(1.0 if start <= i <= end else self.other_weight for i in range(len(encoded.ids)))
            subjects.append((offset + encoded.subject[0], offset + encoded.subject[1]))
            self._next = next(self._stream)
            self.consumed += 1
        if len(ids) < length:
            ids.append(self.end_id)
            weights.append(self.other_weight)
        return ids, weights, subjects


def _encode(sentences: Sequence[Sentence], tokenizer: PreTrainedTokenizerFast, lead: str) -> list[SentenceIds]:
    output = tokenizer([lead + s.text for s in sentences], return_offsets_mapping=True, add_special_tokens=False)
    encoded = []
    for s, ids, offsets in zip(sentences, output["input_ids"], output["offset_mapping"], strict=True):
        shift = len(lead)
        subject = _span(offsets, s.start + shift, s.end + shift)
        # Behind the prompt's last character: a space may be a token of its own, and offsets leave spaces out.
        start = _span(offsets, len(s.prompt) + shift - 1, len(s.prompt) + shift)[1]
        end = _span(offsets, len(s.text) + shift - 2, len(s.text) + shift - 1)[1]
        if offsets[start - 1][1] > len(s.prompt) + shift:
            raise DataError("A prompt and its object share a token.", found=repr(s.text))
        obj = (start, end)
        encoded.append(SentenceIds(tuple(ids), subject, obj))
    return encoded


def _span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The half-open token span that overlaps the characters [start, end): (0, 0) if there are none."""
    inside = [index for index, (left, right) in enumerate(offsets) if left < end and right > start]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)
