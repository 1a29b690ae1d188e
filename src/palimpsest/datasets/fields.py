"""The fields of a record, read as what they should be, with errors that name them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from typing import Any

from palimpsest.errors import DataError
from palimpsest.requests import Probe, normalise


class WrittenNumber(float):
    """A number of a JSON file that still knows how it is written there: `3.50` is not `3.5` to a reader."""

    def __new__(cls, text: str) -> WrittenNumber:
        made = super().__new__(cls, text)
        made.text = text
        return made

    text: str


def as_text(value: object) -> str | None:
    """A text, a number or a truth value as the text that stands in the file; `None` for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, WrittenNumber):
        return value.text
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return None


def text_field(fields: Mapping[str, Any], name: str) -> str:
    """A field that must be there; a number is read as it is written.

    Raises `DataError` when it is missing, blank, or neither text nor a number.
    """
    value = fields.get(name)
    text = as_text(value)
    if text is not None and text.strip():
        return text
    if name not in fields:
        problem, found = (
            f"A record has no `{name}`.",
            f"the fields {', '.join(map(repr, fields)) or '(none)'}",
        )
    elif value is None or isinstance(value, str):
        problem, found = f"The field `{name}` is blank.", repr(value)
    else:
        problem, found = f"The field `{name}` is not text.", repr(value)
    raise DataError(problem, expected=f"text in `{name}`", found=found, where=f"field `{name}`")


def optional_text(fields: Mapping[str, Any], name: str) -> str | None:
    """A field that may be missing or blank. Raises `DataError` when it is there and not text."""
    value = fields.get(name)
    # A table library writes NaN for an empty cell.
    is_empty = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    return None if is_empty else text_field(fields, name)


def text_list(fields: Mapping[str, Any], name: str) -> list[str]:
    """A field that holds a text, a list of texts, or nothing; blank ones are left out."""
    value = fields.get(name)
    values = value if isinstance(value, list) else ([] if value is None else [value])
    texts = [text for text in map(as_text, values) if text is not None]
    if len(texts) < len(values):
        raise DataError(
            f"The field `{name}` is neither text nor a list of texts.",
            expected="text, or a list of texts",
            found=repr(value)[:80],
            where=f"field `{name}`",
        )
    return [one for one in texts if one.strip()]


def require_different(new: str, old: str | None) -> None:
    """For published data, where answers that differ in case or white space only are one answer.

    Raises `DataError` when they are.
    """
    if old is not None and normalise(new) == normalise(old):
        raise DataError(
            "The new answer equals the old one, so there is nothing to edit.",
            expected="two answers that differ in more than case and spaces",
            found=f"{old!r} and {new!r}",
            where="field `target_new`",
        )


def given_probes(fields: Mapping[str, Any]) -> tuple[Probe, ...]:
    """The probes of a record's own `probes` list. Raises `DataError` for one that cannot be read."""
    entries = fields.get("probes") or []
    return tuple(_probe(entry) for entry in (entries if isinstance(entries, list) else [entries]))


def _probe(entry: Any) -> Probe:
    known = [one.name for one in dataclass_fields(Probe)]
    problem = None
    if not isinstance(entry, Mapping):
        problem = f"{str(entry)[:80]!r}, which is not an object"
    elif missing := [name for name in ("kind", "prompt") if name not in entry]:
        problem = f"{dict(entry)!r:.80}, without `{missing[0]}`"
    elif unknown := [name for name in entry if name not in known]:
        problem = f"a field {unknown[0]!r} in {dict(entry)!r:.80}"
    if problem:
        perhaps = ", ".join(f"`{one}`" for one in known[2:])
        raise DataError(
            "A probe cannot be read.",
            expected=f"a list of objects with `kind`, `prompt` and perhaps {perhaps}",
            found=problem,
            where="field `probes`",
        )
    return Probe(**{name: _as_given(value) for name, value in entry.items()})


def _as_given(value: Any) -> Any:
    """Numbers as texts, also in a list; everything else for the probe to check."""
    if isinstance(value, list):
        return tuple(map(_as_given, value))
    return value if value is None else as_text(value) or value
