"""Tables with a header: cells between commas, semicolons, tabs or bars."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from palimpsest.datasets.base import Record
from palimpsest.datasets.columns import REQUIRED, column_of
from palimpsest.errors import DataError

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_LARGEST_CELL = 2**31 - 1


def read_delimited(text: str, path: Path) -> list[Record]:
    """The records of a table.

    The delimiter is the first of comma, semicolon, tab and bar (of a file named `.tsv` the tab before the others) under
    which the header has the required columns, whatever the file's name says; else the one that its name says. A first
    line such as `sep=;`, which spreadsheets write, is heeded.

    Raises `DataError` for a table without a usable header or without rows, and for a row of too many cells.
    """
    first, _, rest = text.partition("\n")
    if first.strip().casefold().startswith("sep=") and len(first.strip()) == len("sep=") + 1:
        return _rows(rest, path, first.strip()[-1], lines_before=1)
    usual = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    order = sorted(DELIMITERS, key=lambda mark: mark != usual)
    fitting = [mark for mark in order if _fits(text, mark)]
    return _rows(text, path, fitting[0] if fitting else usual, lines_before=0)


def _fits(text: str, delimiter: str) -> bool:
    """Whether the header has the required columns under this delimiter."""
    known = {column_of(name) for name in _header(text, delimiter)}
    return known.issuperset(REQUIRED)


def _header(text: str, delimiter: str) -> list[str]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return next((row for row in rows if any(cell.strip() for cell in row)), [])
    except csv.Error:
        return []


def _rows(text: str, path: Path, delimiter: str, *, lines_before: int) -> list[Record]:
    csv.field_size_limit(_LARGEST_CELL)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[Record] = []
    header: list[str] = []
    line = 1 + lines_before
    name = DELIMITERS.get(delimiter, repr(delimiter))
    try:
        for row in rows:
            where, line = f"{path}:{line}", rows.line_num + 1 + lines_before
            if not any(cell.strip() for cell in row):
                continue
            if not header:
                header = [cell.strip() for cell in row]
                _check_header(header, delimiter, where)
            elif len(row) > len(header):
                raise DataError(
                    "A row has more cells than the header.",
                    expected=f"{len(header)} cells, separated by {name}",
                    found=f"{len(row)} cells",
                    where=where,
                    remedy=f'put a text that holds one of the {name} in double quotes: "Paris{delimiter} France"',
                )
            else:
                cells = [(column, cell) for column, cell in zip(header, row, strict=False) if column]
                # A blank cell means that an optional field is absent; in a required column it is a mistake to report.
                kept = {column: cell for column, cell in cells if cell.strip() or column_of(column) in REQUIRED}
                records.append(Record(where, kept))
    except csv.Error as error:
        raise DataError(
            "The table is broken.", expected=f"cells separated by {name}", found=_found(error), where=f"{path}:{line}",
            remedy='a quoted text ends with a double quote; one inside it is written twice: ""',
        ) from error  # fmt: skip
    if header and not records:
        raise DataError(
            "The file has a header and no rows.", expected="at least one row", found="none", where=str(path),
            remedy="write one edit per row, with a prompt and a target_new",
        )  # fmt: skip
    return records


def _found(error: csv.Error) -> str:
    return "a quoted text without an end" if "end of data" in str(error) else str(error)


def _check_header(header: list[str], delimiter: str, where: str) -> None:
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    other = next((mark for mark in DELIMITERS if mark != delimiter and len(header) == 1 and mark in header[0]), None)
    if other:
        raise DataError(
            f"The cells are not separated by {DELIMITERS.get(delimiter, repr(delimiter))}, as the file's name says.",
            expected=f"a header with the columns {', '.join(REQUIRED)}",
            found=f"{DELIMITERS[other]} in the header {header[0]!r}",
            where=where,
            remedy=f"name two of the columns {' and '.join(REQUIRED)}; then {DELIMITERS[other]} are recognised",
        )
    if repeated:
        raise DataError(
            "A column occurs twice in the header.",
            expected="each name once",
            found=", ".join(repeated),
            where=where,
            remedy="number columns of one meaning, such as rephrase_1 and rephrase_2",
        )
