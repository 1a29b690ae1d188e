"""From a recipe to its units of work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from palimpsest.answers import VERSION
from palimpsest.benchmark.choosing import candidates, merged, nested
from palimpsest.benchmark.entries import DataEntry, MethodEntry, ModelEntry, label_of
from palimpsest.benchmark.recipe import Recipe
from palimpsest.benchmark.units import LaterOptions, WorkUnit
from palimpsest.datasets import Dataset
from palimpsest.errors import ConfigError, DataError
from palimpsest.files import expanded
from palimpsest.provenance import digest
from palimpsest.requests import normalise


@dataclass(frozen=True)
class Plan:
    """The units of a recipe, in an order that loads each model once and meets every method early.

    Candidates stand before the unit whose options are chosen among them.
    """

    recipe: Recipe
    units: tuple[WorkUnit, ...]

    @classmethod
    def of(cls, recipe: Recipe, *, root: str | Path = ".") -> Plan:
        """The units of a recipe. Raises `ConfigError` when its restrictions leave none."""
        units: dict[str, WorkUnit] = {}
        for unit in _Planner(recipe, str(expanded(root).resolve())).units():
            for earlier in unit.waits_for():
                units.setdefault(earlier.address, earlier)
            units[unit.address] = unit
        if not units:
            raise ConfigError(
                "The recipe's restrictions leave nothing to run.",
                expected="a method whose models, data sets and protocols occur together",
                found=f"{len(recipe.methods)} methods, each restricted to what does not",
            )
        return cls(recipe, tuple(units.values()))

    def check_data(self) -> None:
        """Reads every data set that is on this machine once.

        Raises `DataError` for a file that is not there or has nothing to use, `ConfigError` for an unknown split and
        for options that would be chosen on facts that are reported: before anything is computed, not in each of many
        units.
        """
        prompts: dict[str, set[str]] = {}
        for unit in self.units:
            key = digest(unit.identity()["dataset"])
            if key not in prompts and not (unit.dataset.path or "").startswith("hf://"):
                prompts[key] = {normalise(request.prompt) for request in read_dataset(unit).requests}
        for unit in self.units:
            reported = prompts.get(digest(unit.identity()["dataset"]), set())
            for earlier in unit.waits_for() if unit.candidate is None else ():
                shared = reported & prompts.get(digest(earlier.identity()["dataset"]), set())
                if shared:
                    raise ConfigError(
                        "Options would be chosen on facts that are reported.",
                        expected="`choose_on` of the data set naming another split, another file, or records that "
                        "`skip` passes over",
                        found=f"{len(shared)} prompts in both, such as {min(shared)!r}",
                        where=f"data set {label_of(unit.dataset)!r}",
                    )


@dataclass
class _Planner:
    """Makes the units of a recipe; a row's candidates on a model and a data set are made once."""

    recipe: Recipe
    root: str
    _later: dict[tuple[str, str, int], LaterOptions] = field(default_factory=dict)

    def units(self) -> Iterator[WorkUnit]:
        """Every unit that is reported."""
        recipe = self.recipe
        for model, dataset, protocol in recipe.places():
            for seed in recipe.seeds:
                for method in recipe.methods:
                    if method.is_wanted(model, dataset, protocol):
                        number = protocol.num_edits or dataset.num_edits or recipe.num_edits
                        later = self.later(model, dataset, method)
                        yield WorkUnit(
                            model, dataset, method, protocol, seed, number, self.evaluation(), self.root,
                            later=later if later.taken or later.candidates else None,
                        )  # fmt: skip

    def evaluation(self, **changes: Any) -> dict[str, Any]:
        """The options of every evaluation."""
        whole = self.recipe.model_dump(
            include={"scorings", "max_new_tokens", "probes_per_kind", "is_perplexity_wanted", "measures"}, mode="json"
        )
        # Units that were measured under another definition of what counts as the answer are others.
        return {**whole, **changes, "scoring_version": VERSION}

    def later(self, model: ModelEntry, dataset: DataEntry, row: MethodEntry) -> LaterOptions:
        """Returns the sources of a row's options on a model and a data set."""
        # Rows of one name may have other options under another protocol.
        key = (label_of(model), label_of(dataset), self.recipe.methods.index(row))
        if key not in self._later:
            taken = {
                name: self.later(model, dataset, self.recipe.row(label, model, dataset))
                for name, label in row.options_of.items()
            }
            units = tuple(self._candidates(model, dataset, row, taken))
            self._later[key] = LaterOptions(label_of(row), row.options, taken, units, self.recipe.rule_of(row))
        return self._later[key]

    def _candidates(
        self, model: ModelEntry, dataset: DataEntry, row: MethodEntry, taken: dict[str, LaterOptions]
    ) -> Iterator[WorkUnit]:
        rule = self.recipe.rule_of(row)
        evaluation = self.evaluation(scorings=[rule.scoring], is_perplexity_wanted=False, measures=[])
        for values in candidates(row):
            options = merged(row.options, nested(values))
            method = row.model_copy(update={"options": options})
            yield WorkUnit(
                model, dataset.for_choosing(), method, rule.protocol, rule.seed,
                rule.protocol.num_edits or rule.num_edits, evaluation, self.root,
                later=LaterOptions(label_of(row), options, taken) if taken else None, candidate=values,
            )  # fmt: skip


def read_dataset(unit: WorkUnit) -> Dataset:
    """The unit's data set, as it is cut down by the recipe."""
    from palimpsest.datasets import dataset

    entry = unit.dataset
    path = entry.path if entry.path is None or entry.path.startswith("hf://") else unit.located(entry.path)
    data = dataset(entry.name, path, split=entry.split)
    end = None if entry.first is None else entry.skip + entry.first
    data = replace(data, requests=data.requests[entry.skip : end])
    if entry.one_per_subject:
        first = {request.subject: request for request in reversed(data.requests)}
        data = replace(data, requests=tuple(one for one in data.requests if first[one.subject] is one))
    if not data.requests:
        raise DataError(
            "The recipe leaves nothing of a data set.", expected="fewer records to pass over",
            found=f"skip = {entry.skip}", where=f"data set {label_of(entry)!r}",
        )  # fmt: skip
    most = unit.evaluation["probes_per_kind"]
    return data if most is None else data.with_probes(most)
