"""Files to records, each with its place, with errors that say where the file is broken."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from palimpsest.datasets.base import Record
from palimpsest.errors import DataError

ENDINGS = (".jsonl", ".json", ".csv")


def read_text(path: Path) -> str:
    """A file's text. A byte-order mark of UTF-8 is dropped.

    Raises `DataError` when there is no such file, it is empty, or it is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            "There is no such file.", expected="a file of edits", found="nothing", where=str(path),
            remedy="check the path",
        ) from error  # fmt: skip
    except OSError as error:
        found = "a folder" if path.is_dir() else (error.strerror or str(error))
        raise DataError("The file cannot be read.", expected="a readable file", found=found, where=str(path)) from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _not_utf8(path, "UTF-16 (byte-order mark at byte 0)")
    if b"\0" in content:
        raise _not_utf8(path, f"a NUL byte at byte offset {content.index(0)}, as UTF-16 has them")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The decoder counts from behind the mark that it has dropped.
        offset = error.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        line = content.count(b"\n", 0, offset) + 1
        raise _not_utf8(path, f"byte 0x{content[offset]:02x} at byte offset {offset} (line {line})") from error
    if not text.strip():
        raise DataError(
            "The file is empty.", expected="at least one edit", found=f"{len(content)} bytes", where=str(path)
        )
    return text


def read_records(path: Path) -> list[Record]:
    """The records of a JSONL, JSON or CSV file, by its ending.

    Raises `DataError` for a file that is missing, empty, of another kind, or broken, naming line and column.
    """
    ending = path.suffix.lower()
    text = read_text(path)
    if ending == ".jsonl":
        return _jsonl(text, path)
    if ending == ".json":
        return _json(text, path)
    if ending == ".csv":
        return _csv(text, path)
    raise DataError(
        "The file is of an unknown kind.",
        expected=f"a name that ends in {', '.join(ENDINGS)}",
        found=f"{path.suffix!r}" if path.suffix else "no ending",
        where=str(path),
        remedy="rename it to what it is, or convert it",
    )


def _jsonl(text: str, path: Path) -> list[Record]:
    records = []
    # Not splitlines(): that also splits at characters that JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise _broken_json(path, number, error.colno, error.msg, line) from error
        records.append(Record(f"{path}:{number}", _fields(value, f"{path}:{number}")))
    return records


def _json(text: str, path: Path) -> list[Record]:
    """A list of objects, or one object; each record's place is the line it starts on."""
    decoder = json.JSONDecoder()
    position = _next(text, 0)
    try:
        if text[position] != "[":
            value = json.loads(text)
            where = f"{path}:{_line(text, position)}"
            return [Record(where, _fields(value, where))]
        records: list[Record] = []
        line, counted = 1, 0
        position = _next(text, position + 1)
        while text[position : position + 1] not in ("]", ""):
            line, counted = line + text.count("\n", counted, position), position
            where = f"{path}:{line} (record {len(records) + 1})"
            value, position = decoder.raw_decode(text, position)
            records.append(Record(where, _fields(value, where)))
            position = _next(text, position)
            if text[position : position + 1] == ",":
                position = _next(text, position + 1)
            elif text[position : position + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']' between records", text, position)
        if text[position:].strip() != "]" or (records and text[:position].rstrip().endswith(",")):
            raise json.JSONDecodeError("The list does not end where it should", text, position)
        return records
    except json.JSONDecodeError as error:
        around = text[max(0, error.pos - 30) : error.pos + 30]
        raise _broken_json(path, error.lineno, error.colno, error.msg, around) from error


def _csv(text: str, path: Path) -> list[Record]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[Record] = []
    header: list[str] = []
    line = 1
    try:
        for row in rows:
            where, line = f"{path}:{line}", rows.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if not header:
                header = [cell.strip() for cell in row]
                _check_header_shape(header, where)
            elif len(row) > len(header):
                raise DataError(
                    "A row has more cells than the header.",
                    expected=f"{len(header)} cells",
                    found=f"{len(row)} cells",
                    where=where,
                    remedy='put a text that holds a comma in double quotes: "Paris, France"',
                )
            else:
                cells = zip(header, row, strict=False)
                records.append(Record(where, {name: cell for name, cell in cells if cell.strip() or name in _REQUIRED}))
    except csv.Error as error:
        raise DataError(
            "The CSV is broken.", expected="cells separated by commas", found=str(error), where=f"{path}:{line}",
            remedy='a double quote inside a quoted text is written twice: ""',
        ) from error  # fmt: skip
    if header and not records:
        raise DataError(
            "The file has a header and no rows.", expected="at least one row", found="none", where=str(path)
        )
    return records


# A blank cell means that an optional field is absent; in a required column it is a mistake to report.
_REQUIRED = frozenset({"prompt", "target_new"})


def _check_header_shape(header: list[str], where: str) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    other = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
    if other:
        raise DataError(
            "The CSV's cells are not separated by commas.",
            expected="commas",
            found=f"{other!r} in the header {header[0]!r}",
            where=where,
            remedy="export it again with commas",
        )
    if repeated:
        raise DataError(
            "A column stands twice in the header.",
            expected="each name once",
            found=", ".join(repeated),
            where=where,
        )


def _fields(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise DataError(
        "A record is not an object.",
        expected='an object such as {"prompt": "...", "target_new": "..."}',
        found=f"{type(value).__name__} {str(value)[:60]!r}",
        where=where,
    )


def _next(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _broken_json(path: Path, line: int, column: int, message: str, text: str) -> DataError:
    return DataError(
        "The JSON is broken.",
        expected="one JSON object a line" if path.suffix.lower() == ".jsonl" else "a JSON list of objects",
        found=f"{message}: {text.strip()[:60]!r}",
        where=f"{path}:{line}, column {column}",
        remedy="correct the line" + (" (a list over several lines belongs in a .json file)" if _is_list(text) else ""),
    )


def _is_list(text: str) -> bool:
    return text.strip() in {"[", "{", "]", "}"} or text.lstrip().startswith("[")


def _not_utf8(path: Path, found: str) -> DataError:
    return DataError(
        "The file is not UTF-8.", expected="UTF-8 text", found=found, where=str(path),
        remedy="save it again as UTF-8",
    )  # fmt: skip


def known_splits(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records by the split they name (field `split` or `x_split`); those that name none are left out."""
    splits: dict[str, list[Record]] = {}
    for record in records:
        name = record.fields.get("split", record.fields.get("x_split"))
        if isinstance(name, str):
            splits.setdefault(name, []).append(record)
    return splits
