"""Where the text of second moments comes from: files, data sets of the hub, or texts in memory.

A source says what it is without being read, so that what is known of it can be looked up; and it is read, as far as
it is needed, before anything is computed. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from palimpsest.errors import ConfigError, DataError, near_matches
from palimpsest.provenance import file_digest
from palimpsest.registry import Registry, Row

ENDINGS = (".txt", ".jsonl", ".parquet")
_ROWS_AT_ONCE = 1000
_SHUFFLED_AT_ONCE = 1000


class Text(ABC):
    """A stream of texts, the same at every reading; `name` is what messages call it."""

    name: str

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What determines the texts, JSON-ready: names and revisions, or digests."""

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """The texts in order. Raises `DataError` when they cannot be read."""


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


class FileText(Text):
    """Texts of local files: every line of a .txt, a column of a .jsonl or .parquet, in the order they stand.

    Arguments:
        path: a file, or a folder of such files, which are read in the order of their paths.
        column: the field of a .jsonl record, the column of a .parquet table.

    Raises `DataError` when there is no such file, or none of a kind that can be read.
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
                raise DataError(
                    "A text file cannot be read.", expected="UTF-8 text", found=str(error), where=str(file)
                ) from error

    @cached_property
    def _digests(self) -> list[str]:
        return [file_digest(file)[:16] for file in self.files]


class HubText(Text):
    """Texts of a data set on the Hugging Face hub, streamed in a random order that follows from the seed.

    Another version of the package `datasets` may draw another order from it: another sample, of the same text.

    Arguments:
        dataset: owner/name; or a folder in the layout of a hub data set.
        subset: its configuration.
        split: its split.
        column: the column that holds the text.
        revision: a commit, to be sure that the data set has not changed since.
        seed: of the order.

    Needs the package `datasets`.
    """

    def __init__(
        self,
        dataset: str,
        subset: str | None = None,
        *,
        split: str = "train",
        column: str = "text",
        revision: str | None = None,
        seed: int = 1,
    ) -> None:
        self.name = f"data set {dataset!r}" + (f", subset {subset!r}" if subset else "")
        self.dataset, self.subset, self.split = dataset, subset, split
        self.column, self.revision, self.seed = column, revision, seed

    def identity(self) -> dict[str, Any]:
        names = ("dataset", "subset", "split", "column", "revision", "seed")
        return {"kind": "hub", "shuffled_at_once": _SHUFFLED_AT_ONCE, **{name: getattr(self, name) for name in names}}

    def texts(self) -> Iterator[str]:
        rows = self._open()
        for row in rows:
            if self.column not in row:
                raise DataError(
                    f"The data set has no column {self.column!r}.",
                    expected="a column of texts",
                    found=f"columns {', '.join(row)}",
                    where=self.name,
                )
            yield str(row[self.column])

    def _open(self) -> Iterator[dict[str, Any]]:
        try:
            import datasets
        except ImportError as error:
            raise ConfigError(
                "Reading a data set of the hub needs another package.",
                expected="the package `datasets`",
                found="it is not installed",
                where=self.name,
                remedy="pip install 'palimpsest-lm[hub]'; or name a local file, or `world`",
            ) from error
        try:
            stream = datasets.load_dataset(
                self.dataset, self.subset, split=self.split, revision=self.revision, streaming=True
            )
            yield from stream.shuffle(seed=self.seed, buffer_size=_SHUFFLED_AT_ONCE)
        # The library lets through what its transports raise: errors of the network, the disk, and of itself.
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                "The text cannot be read from the hub.",
                expected="the data set, over the network or in the hub's cache",
                found=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
                where=self.name,
                remedy="check the name and the network; or name a local .txt, .jsonl or .parquet file, or `world`",
            ) from error


TEXTS = Registry(
    "text",
    "palimpsest.texts",
    {
        "wikipedia": Row(
            "palimpsest.statistics.text:HubText",
            "English Wikipedia of November 2023, whole articles, from the hub",
            {"dataset": "wikimedia/wikipedia", "subset": "20231101.en"},
            "ROME and MEMIT took that of May 2020, EasyEdit takes this one",
        ),
        "wikitext": Row(
            "palimpsest.statistics.text:HubText",
            "WikiText-103, paragraphs, from the hub",
            {"dataset": "Salesforce/wikitext", "subset": "wikitext-103-raw-v1"},
            "arXiv:1609.07843",
        ),
        "world": Row("palimpsest.world.text:statistics_text", "the text that the bundled models were trained on"),
    },
)


def open_text(name: str, *, column: str = "text") -> Text:
    """A source of texts by what it is called: a name in `TEXTS`, a file or folder, or a data set on the hub.

    Arguments:
        name: `wikipedia`, `world`, ...; a path; or owner/name or owner/name:subset of a data set on the hub.
        column: where the text stands in a .jsonl record, a .parquet table or a data set that is not in `TEXTS`.

    Raises `DataError` for a path that does not exist, `ConfigError` for an unknown name. Reads nothing.
    """
    if name in TEXTS:
        row = TEXTS[name]
        source = row.load()(**row.options)
        if not isinstance(source, Text):
            raise ConfigError(f"The text {name!r} is no text.", expected="a Text", found=type(source).__name__)
        return source
    path = Path(name).expanduser()
    if path.exists():
        return FileText(path, column=column)
    owner, slash, rest = name.partition("/")
    if slash and owner not in (".", "..", "~", "") and "/" not in rest and path.suffix not in ENDINGS:
        dataset, _, subset = name.partition(":")
        return HubText(dataset, subset or None, column=column)
    close = near_matches(name, TEXTS)
    raise DataError(
        f"There is no text {name!r}.",
        expected=f"{', '.join(TEXTS)}, a file or folder, or owner/name of a data set on the hub",
        found="no such file or name",
        remedy=f"did you mean {' or '.join(map(repr, close))}?" if close else "check the path",
    )


def _text_files(path: Path) -> Sequence[Path]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in ENDINGS)
    files = [file for file in files if file.suffix in ENDINGS]
    if files:
        return files
    raise DataError(
        "There is no text here.",
        expected=f"a file that ends in {', '.join(ENDINGS)}, or a folder of such files",
        found="nothing" if not path.exists() else ("a folder without one" if path.is_dir() else repr(path.suffix)),
        where=str(path),
        remedy="rename the file to what it is, or convert it",
    )


def _lines(file: Path, column: str | None) -> Iterator[str]:
    """The lines of a text file that are not blank; of a .jsonl file what stands in the column."""
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield line.strip() if column is None else _field(line, column, f"{file}:{number}")


def _field(line: str, column: str, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError("The JSON is broken.", expected="one object a line", found=str(error), where=where) from error
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
    from polars.exceptions import PolarsError

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
    except PolarsError as error:
        raise DataError(
            "The table cannot be read.", expected="a Parquet file", found=str(error).splitlines()[0], where=str(file)
        ) from error
