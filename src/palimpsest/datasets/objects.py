"""A JSON object that holds several edits: lists by field, a list in one field, or records by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palimpsest.datasets.columns import REQUIRED, column_of
from palimpsest.datasets.questions import ANSWERS, PROMPTS
from palimpsest.errors import DataError

# Fields of published records that are objects or lists of them.
_RECORD = frozenset({"requested_rewrite", "edit", "src"})


def records_in(value: Mapping[str, Any], where: str) -> list[tuple[str, Any]]:
    """The records of an object, each with its place in it.

    An object is one record, unless its prompts are a list (the arguments of EasyEdit's editor, or a table written
    column by column), its only list is one of objects, or all its values are objects.

    Raises `DataError` for lists of different lengths.
    """
    prompts = [name for name in value if column_of(name) == "prompt" and isinstance(value[name], list | Mapping)]
    if prompts:
        return _by_column(value, prompts[0], where)
    tables = [name for name, entry in value.items() if _is_list_of_objects(entry)]
    is_record = not _RECORD.isdisjoint(value) or any(column_of(name) in REQUIRED for name in value)
    if len(tables) == 1 and not is_record:
        return [(f"{where}, {tables[0]!r} {index + 1}", one) for index, one in enumerate(value[tables[0]])]
    if value and not is_record and all(isinstance(one, Mapping) for one in value.values()):
        return [(f"{where}, {name!r}", one) for name, one in value.items()]
    return [(where, value)]


def _by_column(value: Mapping[str, Any], prompts: str, where: str) -> list[tuple[str, Any]]:
    count = len(value[prompts])
    return [
        (
            f"{where}, entry {index + 1}",
            {name: _entry(name, given, index, count, where) for name, given in value.items()},
        )
        for index in range(count)
    ]


def _entry(name: str, given: Any, index: int, count: int, where: str) -> Any:
    """The part of a column that belongs to one record."""
    if isinstance(given, list):
        if len(given) != count:
            raise _lengths(name, len(given), count, where)
        return given[index]
    if isinstance(given, Mapping) and column_of(name) in ("locality", "portability"):
        return {kind: _question(f"{name}.{kind}", entry, index, count, where) for kind, entry in given.items()}
    if isinstance(given, Mapping):
        # A table library's columns: values by row number.
        keys = list(given)
        if len(keys) != count:
            raise _lengths(name, len(keys), count, where)
        return given[keys[index]]
    if given is not None and count != 1:
        raise _lengths(name, 1, count, where)
    return given


def _question(name: str, entry: Any, index: int, count: int, where: str) -> Any:
    if not isinstance(entry, Mapping):
        return _entry(name, entry, index, count, where)
    return {
        key: _entry(f"{name}.{key}", one, index, count, where) if key in (*PROMPTS, *ANSWERS) else one
        for key, one in entry.items()
    }


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(one, Mapping) for one in value)


def _lengths(name: str, found: int, count: int, where: str) -> DataError:
    return DataError(
        "The lists of a file of edits are not equally long.",
        expected=f"{count} entries, one for each prompt",
        found=f"{found} in `{name}`",
        where=f"{where}, field `{name}`",
    )
