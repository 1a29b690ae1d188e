"""A user's own edits: records with `prompt`, `subject`, `target_new`, `target_old`, and probes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

from palimpsest.datasets.base import Record, given_probes, optional_text, text_field, text_list
from palimpsest.errors import DataError, near_matches
from palimpsest.requests import EditRequest, Probe

COLUMNS = ("prompt", "subject", "target_new", "target_old", "rephrase", "locality", "probes", "fact", "id")
REQUIRED = ("prompt", "target_new")
_NUMBERED = re.compile(r"(rephrase|locality)(_\d+)?")


def request(fields: Mapping[str, Any]) -> EditRequest:
    """One record.

    `rephrase`, `rephrase_1`, ... are other wordings that must get the new answer. `locality`, `locality_1`,
    ... are prompts whose answer must stay what it is; they count as neighbours. `probes` is a list as in
    `EditRequest.to_dict`. Raises `DataError` naming the field.
    """
    prompt, new = text_field(fields, "prompt"), text_field(fields, "target_new")
    probes = [Probe("generality", text, new) for text in _numbered(fields, "rephrase")]
    probes += [Probe("locality.neighborhood", text) for text in _numbered(fields, "locality")]
    return EditRequest(
        prompt,
        new,
        subject=optional_text(fields, "subject"),
        target_old=optional_text(fields, "target_old"),
        probes=(*probes, *given_probes(fields)),
        fact=optional_text(fields, "fact"),
        id=_identity(fields),
    )


def check_columns(records: Iterable[Record]) -> list[str]:
    """Checks the names of fields; returns a note when some are ignored.

    Raises `DataError` for a name that is probably a misspelt one, with its near matches.
    """
    ignored: dict[str, str] = {}
    for record in records:
        for name in record.fields:
            if name in COLUMNS or _NUMBERED.fullmatch(name) or name in ignored:
                continue
            absent = [known for known in COLUMNS if known not in record.fields]
            close = _misspelt(re.sub(r"[\s\-]+", "_", name.strip()), absent)
            missing = [known for known in REQUIRED if known not in record.fields]
            if close or missing:
                raise _unknown_column(name, close, missing, record)
            ignored[name] = record.where
    return [f"Fields that are not read: {', '.join(map(repr, ignored))}."] if ignored else []


def _misspelt(name: str, known: list[str]) -> list[str]:
    """Names so close that the given one can hardly be a column of its own (as `notes` is, beside `probes`)."""
    return [one for one in near_matches(name, known) if name in one or SequenceMatcher(None, name, one).ratio() >= 0.7]


def _unknown_column(name: str, close: list[str], missing: list[str], record: Record) -> DataError:
    lacks = f"the required {' and '.join(f'`{one}`' for one in missing)}; " if missing else ""
    suggestion = f"did you mean {' or '.join(map(repr, close))}?" if close else None
    return DataError(
        f"There is no field named {name!r}.",
        expected=f"{lacks}the fields are {', '.join(COLUMNS)} (rephrase_1, locality_1, ... too)",
        found=", ".join(map(repr, record.fields)),
        where=f"{record.where}, field `{name}`",
        remedy=suggestion or f"name the columns {', '.join(REQUIRED)}",
    )


def _numbered(fields: Mapping[str, Any], stem: str) -> list[str]:
    names = [name for name in fields if re.fullmatch(rf"{stem}(_\d+)?", name)]
    names.sort(key=lambda name: int(name[len(stem) + 1 :] or 0))
    return [text for name in names for text in text_list(fields, name)]


def _identity(fields: Mapping[str, Any]) -> str:
    identity = fields.get("id")
    return "" if identity is None else str(identity).strip()
