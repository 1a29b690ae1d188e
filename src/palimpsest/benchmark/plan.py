"""From a recipe to its units of work, each with an address made of everything that determines its result."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from palimpsest.answers import VERSION
from palimpsest.benchmark.recipe import DataEntry, MethodEntry, ModelEntry, ProtocolEntry, Recipe, label_of
from palimpsest.datasets import Dataset
from palimpsest.errors import ConfigError, DataError
from palimpsest.files import expanded
from palimpsest.provenance import content_digest, digest
from palimpsest.world import BUNDLED


@dataclass(frozen=True)
class WorkUnit:
    """One run: a method on a model and a data set, under a protocol, with a seed.

    Arguments:
        model, dataset, method, protocol: the recipe's entries.
        seed: of the draw and of the method.
        num_edits: how many edits; `None` for all.
        evaluation: the recipe's options of every evaluation.
        root: what relative paths are relative to. Not part of the address: moving files changes no result.
    """

    model: ModelEntry
    dataset: DataEntry
    method: MethodEntry
    protocol: ProtocolEntry
    seed: int
    num_edits: int | None
    evaluation: dict[str, Any]
    root: str

    @cached_property
    def address(self) -> str:
        """Sixteen hexadecimal digits; two units with one address have one result."""
        return digest(self.identity())

    def identity(self) -> dict[str, Any]:
        """Everything that determines the result, JSON-ready; labels and restrictions do not."""
        return {
            "model": self.model.model_dump(exclude={"label"}),
            "dataset": self.dataset.model_dump(exclude={"label", "models"}),
            "method": self.method.model_dump(include={"name", "preset", "options"}),
            "protocol": self.protocol.model_dump(exclude={"num_edits"}),
            "seed": self.seed,
            "num_edits": self.num_edits,
            "evaluation": self.evaluation,
            **({"contents": self.contents} if self.contents else {}),
        }

    @cached_property
    def contents(self) -> dict[str, str]:
        """A digest of every file and folder on this machine that the recipe names, by that name.

        What comes with the package is not among them: results of another version of it are refused anyway.
        """
        named = {name for name in (self.model.name, self.dataset.path) if name} | set(_paths(self.method.options))
        places = {name: Path(self.located(name)) for name in sorted(named)}
        return {name: content_digest(place) for name, place in places.items() if os.path.exists(place)}

    def labels(self) -> dict[str, Any]:
        """What tables call it."""
        protocol: str = self.protocol.name
        if self.protocol.batch_size is not None:
            protocol += f" of {self.protocol.batch_size}"
        return {
            "model": label_of(self.model),
            "dataset": label_of(self.dataset),
            "method": label_of(self.method),
            "protocol": protocol,
            "num_edits": self.num_edits,
            "seed": self.seed,
        }

    def located(self, name: str) -> str:
        """A path of the recipe as a path from here; names that are no paths, and those of bundled models, stay."""
        if name in BUNDLED:
            return name
        try:
            path = Path(self.root) / expanded(name)
        except DataError:
            # A long text with a slash in it, which no path is.
            return name
        return str(path) if path.exists() else name

    def method_options(self) -> dict[str, Any]:
        """The method's options with its seed; texts that name a file under the root, by an ending or a slash, are
        its path from here.
        """

        def found(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: found(one) for key, one in value.items()}
            return self.located(value) if _is_path(value) else value

        return {"seed": self.seed, **found(self.method.options)}


def _is_path(value: object) -> bool:
    """Whether an option's value looks like a path: a text with an ending or a slash."""
    return isinstance(value, str) and ("/" in value or bool(Path(value).suffix))


def _paths(options: Mapping[str, Any]) -> Iterator[str]:
    for value in options.values():
        if isinstance(value, Mapping):
            yield from _paths(value)
        elif _is_path(value):
            yield value


@dataclass(frozen=True)
class Plan:
    """The units of a recipe, in an order that loads each model once and meets every method early."""

    recipe: Recipe
    units: tuple[WorkUnit, ...]

    @classmethod
    def of(cls, recipe: Recipe, *, root: str | Path = ".") -> Plan:
        """The units of a recipe. Raises `ConfigError` when its restrictions leave none."""
        units = {unit.address: unit for unit in _units(recipe, str(expanded(root).resolve()))}
        if not units:
            raise ConfigError(
                "The recipe's restrictions leave nothing to run.",
                expected="a method whose models, data sets and protocols occur together",
                found=f"{len(recipe.methods)} methods, each restricted to what does not",
            )
        return cls(recipe, tuple(units.values()))

    def check_data(self) -> None:
        """Reads every data set that is on this machine once.

        Raises `DataError` for a file that is not there or has nothing to use, `ConfigError` for an unknown split:
        before anything is computed, not in each of many units.
        """
        first = {digest(unit.identity()["dataset"]): unit for unit in reversed(self.units)}
        for unit in first.values():
            if not (unit.dataset.path or "").startswith("hf://"):
                read_dataset(unit)


def _units(recipe: Recipe, root: str) -> Iterator[WorkUnit]:
    evaluation = recipe.model_dump(
        include={"scorings", "max_new_tokens", "probes_per_kind", "is_perplexity_wanted", "measures"}, mode="json"
    )
    # Units that were measured under another definition of what counts as the answer are others.
    evaluation["scoring_version"] = VERSION
    for model, dataset, protocol in recipe.places():
        for seed in recipe.seeds:
            for method in recipe.methods:
                if method.is_wanted(model, dataset, protocol):
                    number = protocol.num_edits or recipe.num_edits
                    yield WorkUnit(model, dataset, method, protocol, seed, number, evaluation, root)


def read_dataset(unit: WorkUnit) -> Dataset:
    """The unit's data set, as it is cut down by the recipe."""
    from dataclasses import replace

    from palimpsest.datasets import dataset

    entry = unit.dataset
    path = entry.path if entry.path is None or entry.path.startswith("hf://") else unit.located(entry.path)
    data = dataset(entry.name, path, split=entry.split)
    if entry.first is not None:
        data = replace(data, requests=data.requests[: entry.first])
    most = unit.evaluation["probes_per_kind"]
    return data if most is None else data.with_probes(most)
