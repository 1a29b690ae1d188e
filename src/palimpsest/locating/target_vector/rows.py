"""From facts to rows of ids: every context before every prompt, and the essence prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from palimpsest.errors import DataError
from palimpsest.locating.answer_chunks import AnswerChunk, each_chunk
from palimpsest.locating.contexts import check_templates, encode_in_context, in_context
from palimpsest.locating.target_vector.options import TargetOptions
from palimpsest.models import EditableModel, Encoded, subject_last_token
from palimpsest.requests import EditRequest, normalise


@dataclass(frozen=True)
class TargetRow:
    """One row that a fact's vector is added to.

    Arguments:
        fact: number of the fact.
        rank: number of the row among the fact's, in the order of the contexts; None for the essence prompt.
        ids: what the model reads. An answer's last token is not among them: nothing is predicted from it.
        column: the subject's last token, or the last one before a chunk of the answer.
        places: columns whose predictions count.
        labels: token wanted at each place; none for the essence prompt.
        earlier: columns that vectors found before are added at.
    """

    fact: int
    rank: int | None
    ids: tuple[int, ...]
    column: int
    places: tuple[int, ...]
    labels: tuple[int, ...] = ()
    earlier: tuple[int, ...] = ()

    @property
    def suffix_length(self) -> int:
        """Tokens from the subject's last one on."""
        return len(self.ids) - self.column


def fact_rows(
    model: EditableModel, requests: Sequence[EditRequest], templates: Sequence[str], options: TargetOptions
) -> list[list[TargetRow]]:
    """All rows of each fact, its contexts in the order of the templates; nothing is computed.

    Raises `ConfigError` for a template that does not end with its only `{}`, `DataError` for no facts at all, a
    subject or a target without tokens, and a row longer than the model's context.
    """
    check_templates(templates)
    if not requests:
        raise _no_facts()
    needs_essence = options.search == "adam" and (options.kl_factor > 0 or options.relax_when_said)
    rows = []
    for fact, request in enumerate(requests):
        own = [_rewriting_row(model, request, fact, rank, template) for rank, template in enumerate(templates)]
        rows.append([*own, _essence_row(model, request, fact, options)] if needs_essence else own)
    return rows


def rows_by_chunk(
    model: EditableModel, requests: Sequence[EditRequest], templates: Sequence[str], size: int
) -> list[list[list[TargetRow]]]:
    """For each fact and each chunk of its answer the rows in the order of the templates; nothing is computed.

    Raises as `fact_rows` does, but for subjects, which are not needed.
    """
    check_templates(templates)
    if not requests:
        raise _no_facts()
    return [
        [
            [_chunk_row(one, fact, rank) for rank, one in enumerate(in_all_contexts)]
            for in_all_contexts in each_chunk(model, request, size, templates)
        ]
        for fact, request in enumerate(requests)
    ]


def sharing_keys(
    rows: Sequence[Sequence[TargetRow]], requests: Sequence[EditRequest], by: Literal["key", "subject"]
) -> list[list[int]]:
    """Numbers of the facts, those together that are to get one vector; see `TargetOptions.joint_by`."""
    alike: dict[object, list[int]] = {}
    for fact, own in enumerate(rows):
        same = own[0].ids[: own[0].column + 1] if by == "key" else normalise(requests[fact].subject or "")
        alike.setdefault(same, []).append(fact)
    return list(alike.values())


def joined(rows: Sequence[Sequence[TargetRow]]) -> list[TargetRow]:
    """The rows of several facts as those of one, numbered through."""
    every = [row for own in rows for row in own]
    return [replace(row, rank=rank) for rank, row in enumerate(every)]


def _chunk_row(chunk: AnswerChunk, fact: int, rank: int) -> TargetRow:
    last = chunk.column + len(chunk.labels)
    return TargetRow(
        fact=fact,
        rank=rank,
        ids=chunk.ids[:-1],
        column=chunk.column,
        places=tuple(range(chunk.column, last)),
        labels=chunk.labels,
        earlier=chunk.earlier,
    )


def _no_facts() -> DataError:
    return DataError("There are no facts to search vectors for.", expected="at least one request", found="none")


def _rewriting_row(model: EditableModel, request: EditRequest, fact: int, rank: int, template: str) -> TargetRow:
    placed = in_context(request, template)
    encoded = encode_in_context(model, request, template, request.target_new)
    last = len(encoded.prompt_ids) - 1
    return TargetRow(
        fact=fact,
        rank=rank,
        ids=encoded.ids[:-1],
        column=subject_last_token(model.tokenizer, placed, chat=model.chat),
        places=tuple(last + offset for offset in range(len(encoded.target_ids))),
        labels=encoded.target_ids,
    )


def _essence_row(model: EditableModel, request: EditRequest, fact: int, options: TargetOptions) -> TargetRow:
    placed = replace(request, prompt=options.essence.replace("{}", request.subject or ""), probes=())
    encoded: Encoded = model.encode(placed.prompt)
    column = subject_last_token(model.tokenizer, placed, chat=model.chat)
    place = column if options.kl_position == "subject" else len(encoded) - 1
    return TargetRow(fact=fact, rank=None, ids=encoded.ids[: place + 1], column=column, places=(place,))
