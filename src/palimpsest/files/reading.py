"""One way to read a file of ours: whatever is wrong with it becomes the caller's own error, with file and field.

    PLAN = FileKind(OutputError, "The plan cannot be read.", expected="plan.json, as `palimpsest bench` writes it")
    record = PLAN.record(file, PlanRecord)

JSON is read strictly: no NaN or Infinity, no whole number of more than 20 digits, no name twice in one object, no lone
surrogate, and at most `DEEPEST` brackets inside each other.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from palimpsest.errors import PalimpsestError, later_version
from palimpsest.files.regular import content_of, remedy_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from palimpsest.files.tensors import Stored

DEEPEST = 100
"""Lists and objects inside each other; what is deeper was not written by anyone in earnest."""

T = TypeVar("T")
_MARK = b"\xef\xbb\xbf"
_BRACKETS = re.compile(r'(?s)"(?:[^"\\]++|\\.)*+"?|[\[\]{}]')
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SHOWN = 60


@dataclass(frozen=True)
class Line:
    """One line of a file of JSON lines.

    Arguments:
        number: of the line, from 1.
        end: bytes of the file up to and with this line.
        value: what it holds; `None` where it is damaged.
        damage: what is wrong with it; `None` where nothing is.
        is_last: no line follows.
    """

    number: int
    end: int
    value: Any
    damage: str | None
    is_last: bool


@dataclass(frozen=True)
class FileKind:
    """A kind of file, with the errors for one that does not fit.

    Arguments:
        error: the error's class.
        problem: its first sentence.
        expected: what would have been right.
        remedy: what to do.
    """

    error: type[PalimpsestError]
    problem: str
    expected: str
    remedy: str | None = None

    def refused(self, where: str | Path, found: str) -> PalimpsestError:
        """The error for a file, with what was found in it."""
        return self.error(
            self.problem, expected=self.expected, found=found, where=shown_path(where), remedy=self.remedy
        )

    @contextmanager
    def reading(self, where: str | Path) -> Iterator[None]:
        """Inside the block, where the content of a file is interpreted, whatever goes wrong becomes the error."""
        try:
            yield
        except self.error:
            raise
        except PalimpsestError as error:
            found = error.problem + (f" ({error.found})" if error.found else "")
            raise self.refused(where, found + (f", {error.where}" if error.where else "")) from error
        except _ODD as error:
            refused = self.refused(where, said(error))
            refused.remedy = remedy_of(error, self.remedy)
            raise refused from error

    def text(self, file: Path) -> str:
        """The text of a UTF-8 file; a byte-order mark is dropped."""
        with self.reading(file):
            return decoded(content_of(file))

    def json(self, file: Path) -> Any:
        """Reads a JSON file."""
        with self.reading(file):
            return parse_json(decoded(content_of(file)))

    def toml(self, file: Path) -> dict[str, Any]:
        """Reads a TOML file."""
        with self.reading(file):
            return parse_toml(decoded(content_of(file)))

    def lines(self, file: Path) -> Iterator[Line]:
        """The lines of a file of JSON lines, the damaged ones with what is wrong; blank ones are left out."""
        with self.reading(file):
            content = content_of(file)
        # Not splitlines(): that also splits at characters that JSON allows inside a text.
        raw_lines = content.split(b"\n")
        end = 0
        for number, raw in enumerate(raw_lines, start=1):
            end = min(end + len(raw) + 1, len(content))
            is_last = number >= len(raw_lines) - 1 and not any(one.strip() for one in raw_lines[number:])
            if not raw.strip():
                continue
            try:
                if number == len(raw_lines):
                    raise ValueError("the line does not end")
                value, damage = parse_json(decoded(raw)), None
            except _ODD as error:
                value, damage = None, said(error)
            yield Line(number, end, value, damage, is_last)

    def checked(self, value: object, kind: type[T] | TypeAdapter[T], where: str | Path) -> T:
        """Validates data as a pydantic model or with a `TypeAdapter`; the error names the field."""
        from pydantic import TypeAdapter

        with self.reading(where):
            adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
            return adapter.validate_python(value)

    def record(self, file: Path, kind: type[T], *, known_format: int | None = None, what: str = "file") -> T:
        """A JSON file as a pydantic model.

        Arguments:
            file: where.
            kind: the model.
            known_format: the last `format_version` that this version knows, where the file has one.
            what: what it is, for the error about a later format.
        """
        value = self.json(file)
        if known_format is not None:
            self.require_format(value, known_format, what, file)
        return self.checked(value, kind, file)

    def require_format(self, value: object, known: int, what: str, file: Path, *, name: str = "format_version") -> None:
        """Raises the error for what is no object, and for the format of a later version."""
        if not isinstance(value, dict):
            raise self.refused(file, f"{_kind(value)} instead of an object")
        found = value.get(name, known)
        if not isinstance(found, int) or isinstance(found, bool):
            raise self.refused(file, f"field `{name}`: {found!r} instead of a number"[: 2 * _SHOWN])
        if found > known:
            raise later_version(self.error, what, found, known, where=shown_path(file))

    def tensors(self, file: Path, *, integers: bool = False, finite: bool = True) -> Stored:
        """The tensors of a safetensors file and the texts stored with them.

        Arguments:
            file: where.
            integers: whether whole numbers may be among them.
            finite: whether all must be finite.
        """
        from palimpsest.files.tensors import read_tensors, require_numbers

        with self.reading(file):
            stored = read_tensors(file)
            require_numbers(stored.tensors, integers=integers, finite=finite)
            return stored


_ODD = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError)
"""What interpreting the content of a file can raise. JSON, TOML, Unicode and pydantic raise kinds of `ValueError`."""


def said(error: Exception) -> str:
    """One line that says what is wrong, for people."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        found = repr(first["input"])
        found = found if len(found) <= _SHOWN else f"{found[:_SHOWN]}..."
        return f"field `{name}`: {first['msg']}, found {found}" if name else f"{first['msg']}, found {found}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return f"more than {DEEPEST} lists or objects inside each other"
    if isinstance(error, MemoryError):
        return "more than fits into memory"
    if isinstance(error, KeyError):
        return f"no field {error.args[0] if error.args else ''!r}"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def decoded(content: bytes) -> str:
    """The text of UTF-8 bytes, without a byte-order mark. Raises `ValueError` for other bytes, and for none."""
    if not content.strip():
        raise ValueError("an empty file" if not content else "nothing but white space")
    try:
        return content.removeprefix(_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"byte 0x{byte:02x} at offset {error.start}, which is not UTF-8") from error


def parse_json(text: str) -> Any:
    """Parses a JSON text strictly; see the module. Raises `ValueError`."""
    require_shallow(text)
    value = json_decoder().decode(text)
    # Only an escape can bring in what UTF-8 cannot hold.
    if _ESCAPED_SURROGATE.search(text):
        for one in texts_of(value):
            require_encodable(one)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Parses a TOML text. Raises `ValueError`."""
    require_shallow(text)
    try:
        value = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(said(error)) from error
    # A name with full stops makes tables inside each other without a bracket.
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [inner for one in level for inner in _inside(one)]
    if level:
        raise ValueError(f"more than {DEEPEST} tables inside each other")
    return value


def json_decoder(
    *,
    longest: int = 20,
    number: Callable[[str], float] = float,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    finite: bool = True,
) -> json.JSONDecoder:
    """A strict decoder.

    Arguments:
        longest: digits of the longest whole number.
        number: makes the other numbers of their texts.
        pairs: makes objects of names and values; left out, dictionaries with each name once.
        finite: whether NaN and numbers beyond all bounds are refused.
    """

    def other(text: str) -> float:
        value = number(text)
        if finite and not math.isfinite(value):
            raise ValueError(f"a number beyond all bounds, {text[:_SHOWN]}")
        return value

    def integer(digits: str) -> int:
        if len(digits) > longest:
            raise ValueError(f"a whole number of {len(digits)} digits")
        return int(digits)

    return json.JSONDecoder(
        parse_constant=_constant if finite else float,
        parse_float=other,
        parse_int=integer,
        object_pairs_hook=pairs or _with_distinct_names,
    )


def require_shallow(text: str) -> None:
    """Raises `ValueError` for brackets more than `DEEPEST` deep; those inside of double quotes do not count."""
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    depth = 0
    for found in _BRACKETS.finditer(text):
        if found[0] in ("[", "{"):
            depth += 1
            if depth > DEEPEST:
                raise ValueError(f"more than {DEEPEST} lists or objects inside each other")
        elif found[0] in ("]", "}"):
            depth -= 1


def _inside(value: Any) -> Iterator[Any]:
    """The lists and objects directly inside of one."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (one for one in inner if isinstance(one, dict | list))


def texts_of(value: object) -> Iterator[str]:
    """Every text in what JSON gave, names of fields included."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            yield from one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def require_encodable(text: str) -> None:
    """Raises `ValueError` for half a character: a lone surrogate, which no UTF-8 file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise ValueError(f"half a character, {code}, at offset {error.start} of a text") from error


def shown_path(path: str | Path) -> str:
    """A path for people: bytes that are not UTF-8 as question marks."""
    return str(path).encode("utf-8", "replace").decode()


def _with_distinct_names(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    given = list(pairs)
    found = dict(given)
    if len(found) < len(given):
        names = [name for name, _ in given]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {repeated[:_SHOWN]!r} twice in one object")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name}, which is not a number of JSON")


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
