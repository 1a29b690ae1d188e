"""Subjects at the place where a model without a start token keeps its attention sink.

Many decoders let the first token of a sequence take the attention that nothing else needs. Its keys and values are then
those of the place, not of the word: far longer than others, and nearly the same for every text. Behind some first
tokens the second or third one is such a place too: in SmolLM2 that of `Columbo`, in front of which nothing stands. A
weight that answers to such a key changes every text. So where a subject ends there, the edit is written twice: behind a
context, where the subject's token has a key of its own, and, for the prompt alone, at the next token that is no such
place, which has read the subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from palimpsest.locating.contexts import CLEAN, encode_in_context, in_context
from palimpsest.locating.subject_vectors import SubjectRows, subject_rows, subject_vectors
from palimpsest.models import EditableModel, Point, subject_last_token, token_spans
from palimpsest.requests import EditRequest

PROMPT_ALONE = " (prompt alone)"
"""What the name of an edit's second part ends with."""

MARGIN = 0.2
"""How much more a sink's key is like another word's at the first place than like itself behind contexts: cosines are
1 and 0 or so in models that have a sink, and 0.5 and 0.9 where the place is like any other."""

_SINK = 0.5
"""Likeness to another word's key at the first place from which on a token after a subject counts as a sink too."""

_HAS_SINK = 0.8
"""Likeness of two words' keys at the first place from which on that is a sink: 0.9 to 1 where it is, and at most 0.7 in
models with random weights."""

_STEM = 4

OTHERS = 16
"""Words in the subject's place whose keys are kept from changing."""

OWN_CONTEXTS = ("It is said that {}", "As everyone knows, {}")
"""Contexts to compare with, and to write in, where an edit has none."""


def apart_from_sink(
    model: EditableModel, requests: Sequence[EditRequest], templates: Sequence[str], layer: int
) -> tuple[list[EditRequest], dict[str, Any]]:
    """The requests, those at an attention sink in two parts; and a JSON-ready record, empty if there are none.

    Arguments:
        requests: facts with subjects.
        templates: contexts of the edit, the first of which is the prompt alone.
        layer: the layer whose keys decide: where target vectors are searched.

    Raises as `subject_vectors.subject_rows` does.
    """
    contexts = [*templates[1:3], *OWN_CONTEXTS][:2]
    point = Point("mlp.down", layer, "input")
    place = _other_words(model, point)
    # Elsewhere than at the first place there is a sink only if that is one.
    has_sink = float(torch.cosine_similarity(place[0], place[1], dim=0)) > _HAS_SINK
    asked = [request for request in requests if has_sink or _begins(model, request)]
    if not asked:
        return list(requests), {}
    like = _likeness(model, subject_rows(model, asked), point, place)
    first = [
        (request, others)
        for request, others in zip(asked, like, strict=True)
        # A prompt that begins with its subject has to fit behind the contexts, for it is written there.
        if others > MARGIN and (_begins(model, request) or _fits_behind(model, request, contexts))
    ]
    if not first:
        return list(requests), {}
    rows = subject_rows(model, [request for request, _ in first], (*CLEAN, *contexts))
    keys = subject_vectors(model, rows, [point])[point]
    own = torch.cosine_similarity(keys[:, 0], keys[:, 1:].mean(1), dim=-1).tolist()
    # The key of a sink is the place's: it is more like another word's at the first place than like its own elsewhere.
    sunk = {
        request.id: {"like_itself": itself, "like_others": others}
        for (request, others), itself in zip(first, own, strict=True)
        if others - itself > MARGIN
    }
    parts: list[EditRequest] = []
    unwritten: list[str] = []
    for request in requests:
        if request.id not in sunk:
            parts.append(request)
            continue
        for template in templates:
            # Both texts have to fit before the prompt; from here on the first one counts as the prompt's own.
            encode_in_context(model, request, template.replace("{}", contexts[0]), request.target_new)
        parts.append(in_context(request, contexts[0]))
        alone = _after_subject(model, request, point, place)
        if alone is None:
            unwritten.append(request.id)
        else:
            parts.append(alone)
    return parts, {"edits": sunk, "contexts": contexts[:1], "unwritten": unwritten} if sunk else {}


@torch.no_grad()
def kept_rows(model: EditableModel, requests: Sequence[EditRequest]) -> SubjectRows | None:
    """Rows whose keys are to be left alone beside those of second parts, (rows, 1); `None` if there is no such part.

    The token after a subject reads much alike whatever the subject is. So the same rows with other words in place of
    the first token, those with the most similar embeddings, are kept from changing.
    """
    alone = [request for request in requests if request.id.endswith(PROMPT_ALONE)]
    if not alone:
        return None
    rows: dict[tuple[int, ...], None] = {}
    for row in subject_rows(model, alone).rows:
        rows |= {(other, *row[1:]): None for other in _similar_words(model, row[0])}
    return SubjectRows(tuple(rows), torch.arange(len(rows))[:, None])


def first_token_notes(record: dict[str, Any]) -> list[str]:
    """Returns notes on the record for users."""
    if not record:
        return []
    sunk = record["edits"]
    said = [
        f"In the prompt of {len(sunk)} edit(s) the subject stands where this model has its attention sink: edit"
        f" {', '.join(list(sunk)[:5])}. They are written behind a context, and for the prompt alone at a token after"
        " the subject."
    ]
    if record["unwritten"]:
        said.append(
            "No token that could be written at follows the subject, so these edits hold behind other text only: edit "
            + ", ".join(record["unwritten"][:5])
        )
    return said


def _other_words(model: EditableModel, point: Point) -> Tensor:
    """(words, width), keys of other words at the beginning of a sequence."""
    rows = [model.encode(context.replace("{}", "")).prompt_ids[:1] for context in OWN_CONTEXTS]
    return subject_vectors(model, SubjectRows(tuple(rows), torch.arange(len(rows))[:, None]), [point])[point][:, 0]


def _similar_words(model: EditableModel, word: int) -> list[int]:
    """Tokens with embeddings like a token's that begin a word as it does and are no form of the same word."""
    weight: Tensor = model.sites.module("embed").weight  # type: ignore[assignment]
    embeddings = weight.detach().float()
    likeness = torch.cosine_similarity(embeddings, embeddings[word].unsqueeze(0), dim=-1)
    special, own = set(model.tokenizer.all_special_ids), model.tokenizer.decode([word])
    found: list[int] = []
    for other in likeness.topk(min(50 * OTHERS, len(likeness))).indices.tolist():
        text = model.tokenizer.decode([other])
        begins_alike = (
            text[:1].isspace() == own[:1].isspace() and text.strip()[:1].isupper() == own.strip()[:1].isupper()
        )
        stem = own.strip().casefold()[:_STEM]
        if other not in special and begins_alike and not text.strip().casefold().startswith(stem):
            found.append(other)
        if len(found) == OTHERS:
            break
    return found


def _begins(model: EditableModel, request: EditRequest) -> bool:
    """Whether the prompt begins with its subject, and that is one token."""
    return subject_last_token(model.tokenizer, request, chat=model.chat) == 0


def _fits_behind(model: EditableModel, request: EditRequest, contexts: Sequence[str]) -> bool:
    return all(model.fits(in_context(request, context).prompt) for context in contexts)


def _likeness(model: EditableModel, rows: SubjectRows, point: Point, place: Tensor) -> list[float]:
    """How much each row's key is like those of other words at the beginning of a sequence: the mean cosine."""
    keys = subject_vectors(model, rows, [point])[point][:, 0]
    found: list[float] = torch.cosine_similarity(keys[:, None], place[None], dim=-1).mean(1).tolist()
    return found


def _after_subject(model: EditableModel, request: EditRequest, point: Point, place: Tensor) -> EditRequest | None:
    """The same edit with what follows as a part of its subject, up to the next token that is no sink; `None` if there
    is no such token.
    """
    start, _ = request.subject_span()
    # A token may hold more than the subject, as Chinese ones do: what comes next begins behind it.
    own = subject_last_token(model.tokenizer, request, chat=model.chat)
    for first, last in token_spans(model.tokenizer, request.prompt, chat=model.chat)[own + 1 :]:
        if request.prompt[first:last].strip():
            alone = replace(request, subject=request.prompt[start:last], probes=(), id=request.id + PROMPT_ALONE)
            if _likeness(model, subject_rows(model, [alone]), point, place)[0] < _SINK:
                return alone
    return None
