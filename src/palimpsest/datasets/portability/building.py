"""Proposals for every edit, without those that cannot test it or that the model does not know; resumable."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.answers import VERSION, gives, is_reply_to
from palimpsest.datasets.portability import review
from palimpsest.datasets.portability.asking import NoProposal
from palimpsest.datasets.portability.generators import Generator
from palimpsest.datasets.portability.items import Item, Proposal, objection
from palimpsest.errors import DataError, OutputError, PalimpsestError
from palimpsest.files import append, new_folder, require_absent, to_json, write_json, write_text
from palimpsest.provenance import digest, now, versions
from palimpsest.requests import EditRequest, normalise
from palimpsest.stopwatch import Progress, silent

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Summary:
    """The outcome of a build.

    Arguments:
        edits: how many.
        proposed: questions.
        kept: those that people are to review.
        dropped: the others, by reason.
        without_proposal: edits for which there was none, by reason.
    """

    edits: int
    proposed: int
    kept: int
    dropped: dict[str, int]
    without_proposal: dict[str, int]


def build(
    edits: Sequence[EditRequest],
    model: EditableModel,
    generator: Generator,
    out: Path,
    *,
    num_items: int = 3,
    resume: bool = False,
    progress: Progress = silent,
) -> Summary:
    """Builds the portability questions of a set of edits, as in "Editing Large Language Models", appendix on data
    (arXiv:2305.13172): the generator proposes, what the model does not know is dropped, people check the rest.

    A question is dropped as well when the model gives its answer without the edit: it could not show anything.

    Arguments:
        edits: with ids of their own.
        model: the one that will be edited.
        generator: what proposes.
        out: a new folder: the edits, every item with what became of it, and the pages for review.
        num_items: most proposals per edit.
        resume: go on in a folder that an interrupted build with the same arguments left.
        progress: told the number of edits done.

    Raises `OutputError` when the folder exists, or holds another build; and what the generator raises, with all
    finished edits on disk; without the folder where none is.
    """
    if not edits:
        raise DataError("There is nothing to build questions for.", expected="at least one edit", found="none")
    specification = {
        "format_version": review.FORMAT_VERSION,
        "model": {"name": model.name, "fingerprint": model.fingerprint(), "patches": list(model.weights.labels)},
        "generator": generator.identity,
        "num_items": num_items,
        "scoring_version": VERSION,
        "edits": digest([edit.to_dict() for edit in edits]),
    }
    is_new = _open(out, specification, edits, resume=resume)
    done = _finished(out / review.ITEMS)
    for count, edit in enumerate(edits):
        progress("proposing and asking", count, len(edits))
        if edit.id in done:
            continue
        try:
            done[edit.id] = _line(edit, model, generator, num_items)
        except PalimpsestError:
            if is_new and not done:
                # Nothing was answered, so nothing is left behind that would have to be gone on with.
                shutil.rmtree(out, ignore_errors=True)
            raise
        _append(out / review.ITEMS, done[edit.id])
    progress("proposing and asking", len(edits), len(edits))
    items = [Item.from_dict(one) for line in done.values() for one in line["items"]]
    review.write_pages(out, edits, items)
    return _summary(len(edits), items, [line["reason"] for line in done.values()])


def _line(edit: EditRequest, model: EditableModel, generator: Generator, num_items: int) -> dict[str, Any]:
    """The journal's line for one edit."""
    try:
        proposals = generator.propose(edit, num_items)
    except NoProposal as problem:
        return {"edit": edit.id, "items": [], "reason": str(problem)}
    distinct = {(normalise(one.question), normalise(one.answer)): one for one in reversed(proposals)}
    found = _judged(edit, list(reversed(distinct.values())), model)
    return {"edit": edit.id, "items": [item.to_dict() for item in found], "reason": None}


def _judged(edit: EditRequest, proposals: list[Proposal], model: EditableModel) -> list[Item]:
    """Every proposal with the reason to drop it, if there is one."""
    reasons = [objection(edit, proposal) for proposal in proposals]
    open_ones = [one for one, reason in zip(proposals, reasons, strict=True) if reason is None]
    prompts = [text for one in open_ones for text in (one.recall.strip(), one.question.strip())]
    said = iter(_asked(model, prompts))
    items = []
    for proposal, reason in zip(proposals, reasons, strict=True):
        if reason is None:
            recalled, before = next(said), next(said)
            reason = _verdict(proposal, recalled, before)
        items.append(Item(edit.id, proposal, reason))
    return items


def _asked(model: EditableModel, prompts: list[str]) -> list[str | None]:
    """Returns the model's answer to each prompt, `None` for a prompt that does not fit."""
    fitting = [text for text in prompts if model.room_after(len(model.encode(text))) >= MAX_NEW_TOKENS]
    said = dict(zip(fitting, model.generate(fitting, max_new_tokens=MAX_NEW_TOKENS), strict=True)) if fitting else {}
    return [said.get(text) for text in prompts]


def _verdict(proposal: Proposal, recalled: str | None, before: str | None) -> str | None:
    if recalled is None or before is None:
        return "a prompt does not fit into the model's context"
    if not _gives(recalled, proposal.recall, proposal):
        return "the model does not know the fact about the new answer"
    if _gives(before, proposal.question, proposal):
        return "the model gives this answer without the edit"
    return None


def _gives(said: str, prompt: str, proposal: Proposal) -> bool:
    return gives(said, proposal.answers, prompt=prompt, is_reply=is_reply_to(prompt))


def _open(out: Path, specification: dict[str, Any], edits: Sequence[EditRequest], *, resume: bool) -> bool:
    """Begins a build, or finds the one that is gone on with; returns whether it is a new one."""
    if resume and (out / review.BUILD).is_file():
        recorded = review.read_build(out)
        names = [name for name in specification if recorded.get(name) != json.loads(json.dumps(specification[name]))]
        if names:
            raise OutputError(
                "The folder holds another build.",
                expected="the same model, generator, edits and options as those of the interrupted build",
                found=f"another {', '.join(names)}",
                where=str(out),
                remedy="resume it with what it was started with, or choose another folder",
            )
        return False
    require_absent(out)
    with new_folder(out) as draft:
        record = {**specification, "versions": versions(), "created": now()}
        write_json(draft / review.BUILD, record, indent=2)
        lines = [to_json(edit.to_dict()) for edit in edits]
        write_text(draft / review.EDITS, "\n".join(lines) + "\n")
    return True


def _finished(file: Path) -> dict[str, dict[str, Any]]:
    """The lines of the edits that are done; what is half-written or damaged goes out of the file."""
    lines, is_whole = review.read_items(file)
    if not is_whole:
        write_text(file, "".join(f"{to_json(line)}\n" for line in lines.values()))
    return lines


def _append(file: Path, line: dict[str, Any]) -> None:
    try:
        append(file, f"{to_json(line)}\n")
    except OSError as error:
        raise OutputError(
            "Writing failed; what was finished before is kept.",
            expected="room and permission to write",
            found=error.strerror or str(error),
            where=str(file),
            remedy="free some space, then run it again with --resume",
        ) from error


def _summary(num_edits: int, items: Sequence[Item], reasons: Sequence[str | None]) -> Summary:
    dropped = Counter(item.reason for item in items if item.reason is not None)
    lacking = Counter(reason for reason in reasons if reason is not None)
    kept = sum(item.reason is None for item in items)
    return Summary(num_edits, len(items), kept, dict(dropped), dict(lacking))
