"""The folder of a build: pages for people to review the questions, and the data set that those they accept make."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from palimpsest.datasets.base import Dataset
from palimpsest.datasets.portability.items import Item
from palimpsest.datasets.reading import read_records
from palimpsest.errors import DataError, OutputError
from palimpsest.files import FileKind, write_text
from palimpsest.requests import EditRequest, Probe

FORMAT_VERSION = 1
BUILD, EDITS, ITEMS, TABLE, PAGE = "build.json", "edits.jsonl", "items.jsonl", "review.csv", "review.html"
_BUILD = FileKind(
    OutputError,
    "The folder is not that of a build.",
    expected=f"a folder with {BUILD}, as `palimpsest portability build` writes it",
)
COLUMNS = ("id", "accepted", "edit", "new_answer", "relation", "recall", "question", "answer", "other_names")
DECISIONS: Mapping[str, bool | None] = {
    "yes": True, "y": True, "true": True, "1": True, "x": True, "accept": True,
    "no": False, "n": False, "false": False, "0": False, "reject": False,
    "": None,
}  # fmt: skip
_DATA = "/*ITEMS*/[]"


def is_build(path: Path) -> bool:
    """Whether this is the folder of a build."""
    return os.path.isfile(path / BUILD) and os.path.isfile(path / EDITS)


def read_build(folder: Path) -> dict[str, Any]:
    """Reads the settings of a build. Raises `OutputError` for a folder that no build, or a later version, wrote."""
    record: dict[str, Any] = _BUILD.json(folder / BUILD)
    _BUILD.require_format(record, FORMAT_VERSION, "build", folder / BUILD)
    return record


def read_items(file: Path) -> tuple[dict[str, dict[str, Any]], bool]:
    """The lines of the edits that are done, by id, and whether that is the whole file; damaged ones are left out."""
    lines: dict[str, dict[str, Any]] = {}
    is_whole = True
    for line in _BUILD.lines(file) if file.exists() else ():
        try:
            found = _Line.model_validate(line.value)
            for item in found.items:
                Item.from_dict(item)
        except (ValueError, KeyError, TypeError):
            is_whole = False
            continue
        lines[found.edit] = found.model_dump()
    return lines, is_whole


class _Line(BaseModel):
    """One edit's line of `ITEMS`."""

    edit: str
    items: list[dict[str, Any]]
    reason: str | None


def write_pages(folder: Path, edits: Sequence[EditRequest], items: Sequence[Item]) -> None:
    """Writes the table and the page of the kept items; decisions that a former table holds are taken over."""
    decided = _decisions(folder / TABLE, {item.id for item in items if item.reason is None})
    by_id = {edit.id: edit for edit in edits}
    rows = [_row(item, by_id[item.edit], decided.get(item.id)) for item in items if item.reason is None]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS)
    table.writeheader()
    table.writerows({name: _inert(value) for name, value in row.items()} for row in rows)
    write_text(folder / TABLE, text.getvalue())
    page = resources.files("palimpsest.datasets.portability").joinpath(PAGE).read_text(encoding="utf-8")
    # Inside a script, "</script>" in a text would end it.
    shown = json.dumps(rows, ensure_ascii=True).replace("<", "\\u003c")
    write_text(folder / PAGE, page.replace(_DATA, shown))


def read_reviewed(folder: Path) -> Dataset:
    """The edits of a build with the questions that people accepted, as portability probes.

    Raises `OutputError` for a folder that is no build, `DataError` for a table that cannot be read.
    """
    read_build(folder)
    edits = [EditRequest.from_dict(record.fields) for record in read_records(folder / EDITS)]
    lines, _ = read_items(folder / ITEMS)
    items = [Item.from_dict(one) for line in lines.values() for one in line["items"]]
    kept = [item for item in items if item.reason is None]
    decided = _decisions(folder / TABLE, {item.id for item in kept})
    probes: dict[str, list[Probe]] = {}
    for item in kept:
        if decided.get(item.id):
            probes.setdefault(item.edit, []).append(item.proposal.probe())
    verdicts = [decided.get(item.id) for item in kept]
    note = (
        f"Of {len(kept)} portability questions: accepted {verdicts.count(True)}, rejected {verdicts.count(False)}, "
        f"not reviewed {verdicts.count(None)}. Those accepted are used."
    )
    unasked = sum(edit.id not in lines for edit in edits)
    notes = [note, *([f"The build is not finished: {unasked} edits have not been asked about."] if unasked else [])]
    complete = [replace(edit, probes=(*edit.probes, *probes.get(edit.id, ()))) for edit in edits]
    return Dataset(folder.name, tuple(complete), notes=tuple(notes))


def _row(item: Item, edit: EditRequest, is_accepted: bool | None) -> dict[str, str]:
    one = item.proposal
    return {
        "id": item.id,
        "accepted": "" if is_accepted is None else "yes" if is_accepted else "no",
        "edit": edit.prompt,
        "new_answer": edit.target_new,
        "relation": one.relation,
        "recall": one.recall,
        "question": one.question,
        "answer": one.answer,
        "other_names": " | ".join(one.aliases),
    }


def _inert(text: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _decisions(file: Path, known: set[str]) -> dict[str, bool | None]:
    """Item to whether it is accepted. Only the columns `id` and `accepted` are read."""
    if not file.exists() or not known:
        return {}
    found: dict[str, bool | None] = {}
    for record in read_records(file):
        identity, said = (str(record.fields.get(name, "")).strip() for name in ("id", "accepted"))
        said = said.casefold()
        if said not in DECISIONS or identity not in known:
            raise DataError(
                "A row of the review cannot be read.",
                expected="`accepted` as yes, no or blank, and the `id` of an item of this build",
                found=f"id {identity!r}, accepted {said!r}",
                where=record.where,
                remedy="correct the row, or take the table from the review page again",
            )
        found[identity] = DECISIONS[said]
    return found
