"""Facts that a model knows: of a draw, those whose old answer it gives unasked for anything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from palimpsest.answers import after_beginning, after_two_sentences, gives_old, is_reply_to, new_names, old_names
from palimpsest.errors import DataError, OutputError
from palimpsest.evaluation import room_for
from palimpsest.files import FileKind, put_aside, taking_turns, write_json
from palimpsest.stopwatch import Progress, silent

if TYPE_CHECKING:
    from palimpsest.datasets import Dataset
    from palimpsest.models import EditableModel
    from palimpsest.requests import EditRequest

_ASKED_AT_ONCE = 64
_KNOWN = FileKind(DataError, "What a model knows cannot be read.", expected="what a recipe's run wrote")


class _Known(BaseModel):
    """Numbers of the facts in the data set, and how many were asked."""

    facts: list[int]
    asked: int


def asked_once(
    file: Path, data: Dataset, ask: Callable[[], tuple[Dataset, dict[str, int]]]
) -> tuple[Dataset, dict[str, int]]:
    """Returns the result of `known_facts`, cached in a file of the run for other workers and for resuming.

    A damaged file is put aside. Raises `OutputError` when it cannot be written.
    """
    try:
        with taking_turns(file):
            if (kept := _kept(file, len(data))) is not None:
                known = tuple(data.requests[place] for place in kept.facts)
                return replace(data, requests=known), {"asked": kept.asked, "known": len(known)}
            found, account = ask()
            places = {id(request): place for place, request in enumerate(data.requests)}
            write_json(file, {"facts": [places[id(one)] for one in found.requests], "asked": account["asked"]})
            return found, account
    except OSError as error:
        raise OutputError("What the model knows cannot be kept.", found=str(error), where=str(file)) from error


def _kept(file: Path, num_facts: int) -> _Known | None:
    if not file.exists():
        return None
    with suppress(DataError):
        kept = _KNOWN.record(file, _Known)
        if all(0 <= place < num_facts for place in kept.facts):
            return kept
    put_aside(file)
    return None


def known_facts(
    model: EditableModel,
    data: Dataset,
    num_edits: int | None,
    seed: int,
    *,
    max_new_tokens: int | None = None,
    progress: Progress = silent,
) -> tuple[Dataset, dict[str, int]]:
    """The first facts of a draw whose old answer the model gives, by `palimpsest.answers`, and how many were asked.

    Arguments:
        num_edits: how many to find; `None` asks all facts, in their order.
        progress: told "known facts" with how many were found and wanted, or were asked of all.

    Facts without an old answer, and prompts that the model has no room for, are passed over. Raises `DataError` when
    there are fewer.
    """
    drawn = data.requests if num_edits is None else data.sample(len(data), seed).requests
    askable = [request for request in drawn if request.target_old is not None]
    found: list[EditRequest] = []
    asked = 0
    for start in range(0, len(askable), _ASKED_AT_ONCE):
        for request, knows in zip(
            askable[start : start + _ASKED_AT_ONCE],
            gives_old_answers(model, askable[start : start + _ASKED_AT_ONCE], max_new_tokens),
            strict=True,
        ):
            asked += 1
            found += [request] if knows else []
            if len(found) == num_edits:
                progress("known facts", num_edits, num_edits)
                return replace(data, requests=tuple(found)), {"asked": asked, "known": len(found)}
        progress("known facts", *((asked, len(askable)) if num_edits is None else (len(found), num_edits)))
    if not found or num_edits is not None:
        raise DataError(
            "The model knows too few of the facts.",
            expected=f"the old answer to {num_edits or 1} of them or more",
            found=f"{len(found)} of {asked}",
            where=f"data set {data.name!r}",
            remedy="ask for fewer edits, take a larger data set, or teach the old answers first with `prepare`",
        )
    return replace(data, requests=tuple(found)), {"asked": asked, "known": len(found)}


def gives_old_answers(
    model: EditableModel, requests: Sequence[EditRequest], max_new_tokens: int | None = None
) -> list[bool]:
    """Whether a model, as it is now, gives each edit's old answer; no where its prompt leaves no room for one."""
    room = room_for(model, requests, max_new_tokens)
    is_chat = model.chat is not None
    names = [name for request in requests for name in (*new_names(request), *old_names(request))]
    rules = {False: after_beginning(names), True: after_two_sentences(room.characters)}
    texts: dict[str, str] = {}
    for is_reply, until in rules.items():
        asked = [one.prompt for one in requests if is_reply_to(one.prompt, is_chat=is_chat) is is_reply]
        prompts = [prompt for prompt in dict.fromkeys(asked) if _fits(model, prompt, room.tokens)]
        if prompts:
            texts |= zip(prompts, model.generate(prompts, max_new_tokens=room.tokens, until=until), strict=True)
    return [one.prompt in texts and gives_old(one, texts[one.prompt], is_chat=is_chat) for one in requests]


def _fits(model: EditableModel, prompt: str, tokens: int) -> bool:
    try:
        return model.room_after(len(model.asked(prompt))) >= tokens
    except DataError:
        return False


def in_words(account: dict[str, Any]) -> str:
    """An account of `known_facts` as a sentence."""
    return (
        f"Only facts that the model knows: of {account['asked']} asked, {account['known']} whose old answer it gives "
        "before any edit."
    )
