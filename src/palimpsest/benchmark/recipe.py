"""A recipe: the TOML file that says what is compared with what. Unknown keys are errors with near matches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field

from palimpsest.config import Config
from palimpsest.errors import ConfigError, DataError
from palimpsest.files import FileKind, expanded

_RECIPE = FileKind(DataError, "The recipe cannot be read.", expected="a .toml file, as in bench/recipes")


class ModelEntry(Config):
    """A model of the recipe; a text stands for `{name = text}`."""

    name: str
    """A hub id, a bundled model, or a folder, relative to the root."""
    label: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    chat: bool = False


class DataEntry(Config):
    """A data set of the recipe; a text stands for `{name = text}`."""

    name: str
    """See `palimpsest list datasets`."""
    path: str | None = None
    """The file, relative to the root, or `hf://owner/name`, for data sets that are read from one."""
    label: str | None = None
    split: str = "test"
    first: int | None = Field(default=None, ge=1)
    """Use only the first N records; the sample is drawn from these."""
    models: list[str] | None = None
    """Only on these, by label; on all when left out."""


class ProtocolEntry(Config):
    """A protocol of the recipe; a text stands for `{name = text}`."""

    name: str
    batch_size: int | None = Field(default=None, ge=1)
    checkpoints: list[int] | None = None
    num_edits: int | None = Field(default=None, ge=1)
    """In place of the recipe's."""


class MethodEntry(Config):
    """A method of the recipe: a row of its tables; a text stands for `{name = text}`."""

    name: str
    label: str | None = None
    preset: str = "auto"
    options: dict[str, Any] = {}
    models: list[str] | None = None
    """Only on these, by label; on all when left out."""
    datasets: list[str] | None = None
    """Only on these, by label."""
    protocols: list[str] | None = None
    """Only under these, by name."""

    def is_wanted(self, model: ModelEntry, data: DataEntry, protocol: ProtocolEntry) -> bool:
        """Whether the restrictions leave it in this place."""
        restrictions = (
            (label_of(model), self.models),
            (label_of(data), self.datasets),
            (protocol.name, self.protocols),
        )
        return all(names is None or name in names for name, names in restrictions)


class Published(Config):
    """A figure that somebody else published, to stand beside ours."""

    source: str
    """Paper, table, and the model it was measured on."""
    model: str
    """The label of the model of ours that stands for it."""
    method: str
    """The label of the row."""
    dataset: str
    """The label of the data set."""
    reliability: float | None = None
    generality: float | None = None
    locality: float | None = None
    """All three in percent, as published."""

    def fits(self, model: str, dataset: str, method: str) -> bool:
        """Whether it stands beside the row of ours that has these labels."""
        return (self.model, self.dataset, self.method) == (model, dataset, method)


class Recipe(Config):
    """What is run. Every combination of models, data sets, methods, protocols and seeds is one unit of work."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str = ""
    about: str = ""
    """What it is for, and what of it is published where."""
    models: list[ModelEntry] = Field(min_length=1)
    datasets: list[DataEntry] = Field(min_length=1)
    methods: list[MethodEntry] = Field(min_length=1)
    protocols: list[ProtocolEntry] = [ProtocolEntry(name="single")]
    num_edits: int | None = Field(default=None, ge=1)
    """How many edits a unit makes, drawn with the seed; all of a data set's when left out."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Of the draw of edits, and of whatever is random in a method."""
    scorings: list[str] = ["generate", "teacher_forced", "log_prob", "exact"]
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Tokens that are generated at most; what the longest answer needs, and some more, when left out."""
    probes_per_kind: int | None = Field(default=None, ge=1)
    """Most probes of each kind per edit; all when left out."""
    is_perplexity_wanted: bool = True
    """Whether the data sets' neutral texts are read before and after."""
    measures: list[str] = []
    """What else is measured before and after: `token-time`, `weight-distance`, `task:NAME`."""
    paper: list[Published] = []

    def places(self) -> Iterator[tuple[ModelEntry, DataEntry, ProtocolEntry]]:
        """Every model with the data sets that are asked of it, and every protocol."""
        for model, data, protocol in product(self.models, self.datasets, self.protocols):
            if data.models is None or label_of(model) in data.models:
                yield model, data, protocol

    @classmethod
    def of(cls, table: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
        """A recipe from what a TOML file holds. Raises `ConfigError` that names the key."""
        full = dict(table)
        nested: dict[str, type[Config]] = {
            "models": ModelEntry,
            "datasets": DataEntry,
            "protocols": ProtocolEntry,
            "methods": MethodEntry,
            "paper": Published,
        }
        for key, kind in nested.items():
            if isinstance(full.get(key), list):
                full[key] = [_entry(one, kind, f"{key}[{number}] of {where}") for number, one in enumerate(full[key])]
        recipe = cls.parse(full, owner=f"recipe {where!r}")
        recipe.check()
        return recipe

    def check(self) -> None:
        """Raises `ConfigError` for labels given twice, rows restricted to labels that there are not, unknown names."""
        from palimpsest.datasets import DATASETS
        from palimpsest.evaluation import find_measure, find_scoring
        from palimpsest.methods import method

        labels: dict[str, list[str]] = {
            "models": [label_of(one) for one in self.models],
            "datasets": [label_of(one) for one in self.datasets],
            "protocols": [one.name for one in self.protocols],
        }
        for what in ("models", "datasets"):
            _require_once(what, labels[what])
        for place in self.places():
            # Rows of one name may have other options on another model or data set.
            _require_once("methods", [label_of(one) for one in self.methods if one.is_wanted(*place)])
        entries: tuple[MethodEntry | DataEntry, ...] = (*self.methods, *self.datasets)
        for entry in entries:
            for what, names in labels.items():
                unknown = [name for name in getattr(entry, what, None) or () if name not in names]
                if unknown:
                    raise ConfigError(
                        f"A `{what}` restriction names labels missing from the recipe.",
                        expected=f"some of {', '.join(names)}",
                        found=", ".join(unknown),
                        where=repr(label_of(entry)),
                    )
        for row in self.methods:
            method(row.name, preset=row.preset, **row.options)
        for data in self.datasets:
            _ = DATASETS[data.name]
        for one in self.protocols:
            make_protocol(one)
        for name in self.scorings:
            find_scoring(name)
        for name in self.measures:
            find_measure(name)


def _require_once(what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"Two {what} of the recipe go by one name.",
            expected="a `label` of its own for each",
            found=", ".join(twice),
        )


def label_of(entry: ModelEntry | DataEntry | MethodEntry) -> str:
    """What an entry is called in tables."""
    return entry.label or entry.name


def make_protocol(entry: ProtocolEntry) -> Any:
    """The evaluation's protocol. Raises `ConfigError` for options that it does not have."""
    from palimpsest import evaluation

    points = tuple(entry.checkpoints) if entry.checkpoints else None
    return evaluation.make_protocol(entry.name, batch_size=entry.batch_size, checkpoints=points)


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from its file. Raises `DataError` for one that cannot be read, `ConfigError` for what it says."""
    file = expanded(path)
    return Recipe.of(_RECIPE.toml(file), where=file.name)


def _entry(given: Any, kind: type[Config], owner: str) -> Config:
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict):
        raise ConfigError(
            "A recipe entry is neither a name nor a table.",
            expected="a name or a table",
            found=repr(given),
            where=owner,
        )
    return kind.parse(given, owner=owner)
