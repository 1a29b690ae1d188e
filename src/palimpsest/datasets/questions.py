"""Questions under `locality` and `portability`, as EasyEdit's editor takes them and as KnowEdit's files hold them.

A question is an object with a prompt and an answer. EasyEdit holds the questions of one kind as one object of lists,
KnowEdit as a list of objects; both allow several names of one answer as a list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from palimpsest.datasets.fields import as_text
from palimpsest.errors import DataError

PROMPTS = ("prompt", "prompts", "question", "questions", "New Question")
ANSWERS = ("ground_truth", "ground_truths", "answer", "answers", "expected", "target", "New Answer")
DEFAULT_KINDS: Mapping[str, str] = {"locality": "neighborhood", "portability": "one_hop"}


def by_kind(value: object, group: str) -> Iterator[tuple[str, Any]]:
    """The kinds of a group's questions with what stands under each.

    Arguments:
        value: what the field holds: an object of kinds; or questions without a kind, which are neighbours in the group
            `locality` and one hop away in `portability`.
        group: `locality` or `portability`.
    """
    if isinstance(value, Mapping) and not _is_question(value):
        yield from ((str(kind), entry) for kind, entry in value.items() if entry not in (None, [], {}, ""))
    elif isinstance(value, list):
        for entry in value:
            named = entry.get("kind") if isinstance(entry, Mapping) else None
            yield str(named or DEFAULT_KINDS[group]), entry
    elif value not in (None, "", {}):
        yield DEFAULT_KINDS[group], value


def questions(entry: object, where: str) -> Iterator[tuple[str, list[str]]]:
    """Each prompt under a kind with the names of its answer; no names where it has no answer.

    Arguments:
        entry: a text, an object of a prompt or a list of them and of answers, or a list of those.
        where: the field, for errors.

    Raises `DataError` for what is neither, and for lists of prompts and answers of different lengths.
    """
    if isinstance(entry, list):
        for one in entry:
            yield from questions(one, where)
    elif isinstance(entry, Mapping):
        prompt, answer = _value(entry, PROMPTS), _value(entry, ANSWERS)
        if prompt is None and answer is None and any(key in entry for key in PROMPTS):
            # The gap of an edit without such a question, in lists over many edits.
            return
        if prompt is None:
            raise DataError(
                "A question has no prompt.",
                expected="an object with `prompt` and `ground_truth`",
                found=repr(dict(entry))[:80],
                where=where,
            )
        yield from paired(prompt, answer, where)
    elif (text := as_text(entry)) is not None:
        yield text, []
    elif entry is not None:
        raise DataError(
            "A question cannot be read.",
            expected='text, or an object such as {"prompt": "...", "ground_truth": "..."}',
            found=repr(entry)[:80],
            where=where,
        )


def paired(prompt: object, answer: object, where: str) -> Iterator[tuple[str, list[str]]]:
    """A prompt with the names of its answer; of a list of prompts each with its own, or all with the one there is.

    Raises `DataError` for lists of different lengths.
    """
    if not isinstance(prompt, list):
        if prompt is not None:
            yield _prompt(prompt, where), list(names(answer))
        return
    if not isinstance(answer, list):
        each = [answer] * len(prompt)
    elif len(prompt) == 1:
        # The answer's list may stand for the list of prompts, or be the names of the one answer.
        each = answer if len(answer) == 1 else [answer]
    elif len(answer) == 1:
        each = answer * len(prompt)
    else:
        each = answer
    if len(each) != len(prompt):
        raise DataError(
            "There are not as many answers as prompts.",
            expected=f"{len(prompt)} answers for {len(prompt)} prompts, or one for all",
            found=f"{len(each)} answers",
            where=where,
        )
    for one, its in zip(prompt, each, strict=True):
        yield from paired(one, its, where)


def names(value: object) -> Iterator[str]:
    """Every text in a text, a list of texts or a list of lists of texts, which are names of several right answers."""
    if isinstance(value, list):
        for one in value:
            yield from names(one)
    else:
        text = as_text(value)
        if text is not None and text.strip():
            yield text


def _is_question(value: Mapping[str, Any]) -> bool:
    return _value(value, PROMPTS) is not None and not isinstance(_value(value, PROMPTS), Mapping)


def _value(entry: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


def _prompt(value: Any, where: str) -> str:
    text = as_text(value)
    if text is None:
        raise DataError("A question's prompt is not text.", expected="text", found=repr(value)[:80], where=where)
    return text
