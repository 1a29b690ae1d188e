"""A recipe: the TOML file that says what is compared with what. Unknown keys are errors with near matches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field

from palimpsest.benchmark.choosing import candidates, merged, nested, swept
from palimpsest.benchmark.entries import (
    ChoiceRule,
    DataEntry,
    MethodEntry,
    ModelEntry,
    ProtocolEntry,
    label_of,
)
from palimpsest.config import Config
from palimpsest.errors import ConfigError, DataError, unknown_name
from palimpsest.evaluation import PublishedFigure
from palimpsest.files import FileKind, expanded

_RECIPE = FileKind(DataError, "The recipe cannot be read.", expected="a .toml file, as in bench/recipes")
_FAMILIES = ("reliability", "generality", "locality", "portability")


class Recipe(Config):
    """An experiment. Every combination of models, data sets, methods, protocols and seeds is one unit of work."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str = ""
    about: str = ""
    """Its purpose, and where its results are published."""
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
    choose: ChoiceRule | None = None
    """How a candidate of each row's `grid` is chosen, where the row does not say otherwise."""
    paper: list[PublishedFigure] = []

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
            "paper": PublishedFigure,
        }
        for key, kind in nested.items():
            if isinstance(full.get(key), list):
                full[key] = [_entry(one, kind, f"{key}[{number}] of {where}") for number, one in enumerate(full[key])]
        if isinstance(full.get("choose"), dict):
            full["choose"] = ChoiceRule.parse(full["choose"], owner=f"`choose` of {where}")
        if isinstance(full.get("methods"), list):
            full["methods"] = [one for row in full["methods"] for one in swept(row)]
        recipe = cls.parse(full, owner=f"recipe {where!r}")
        recipe.check()
        return recipe

    def rule_of(self, row: MethodEntry) -> ChoiceRule:
        """How a candidate of the row is chosen."""
        return row.choose or self.choose or ChoiceRule()

    def row(self, label: str, model: ModelEntry, data: DataEntry) -> MethodEntry:
        """The row of this label on a model and a data set. Raises `ConfigError` if there is none."""
        rows = {label_of(row): row for row in reversed(self.methods) if row.is_wanted_on(model, data)}
        if label not in rows:
            raise unknown_name("row", label, rows, where="`options_of` of a method")
        return rows[label]

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
            # Options of another row stand for whatever that has.
            taken = nested({name: {} for name in row.options_of})
            for values in candidates(row) or [{}]:
                method(row.name, preset=row.preset, **merged(taken, row.options, nested(values)))
        self._check_choices()
        for data in self.datasets:
            _ = DATASETS[data.name]
        for one in self.protocols:
            one.made()
        for name in self.scorings:
            find_scoring(name)
        for name in self.measures:
            find_measure(name)

    def _check_choices(self) -> None:
        """Raises `ConfigError` for rules without a grid, unknown metrics, and rows that take each other's options."""
        from palimpsest.evaluation import find_scoring

        with_grid = [row for row in self.methods if row.grid]
        for rule, rows, where in (
            (self.choose, with_grid, f"recipe {self.name!r}"),
            *((row.choose, [row] if row.grid else [], f"method {label_of(row)!r}") for row in self.methods),
        ):
            if rule is None:
                continue
            if not rows:
                raise ConfigError(
                    "There is nothing to choose among.", expected="a `grid` of option values", found="none",
                    where=f"`choose` of {where}",
                )  # fmt: skip
            rule.protocol.made()
            find_scoring(rule.scoring)
            for name in (*rule.by, *rule.at_least):
                if name.split(".")[0] not in _FAMILIES:
                    raise unknown_name("metric", name, _FAMILIES, where=f"`choose` of {where}")
        for data in self.datasets if with_grid else ():
            data.for_choosing()
        for model, data, _ in self.places():
            for row in self.methods:
                if row.is_wanted_on(model, data):
                    self._require_end(row, model, data, ())

    def _require_end(self, row: MethodEntry, model: ModelEntry, data: DataEntry, before: tuple[str, ...]) -> None:
        """Raises `ConfigError` when following `options_of` comes back to a row that it began at."""
        chain = (*before, label_of(row))
        if label_of(row) in before:
            raise ConfigError(
                "Rows take their options from each other.", expected="`options_of` that ends at a row without it",
                found=" -> ".join(chain),
            )  # fmt: skip
        for label in row.options_of.values():
            self._require_end(self.row(label, model, data), model, data, chain)


def _require_once(what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"Two {what} of the recipe go by one name.",
            expected="a `label` of its own for each",
            found=", ".join(twice),
        )


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
