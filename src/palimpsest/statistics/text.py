"""Where the text of second moments comes from: files, data sets of the hub, or texts in memory.

A source says what it is without being read, so that what is known of it can be looked up; and it is read, as far as
it is needed, before anything is computed. Nothing here imports torch.
"""

from __future__ import annotations

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.errors import DataError
from palimpsest.files import parse_json, said
from palimpsest.provenance import file_digest
from palimpsest.stopwatch import Progress, silent

if TYPE_CHECKING:
    from palimpsest.models import EditableModel
    from palimpsest.statistics.cache import Cache

RECORDS = (".jsonl", ".parquet")
"""Endings of files that hold texts in a column. Every other file is read as lines of text."""
IN_FOLDERS = (*RECORDS, ".txt", ".text", ".raw", ".tokens", ".md", "")
"""Endings of the files of a folder that are read; beside texts a folder may hold anything."""
FILE_ENDINGS = tuple(filter(None, IN_FOLDERS))
_PROBE_BYTES = 4096
_ROWS_AT_ONCE = 1000


class Text(ABC):
    """A stream of texts, the same at every reading; `name` is what messages call it."""

    name: str

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """The identity of the texts, JSON-ready: names and revisions, or digests."""

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """The texts in order. Raises `DataError` when they cannot be read."""

    def for_model(self, model: EditableModel, *, cache: Cache | None = None, progress: Progress = silent) -> Text:
        """The same as a model reads it; another text for each model only where the model itself writes it."""
        del model, cache, progress
        return self


class GivenText(Text):
    """Texts in memory.

    Arguments:
        name: what to call them.
        texts: the texts.
    """

    def __init__(self, name: str, texts: Iterable[str]) -> None:
        self.name = name
        self._texts = list(texts)

    def identity(self) -> dict[str, Any]:
        return {"kind": "given", "name": self.name, "texts": len(self._texts), "sha256": self._digest}

    def texts(self) -> Iterator[str]:
        return iter(self._texts)

    @cached_property
    def _digest(self) -> str:
        content = hashlib.sha256()
        for text in self._texts:
            encoded = text.encode()
            content.update(f"{len(encoded)} ".encode() + encoded)
        return content.hexdigest()[:16]


class ReadOnce(Text):
    """Another text, of which what was read once is kept in memory.

    Arguments:
        text: that other text.
    """

    def __init__(self, text: Text) -> None:
        self.name = text.name
        self._text = text
        self._texts = iter(text.texts())
        self._read: list[str] = []

    def identity(self) -> dict[str, Any]:
        return self._text.identity()

    def texts(self) -> Iterator[str]:
        yield from self._read
        for text in self._texts:
            self._read.append(text)
            yield text


class FileText(Text):
    """Texts of local files, in the order they stand: a column of a .jsonl or .parquet, every line of any other file.

    Arguments:
        path: a file, or a folder of files that end as `IN_FOLDERS` says, which are read in the order of their paths.
        column: the field of a .jsonl record, the column of a .parquet table.

    Raises `DataError` when there is no such file, or one does not begin as UTF-8 text does.
    """

    def __init__(self, path: Path, *, column: str = "text") -> None:
        self.name = str(path)
        self.column = column
        self.files = _text_files(path)

    def identity(self) -> dict[str, Any]:
        files = [{"name": file.name, "sha256": digest} for file, digest in zip(self.files, self._digests, strict=True)]
        return {"kind": "files", "column": self.column, "files": files}

    def texts(self) -> Iterator[str]:
        for file in self.files:
            try:
                if file.suffix == ".parquet":
                    yield from _parquet(file, self.column)
                else:
                    yield from _lines(file, self.column if file.suffix == ".jsonl" else None)
            except (OSError, UnicodeDecodeError) as error:
                raise _not_text(file, error) from error

    @cached_property
    def _digests(self) -> list[str]:
        return [file_digest(file)[:16] for file in self.files]


def _text_files(path: Path) -> Sequence[Path]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _is_read(file))
    if not files:
        raise DataError(
            "There is no text here.",
            expected="a text file, or a folder with files that end in " + ", ".join(filter(None, IN_FOLDERS)),
            found="a folder without one" if path.is_dir() else "nothing",
            where=str(path),
            remedy="name the file itself; whatever it is called, it is read as lines of text",
        )
    for file in files:
        if file.suffix != ".parquet":
            _require_text(file)
    return files


def _is_read(file: Path) -> bool:
    return file.is_file() and file.suffix in IN_FOLDERS and not file.name.startswith(".")


def _require_text(file: Path) -> None:
    """Raises `DataError` for a file that does not begin as UTF-8 text does; nothing is computed for such a one."""
    try:
        with file.open("rb") as stream:
            beginning = stream.read(_PROBE_BYTES)
        # A character may be cut at the end of what was read.
        codecs.getincrementaldecoder("utf-8")().decode(beginning)
    except (OSError, UnicodeDecodeError) as error:
        raise _not_text(file, error) from error
    if b"\0" in beginning:
        raise _not_text(file, ValueError("zero bytes, which no text has"))


def _not_text(file: Path, error: Exception) -> DataError:
    return DataError(
        "A text file cannot be read.",
        expected="UTF-8 text",
        found=str(error),
        where=str(file),
        remedy="save it as UTF-8 text, or name another with the option text",
    )


def _lines(file: Path, column: str | None) -> Iterator[str]:
    """The lines of a text file that are not blank; of a .jsonl file what stands in the column."""
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield line.strip() if column is None else _field(line, column, f"{file}:{number}")


def _field(line: str, column: str, where: str) -> str:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise DataError(
            "The JSON is broken.", expected="one object per line", found=said(error), where=where
        ) from error
    found = record.get(column) if isinstance(record, dict) else record
    if not isinstance(found, str):
        raise DataError(
            "A record has no text.",
            expected=f"an object with a text in {column!r}, or a text",
            found=line.strip()[:60],
            where=where,
            remedy="name the field that holds the text",
        )
    return found


def _parquet(file: Path, column: str) -> Iterator[str]:
    import polars
    from polars.exceptions import PanicException, PolarsError

    try:
        table = polars.scan_parquet(file)
        names = table.collect_schema().names()
        if column not in names:
            raise DataError(
                f"The table has no column {column!r}.", found=f"columns {', '.join(names)}", where=str(file),
                remedy="name the column that holds the text",
            )  # fmt: skip
        start = 0
        while rows := table.select(column).slice(start, _ROWS_AT_ONCE).collect()[column].to_list():
            yield from (text for text in rows if isinstance(text, str) and text.strip())
            start += len(rows)
    except (PolarsError, PanicException) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError("The table cannot be read.", expected="a Parquet file", found=found, where=str(file)) from error
