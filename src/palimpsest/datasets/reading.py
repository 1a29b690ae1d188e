"""Files to records, each with its place, with errors that say where the file is broken."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from palimpsest.datasets.base import Record
from palimpsest.datasets.delimited import read_delimited
from palimpsest.datasets.fields import WrittenNumber
from palimpsest.datasets.objects import records_in
from palimpsest.errors import DataError
from palimpsest.files import content_of, json_decoder, remedy_of, require_encodable, require_shallow, said, texts_of

# Digits: ids may be long, and Python itself reads no more.
_LONGEST_NUMBER = 4_300
ENDINGS = (".jsonl", ".json", ".csv", ".tsv")
_SHOWN = 5
_PACKED = MappingProxyType(
    {
        b"PK\x03\x04": "a spreadsheet's or a zip file's first bytes",
        b"\x1f\x8b": "a gzip file's first bytes",
        b"PAR1": "a Parquet file's first bytes",
        b"\xd0\xcf\x11\xe0": "an old spreadsheet's first bytes",
    }
)
_CONVERSIONS = MappingProxyType(
    {
        **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "export the sheet as CSV (UTF-8)"),
        **dict.fromkeys((".gz", ".zip", ".bz2", ".xz"), "unpack it"),
        ".parquet": "write it as JSONL, with pandas: to_json(..., orient='records', lines=True)",
    }
)
_OTHER_ENDINGS = {".ndjson": ".jsonl", ".tab": ".tsv"}
# The longer marks first: that of UTF-32 begins as that of UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def read_text(path: Path) -> str:
    """A file's text. A byte-order mark is dropped; it says whether the file is UTF-16 or UTF-32 instead of UTF-8.

    Raises `DataError` when there is no such file, it is empty, or it is in another encoding.
    """
    try:
        content = content_of(path)
    except FileNotFoundError as error:
        raise DataError(
            "There is no such file.", expected="a file of edits", found="nothing", where=str(path),
            remedy="check the path",
        ) from error  # fmt: skip
    except (OSError, ValueError) as error:
        found = "a folder" if path.is_dir() else said(error)
        inside = sorted(one.name for one in path.glob("*") if one.suffix in ENDINGS)[:_SHOWN] if path.is_dir() else []
        raise DataError(
            "The file cannot be read.",
            expected="a readable file",
            found=found,
            where=str(path),
            remedy=f"name a file in it: {', '.join(inside)}" if inside else remedy_of(error, "give a file"),
        ) from error
    packed = next((what for mark, what in _PACKED.items() if content.startswith(mark)), None)
    if packed:
        raise DataError(
            "The file is not text.", expected="a text file", found=packed, where=str(path),
            remedy="export it as CSV (UTF-8), or unpack it",
        )  # fmt: skip
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in content:
        raise _not_utf8(path, f"a NUL byte at byte offset {content.index(0)}, as UTF-16 has them")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            found = f"a byte-order mark of {encoding.upper()}, and {error.reason} at byte offset {error.start}"
            raise _not_utf8(path, found) from error
        # The decoder counts from behind the mark that it has dropped.
        offset = error.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        line = content.count(b"\n", 0, offset) + 1
        raise _not_utf8(path, f"byte 0x{content[offset]:02x} at byte offset {offset} (line {line})") from error
    if not text.strip():
        raise DataError(
            "The file is empty.", expected="at least one edit", found=f"{len(content)} bytes", where=str(path),
            remedy="write edits in it, each with a prompt and a target_new",
        )  # fmt: skip
    return text


def read_records(path: Path) -> list[Record]:
    """The records of a JSONL, JSON, CSV or TSV file, by its ending.

    Raises `DataError` for a file that is missing, empty, of another kind, or broken, naming line and column.
    """
    ending = _OTHER_ENDINGS.get(path.suffix.lower(), path.suffix.lower())
    if ending not in ENDINGS and path.exists() and not path.is_dir():
        raise DataError(
            "The file is of an unknown kind.",
            expected=f"a name that ends in {', '.join(ENDINGS)}",
            found=f"{path.suffix!r}" if path.suffix else "no ending",
            where=str(path),
            remedy=_CONVERSIONS.get(path.suffix.lower(), "rename it to what it is, or convert it"),
        )
    text = read_text(path)
    if ending in (".csv", ".tsv"):
        return read_delimited(text, path)
    # What a file holds is told by its first character: a list is one, whatever its name says.
    is_list = text.lstrip().startswith("[")
    if ending == ".jsonl":
        return _json(text, path) if is_list else _jsonl(text, path)
    return _json(text, path) if is_list or not _is_jsonl(text) else _jsonl(text, path)


def _is_jsonl(text: str) -> bool:
    """Whether a file's first line is an object by itself and another one follows."""
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        return len(lines) > 1 and all(isinstance(_DECODER.decode(line), dict) for line in lines[:2])
    except (ValueError, RecursionError):
        return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Repeated(next(name for name in names if names.count(name) > 1))
    return made


class _Repeated(ValueError):
    """A name that occurs twice in one JSON object; the later value would replace the earlier one unseen."""


# A table library writes NaN for an empty cell; fields that need a text refuse it.
_DECODER = json_decoder(longest=_LONGEST_NUMBER, number=WrittenNumber, pairs=_object, finite=False)


def _repeated(name: _Repeated, where: str) -> DataError:
    return DataError(
        "A field occurs twice in one record.",
        expected="each field once",
        found=repr(str(name)),
        where=where,
        remedy="number fields of one meaning, such as rephrase_1 and rephrase_2, or make them a list",
    )


def _jsonl(text: str, path: Path) -> list[Record]:
    records = []
    # Not splitlines(): that also splits at characters that JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = _parsed(line)
        except _Repeated as error:
            raise _repeated(error, f"{path}:{number}") from error
        except json.JSONDecodeError as error:
            raise _broken_json(path, number, error.colno, error.msg, line) from error
        except (ValueError, RecursionError) as error:
            raise _unusable(f"{path}:{number}", said(error)) from error
        records.append(Record(f"{path}:{number}", _fields(value, f"{path}:{number}")))
    return records


def _json(text: str, path: Path) -> list[Record]:
    """A list of objects, or one object; each record's place is the line it starts on."""
    position = _next(text, 0)
    where = f"{path}:{_line(text, position)}"
    try:
        if text[position] != "[":
            inside = records_in(_fields(_parsed(text), where), where)
            return [Record(place, _fields(value, place)) for place, value in inside]
        records: list[Record] = []
        line, counted = 1, 0
        position = _next(text, position + 1)
        while text[position : position + 1] not in ("]", ""):
            line, counted = line + text.count("\n", counted, position), position
            where = f"{path}:{line} (record {len(records) + 1})"
            start = position
            value, position = _DECODER.raw_decode(text, position)
            _require_sound(text[start:position], value)
            records.append(Record(where, _fields(value, where)))
            position = _next(text, position)
            if text[position : position + 1] == ",":
                position = _next(text, position + 1)
            elif text[position : position + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']' between records", text, position)
        if text[position:].strip() != "]" or (records and text[:position].rstrip().endswith(",")):
            is_comma = text[:position].rstrip().endswith(",")
            problem = "A comma follows the last record" if is_comma else "The list does not end where it should"
            raise json.JSONDecodeError(problem, text, position)
        return records
    except _Repeated as error:
        raise _repeated(error, where) from error
    except json.JSONDecodeError as error:
        around = text[max(0, error.pos - 30) : error.pos + 30]
        raise _broken_json(path, error.lineno, error.colno, error.msg, around) from error
    except (ValueError, RecursionError) as error:
        raise _unusable(where, said(error)) from error


def _parsed(text: str) -> Any:
    value = _DECODER.decode(text)
    _require_sound(text, value)
    return value


def _require_sound(text: str, value: Any) -> None:
    """Raises `ValueError` for what is nested too deep, and for half a character, which no model can read."""
    require_shallow(text)
    if "\\u" in text:
        for one in texts_of(value):
            require_encodable(one)


def _unusable(where: str, found: str) -> DataError:
    return DataError(
        "A record cannot be used.",
        expected="an object of texts and numbers, each name once, every text whole",
        found=found,
        where=where,
        remedy="correct the record or remove it",
    )


def _fields(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise DataError(
        "A record is not an object.",
        expected='an object such as {"prompt": "...", "target_new": "..."}',
        found=f"{_kind_of(value)}: {json.dumps(value, ensure_ascii=False)[:60]}",
        where=where,
    )


def _kind_of(value: Any) -> str:
    """Returns JSON's name for the type of a value."""
    names = {str: "a text", bool: "a truth value", list: "a list", type(None): "null"}
    return names.get(type(value), "a number")


def _next(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _broken_json(path: Path, line: int, column: int, message: str, text: str) -> DataError:
    return DataError(
        "The JSON is broken.",
        expected="one JSON object per line" if path.suffix.lower() == ".jsonl" else "a JSON list of objects",
        found=f"{message}: {text.strip()[:60]!r}",
        where=f"{path}:{line}, column {column}",
        remedy=_remedy(path, text, message),
    )


def _remedy(path: Path, text: str, message: str) -> str:
    if path.suffix.lower() == ".jsonl" and _is_list(text):
        return "correct the line (a list over several lines belongs in a .json file)"
    if "double quotes" in message and "'" in text:
        return 'write texts in double quotes: {"prompt": "..."}'
    return "correct the line"


def _is_list(text: str) -> bool:
    return text.strip() in {"[", "{", "]", "}"} or text.lstrip().startswith("[")


def _not_utf8(path: Path, found: str) -> DataError:
    return DataError(
        "The file is not UTF-8.", expected="UTF-8 text, or UTF-16 with a byte-order mark", found=found, where=str(path),
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
