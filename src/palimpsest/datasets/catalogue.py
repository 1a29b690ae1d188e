"""All data sets by name, and a user's own file of edits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from palimpsest.datasets import akew, counterfact, knowedit, mquake, ripple, tabular, unke, zsre
from palimpsest.datasets.base import Dataset, Parse, Record, assemble
from palimpsest.datasets.columns import read_columns
from palimpsest.datasets.hub import is_hub_name, read_hub
from palimpsest.datasets.reading import ENDINGS, known_splits, read_records
from palimpsest.errors import DataError
from palimpsest.files import expanded
from palimpsest.registry import Registry, Row

if TYPE_CHECKING:
    from collections.abc import Callable

NEUTRAL_SENTENCES = 64
TABLES = ("jsonl", "json", "csv", "tsv")

DATASETS = Registry(
    "data set",
    "palimpsest.datasets",
    {
        "world-counterfact": Row(
            "palimpsest.datasets.catalogue:load_world",
            "edits of the bundled world in CounterFact's form (no path)",
        ),
        "world-zsre": Row(
            "palimpsest.datasets.catalogue:load_world",
            "edits of the bundled world in ZsRE's form (no path)",
        ),
        "zsre": Row(
            "palimpsest.datasets.catalogue:load_published",
            "ZsRE in MEND's format, also with the portability questions of EasyEdit's survey, from a file",
            source="arXiv:2110.11309, arXiv:2305.13172",
        ),
        "counterfact": Row(
            "palimpsest.datasets.catalogue:load_published",
            "CounterFact in ROME's or EasyEdit's format, from a file",
            source="arXiv:2202.05262",
        ),
        "mquake": Row(
            "palimpsest.datasets.catalogue:load_published",
            "MQuAKE's questions over several facts, of which one is edited, from a file",
            source="arXiv:2305.14795",
        ),
        "knowedit": Row(
            "palimpsest.datasets.catalogue:load_published",
            "KnowEdit's wiki_counterfact, wiki_recent and ZsRE, with questions of several kinds, from a file",
            source="arXiv:2401.01286",
        ),
        "ripple-edits": Row(
            "palimpsest.datasets.catalogue:load_published",
            "RippleEdits' recent, random and popular edits, with questions of six kinds, from a file",
            source="arXiv:2307.12976",
        ),
        "unke": Row(
            "palimpsest.datasets.catalogue:load_published",
            "UnKEBench's questions whose answers are whole passages, from a file",
            source="arXiv:2405.15349",
        ),
        "akew": Row(
            "palimpsest.datasets.catalogue:load_published",
            "AKEW's passages for edits of CounterFact, MQuAKE and WikiUpdate, from a file",
            source="arXiv:2402.18909",
        ),
        "portability": Row(
            "palimpsest.datasets.catalogue:load_portability",
            "edits with the portability questions that people accepted, from a folder of `portability build`",
            source="arXiv:2305.13172",
        ),
        "jsonl": Row("palimpsest.datasets.catalogue:load_table", "your own edits, one JSON object per line"),
        "json": Row("palimpsest.datasets.catalogue:load_table", "your own edits, a JSON list"),
        "csv": Row("palimpsest.datasets.catalogue:load_table", "your own edits, a table with a header"),
        "tsv": Row("palimpsest.datasets.catalogue:load_table", "your own edits, a table with tabs between its cells"),
    },
)


@dataclass(frozen=True)
class Layout:
    """A published layout of records.

    Arguments:
        parse: the function that reads one.
        marks: sets of fields; a record that has all of one set is of this layout. `requested_rewrite.X` is a field
            inside that one.
        notes: sentences that a user of the data should read.
        like_own: those marks that a user's own records may have too; they are told apart by the form of their
            questions, and read as the user's own where every record must be usable.
    """

    parse: Parse
    marks: tuple[frozenset[str], ...]
    notes: tuple[str, ...] = ()
    like_own: tuple[frozenset[str], ...] = ()


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "zsre": Layout(zsre.request, (zsre.FIELDS,)),
        # AKEW's has the fields of MQuAKE's or CounterFact's as well, MQuAKE's and KnowEdit's those of CounterFact's.
        "akew": Layout(akew.request, akew.MARKS),
        "mquake": Layout(mquake.request, (mquake.FIELDS,), mquake.NOTES),
        "knowedit": Layout(knowedit.request, (knowedit.FIELDS,), like_own=(knowedit.FIELDS,)),
        "counterfact": Layout(
            counterfact.request,
            (counterfact.NESTED_FIELDS, counterfact.FLAT_FIELDS),
            like_own=(counterfact.FLAT_FIELDS,),
        ),
        "ripple-edits": Layout(ripple.request, (ripple.FIELDS,), ripple.NOTES),
        "unke": Layout(unke.request, unke.MARKS),
    }
)
"""The published layouts by the name of their data set, in the order in which they are recognised."""


def dataset(name: str, path: str | Path | None = None, *, split: str = "test") -> Dataset:
    """A data set by name.

    Arguments:
        name: see `palimpsest list datasets`; or a file of edits, which `load_edits` reads.
        path: the file, or `hf://owner/name` on the hub, for those that are read from one.
        split: `"test"` or another split that the data set or the file has. Of a file whose records name no split
            `test`, the split `test` is the whole file.

    Raises `ConfigError`, with near matches, for an unknown name; `DataError` for a path that is missing or
    not wanted, and for a file that cannot be used.
    """
    if path is None and is_file_of_edits(name):
        return load_edits(name, split=split)
    load: Callable[[str, Path | None, str], Dataset] = DATASETS[name].load()
    return load(name, None if path is None else expanded(path), split)


def is_file_of_edits(name: str | Path) -> bool:
    """Whether a name is a file's: what looks like a path and is no file is a missing file, not a misspelt name."""
    file = expanded(name)
    if not str(name).strip() or str(name) in DATASETS:
        return False
    return file.exists() or "/" in str(name) or file.suffix.lower() in ENDINGS


def load_edits(path: str | Path, *, is_strict: bool | None = None, split: str | None = None) -> Dataset:
    """A user's file of edits: JSONL, JSON, CSV or TSV, or a file of a published data set.

    Also `hf://owner/name`, and the folder of a portability build.

    The format is recognised by the fields of the first record.

    Arguments:
        path: the file.
        is_strict: whether a record that cannot be used is an error, or is skipped and counted. Left out, it is an
            error in a user's own file and skipped in a published data set.
        split: only the records of this split, as `dataset` reads them; left out, all. A build is the split `test`.

    Raises `DataError` that says what was expected, what was found, where, and what to do.
    """
    file = expanded(path)
    from palimpsest.datasets.portability.review import is_build, read_reviewed

    if is_build(file):
        _of_split([], split or "test", file)
        return read_reviewed(file)
    records = _records(file)
    return _recognised(file, records if split is None else _of_split(records, split, file), is_strict=is_strict)


def _recognised(file: Path, records: list[Record], *, is_strict: bool | None) -> Dataset:
    """The data set in the format that the first record's fields say."""
    fields = _names(records[0]) if records else set()
    for layout in LAYOUTS.values():
        found = next((marks for marks in layout.marks if fields >= marks), None)
        if found is not None:
            is_own = found in layout.like_own and (is_strict or not knowedit.is_published_form(records))
            if is_own or (found == zsre.FIELDS and zsre.has_questions_by_kind(records)):
                break
            return assemble(file.name, records, layout.parse, is_strict=bool(is_strict), notes=layout.notes)
    return _own(file, records, is_strict=is_strict is not False)


def _names(record: Record) -> set[str]:
    """The names of a record's fields, and of those inside its requested rewrite, or the first of several."""
    inside = record.fields.get("requested_rewrite")
    first = inside[0] if isinstance(inside, list) and inside else inside
    return {*record.fields, *(f"requested_rewrite.{name}" for name in (first if isinstance(first, Mapping) else ()))}


def training_edits(source: str | Path) -> Dataset:
    """Returns the training edits of an editor: the split `train` of a data set that needs no file, or a file of edits.

    Of a file whose records name splits it is `train`, else the whole file; records that cannot be used are skipped and
    counted.

    Raises as `dataset` and `load_edits` do, and `DataError` for a file that names only other splits.
    """
    name = str(source)
    if name in DATASETS:
        return dataset(name, split="train")
    file = expanded(source)
    return _recognised(file, _training_records(file), is_strict=False)


def _training_records(file: Path) -> list[Record]:
    records = _records(file)
    return _of_split(records, "train", file) if known_splits(records) else records


def load_published(name: str, path: Path | None, split: str) -> Dataset:
    """A published data set from a file; see the module of its name in `palimpsest.datasets`."""
    file, layout = _required(name, path), LAYOUTS[name]
    records = _of_split(_records(file), split, file)
    return assemble(name, records, layout.parse, is_strict=False, notes=layout.notes)


def load_portability(name: str, path: Path | None, split: str) -> Dataset:
    """The folder of a portability build; see `palimpsest.datasets.portability`."""
    from palimpsest.datasets.portability import read_reviewed

    return read_reviewed(_required(name, path))


def load_table(name: str, path: Path | None, split: str) -> Dataset:
    """A user's own file; see `palimpsest.datasets.tabular`."""
    file = _required(name, path)
    return _own(file, _of_split(_records(file), split, file))


def load_world(name: str, path: Path | None, split: str) -> Dataset:
    """The bundled world's edits, in CounterFact's or ZsRE's form, with sentences of the world as neutral text."""
    if path is not None:
        raise DataError(
            f"The data set {name!r} is built in and takes no file.",
            expected="no path",
            found=str(path),
            remedy=f"leave the path out, or name the file's format: {', '.join([*LAYOUTS, *TABLES])}",
        )
    from palimpsest import world

    knowledge = world.build()
    entries, parse = (
        (world.zsre(knowledge, split=split), zsre.request)
        if name == "world-zsre"
        else (world.counterfact(knowledge, split=split), counterfact.request)
    )
    records = [Record(f"{name}[{index}]", entry) for index, entry in enumerate(entries)]
    text = world.neutral_text(knowledge, NEUTRAL_SENTENCES, 0)
    return assemble(name, records, parse, is_strict=True, neutral_text=text)


def _own(file: Path, records: list[Record], *, is_strict: bool = True) -> Dataset:
    read, notes = read_columns(records)
    return assemble(file.name, read, tabular.request, is_strict=is_strict, notes=notes)


def _records(file: Path) -> list[Record]:
    return read_hub(file) if is_hub_name(file) else read_records(file)


def _of_split(records: list[Record], split: str, file: Path) -> list[Record]:
    splits = known_splits(records)
    if split in splits:
        return splits[split]
    if split == "test":
        return records
    raise DataError(
        "The file has no such split.",
        expected=f"one of {', '.join(sorted({'test', *splits}))}" + ("" if splits else " (its records name no split)"),
        found=repr(split),
        where=str(file),
    )


def _required(name: str, path: Path | None) -> Path:
    if path is None:
        raise DataError(
            f"The data set {name!r} is read from a file.",
            expected="a path, or hf://owner/name",
            found="none",
            remedy=f"dataset({name!r}, 'path/to/file'); world-counterfact and world-zsre need none",
        )
    return path
