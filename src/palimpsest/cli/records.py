"""Edits and data sets as they are typed: a file, one edit in options, a name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.errors import DataError

if TYPE_CHECKING:
    from palimpsest.datasets import Dataset, Skipped
    from palimpsest.requests import EditRequest


SHOWN_REASONS = 3


def read_edits(file: Path, *, skip_bad: bool | None = False) -> tuple[list[EditRequest], list[str]]:
    """The edits of a file, and what should be said about them.

    Arguments:
        file: the file.
        skip_bad: whether records that cannot be used are passed over, with a note that says how many and why; `None`
            passes over only those of a published data set.

    Raises `DataError` for a file that cannot be read or has no edits, and for records that cannot be used.
    """
    from palimpsest.datasets import BadRecordError, load_edits

    try:
        data = load_edits(file, is_strict=None if skip_bad is None else not skip_bad)
    except BadRecordError as error:
        if skip_bad is False:
            error.remedy = f"{error.remedy} (--skip-bad goes on with the others)"
        raise
    return list(data.requests), notes_of(data)


def notes_of(data: Dataset) -> list[str]:
    """Returns the notes on a data set: its own, and how many records were skipped for which reason."""
    notes = list(data.notes)
    by_problem: dict[str, list[Skipped]] = {}
    for one in data.skipped:
        by_problem.setdefault(one.reason.split(";")[0], []).append(one)
    if by_problem:
        groups = list(by_problem.values())
        shown = [_first_of(group) for group in groups[:SHOWN_REASONS]]
        rest = sum(len(group) for group in groups[SHOWN_REASONS:])
        shown += [f"and {rest} more for other reasons"] if rest else []
        notes.append(f"{len(data.skipped)} record(s) were passed over: {'; '.join(shown)}")
    return notes


def _first_of(group: Sequence[Skipped]) -> str:
    more = f" ({len(group) - 1} more like it)" if len(group) > 1 else ""
    return f"{group[0].where}: {group[0].reason}{more}"


def inline_edit(
    prompt: str | None, subject: str | None, target_new: str | None, target_old: str | None
) -> EditRequest | None:
    """One edit from options; `None` when none of them is given. Raises `DataError` when a part is missing.

    A subject that is left out is guessed, as in a file of edits; an empty one is none.
    """
    given = {"--prompt": prompt, "--subject": subject, "--target-new": target_new, "--target-old": target_old}
    if all(value is None for value in given.values()):
        return None
    if prompt is None or target_new is None:
        raise DataError(
            "An edit on the command line is not complete.",
            expected="--prompt and --target-new (and --subject, --target-old where you know them)",
            found=", ".join(name for name, value in given.items() if value is not None) + " only",
        )
    from palimpsest.requests import EditRequest

    if subject is None and "{}" not in prompt:
        from palimpsest.wording import find_subject

        return EditRequest(prompt, target_new, subject=find_subject(prompt), target_old=target_old)
    return EditRequest(prompt, target_new, subject=subject or None, target_old=target_old)


def remarks_on(edit: EditRequest, subject: str | None) -> list[str]:
    """Returns remarks on an edit from the command line.

    Arguments:
        subject: as it was given there.
    """
    from palimpsest.datasets import remarks

    guessed = [f"The subject was guessed: {edit.subject!r}; give another one with --subject."]
    return [
        *(guessed if subject is None and edit.subject else []),
        *(f"{remark}." for remark in remarks(edit, edit.subject)),
    ]


def find_dataset(name: str, path: Path | None, *, skip_bad: bool = False) -> Dataset:
    """A data set by name, or a file of edits; with `skip_bad` without a user's own records that cannot be used.

    Raises `ConfigError` with near matches for an unknown name.
    """
    from palimpsest.datasets import dataset, is_file_of_edits, load_edits

    if path is None and is_file_of_edits(name):
        return load_edits(name, is_strict=False if skip_bad else None)
    try:
        return dataset(name, path)
    except DataError as error:
        if path is None and (error.remedy or "").startswith("dataset("):
            error.expected, error.remedy = "--data FILE", "add --data FILE; world-counterfact and world-zsre need none"
        raise
