"""Training examples of editors: edits with rephrasings that must follow, and prompts that must not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from palimpsest.errors import DataError
from palimpsest.requests import EditRequest, normalise

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

_VALIDATION_SHARE = 10


@dataclass(frozen=True)
class EditExample:
    """One edit to train on.

    Arguments:
        request: the edit.
        rephrasings: other wordings of its prompt, at least one.
        unrelated: (prompt, the answer it has and must keep) pairs.
    """

    request: EditRequest
    rephrasings: tuple[str, ...]
    unrelated: tuple[tuple[str, str], ...]


def editing_examples(model: EditableModel, requests: Sequence[EditRequest]) -> list[EditExample]:
    """Examples from edits: probes of generality are rephrasings, probes of locality are unrelated prompts.

    A locality probe that names the fact it asks about is used only where that fact is among these edits, so that
    nothing is learned about facts outside the training data. One without an answer gets the model's own. An edit
    without a locality probe gets other edits' prompts with their old answers.

    Raises `DataError` when there are no edits, or an edit has no rephrasing; nothing is computed before.
    """
    if not requests:
        raise DataError("There are no edits to train on.", expected="a data set of edits", found="an empty one")
    without = [request for request in requests if not _rephrasings(request)]
    if without:
        raise DataError(
            "An editor is trained on rephrasings, and some edits have none.",
            expected="at least one rephrasing for every edit: `rephrase`, or probes of kind generality",
            found=f"{len(without)} of {len(requests)} edits without",
            where=f"the edit {without[0].id}: {without[0].prompt!r}",
            remedy="add rephrasings, or leave these edits out, as `palimpsest train --skip-bad` does",
        )
    known = {request.fact for request in requests}
    asked = {
        probe.prompt: probe.expected
        for request in requests
        for probe in request.probes
        if probe.is_locality and (probe.fact is None or probe.fact in known)
    }
    open_prompts = [prompt for prompt, answer in asked.items() if not answer]
    with model.answering_at_once():
        answers = dict(zip(open_prompts, model.generate(open_prompts) if open_prompts else [], strict=True))
    answered = {prompt: answer or answers[prompt] for prompt, answer in asked.items()}
    others = [(request.prompt, request.target_old) for request in requests if request.target_old]
    examples = []
    for number, request in enumerate(requests):
        own = [probe.prompt for probe in request.probes if probe.is_locality and answered.get(probe.prompt)]
        unrelated = [(prompt, answered[prompt]) for prompt in own] or _others(others, request, number)
        examples.append(EditExample(request, _rephrasings(request), tuple(unrelated)))
    _require_unrelated(examples)
    return examples


def split_examples(
    examples: Sequence[EditExample], most: int, seed: int
) -> tuple[list[EditExample], list[EditExample]]:
    """Examples to train on and to validate with; no subject is in both.

    Arguments:
        most: how many to validate with, at most; a tenth if that is less.
    """
    subjects = sorted({_subject(one) for one in examples})
    random.Random(f"{seed}|validation").shuffle(subjects)
    size, chosen, count = min(most, len(examples) // _VALIDATION_SHARE), set(), 0
    by_subject: dict[str, list[EditExample]] = {}
    for one in examples:
        by_subject.setdefault(_subject(one), []).append(one)
    for subject in subjects:
        if count + len(by_subject[subject]) > max(size, 1):
            continue
        chosen.add(subject)
        count += len(by_subject[subject])
    validation = [one for one in examples if _subject(one) in chosen]
    own = {one.request.fact for one in validation} - {None}
    training = [_without(one, own) for one in examples if _subject(one) not in chosen]
    return [one for one in training if one.unrelated], validation


def _without(example: EditExample, facts: set[str | None]) -> EditExample:
    """The example without what it says of facts that are validated with."""
    hidden = {probe.prompt for probe in example.request.probes if probe.fact in facts and probe.fact is not None}
    return replace(example, unrelated=tuple(pair for pair in example.unrelated if pair[0] not in hidden))


def _rephrasings(request: EditRequest) -> tuple[str, ...]:
    return tuple(probe.prompt for probe in request.probes if probe.kind == "generality")


def _others(pairs: Sequence[tuple[str, str]], request: EditRequest, number: int) -> list[tuple[str, str]]:
    draw = random.Random(f"unrelated|{number}")
    some = draw.sample(list(pairs), min(8, len(pairs)))
    return [pair for pair in some if normalise(pair[0]) != normalise(request.prompt)]


def _subject(example: EditExample) -> str:
    return example.request.subject or example.request.prompt


def _require_unrelated(examples: Sequence[EditExample]) -> None:
    bare = [one for one in examples if not one.unrelated]
    if bare:
        raise DataError(
            "An editor is trained to keep other prompts, and some edits come with none.",
            expected="a locality probe for every edit, or other edits with an old answer as replacements",
            found=f"{len(bare)} of {len(examples)} edits without",
            where=f"the edit {bare[0].request.id}: {bare[0].request.prompt!r}",
            remedy="add `locality` prompts, or `target_old` to the edits",
        )
