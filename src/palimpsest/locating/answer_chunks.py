"""A long answer in chunks, each with a vector of its own at the token before it (AnyEdit, arXiv:2502.05628).

One vector cannot say a passage. So the answer is cut every few tokens, and each chunk is written like a separate fact:
its prompt is the request's with the chunks before, its place is the last token of that, its answer is the chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from palimpsest.locating.contexts import CLEAN, check_templates, encode_in_context
from palimpsest.locating.subject_vectors import SubjectRows
from palimpsest.models import EditableModel, require_decoder
from palimpsest.requests import EditRequest


@dataclass(frozen=True)
class AnswerChunk:
    """One chunk of an answer, in one context.

    Arguments:
        number: which chunk, from 0.
        ids: the prompt and the answer up to the chunk's end.
        column: the last token before the chunk.
        earlier: the same of the chunks before.
    """

    number: int
    ids: tuple[int, ...]
    column: int
    earlier: tuple[int, ...]

    @property
    def labels(self) -> tuple[int, ...]:
        """The chunk's own tokens."""
        return self.ids[self.column + 1 :]


def chunk_id(request: EditRequest, number: int) -> str:
    """Returns a chunk's name in records: the edit's id and the chunk's number, from 1."""
    return f"{request.id}#{number + 1}"


def answer_chunks(model: EditableModel, request: EditRequest, template: str, size: int) -> list[AnswerChunk]:
    """The chunks of a request's answer behind its prompt in a context, of `size` tokens, the last one perhaps of less.

    Raises `DataError` for a prompt or an answer without tokens, and for a text longer than the model's context.
    """
    encoded = encode_in_context(model, request, template, request.target_new)
    before, length = len(encoded.prompt_ids), len(encoded.target_ids)
    columns = [before + start - 1 for start in range(0, length, size)]
    return [
        AnswerChunk(number, encoded.ids[: min(column + 1 + size, before + length)], column, tuple(columns[:number]))
        for number, column in enumerate(columns)
    ]


def chunk_rows(
    model: EditableModel, requests: Sequence[EditRequest], size: int, templates: Sequence[str] = CLEAN
) -> SubjectRows:
    """The rows of all chunks, in the order of the requests and of their chunks; nothing is computed.

    Arguments:
        requests: they need no subject.
        size: tokens in a chunk.
        templates: contexts, each ending with `{}` for the prompt; the first is `{}` alone.

    Raises `ModelError` for an encoder-decoder, `ConfigError` for an invalid template, `DataError` as `answer_chunks`.
    """
    require_decoder(model)
    check_templates(templates)
    distinct: dict[tuple[int, ...], int] = {}
    numbers = [
        [distinct.setdefault(one.ids[: one.column + 1], len(distinct)) for one in in_all_contexts]
        for request in requests
        for in_all_contexts in each_chunk(model, request, size, templates)
    ]
    return SubjectRows(tuple(distinct), torch.tensor(numbers))


def each_chunk(
    model: EditableModel, request: EditRequest, size: int, templates: Sequence[str]
) -> Iterator[tuple[AnswerChunk, ...]]:
    """Each chunk of an answer, in all contexts."""
    return zip(*(answer_chunks(model, request, template, size) for template in templates), strict=True)
