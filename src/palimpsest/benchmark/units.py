"""Units of work, each with an address made of everything that determines its result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from palimpsest.benchmark.choosing import best, in_words, merged, nested, quality
from palimpsest.benchmark.entries import (
    ChoiceRule,
    DataEntry,
    MethodEntry,
    ModelEntry,
    ProtocolEntry,
    identity_of,
    label_of,
)
from palimpsest.errors import ConfigError, DataError
from palimpsest.files import expanded
from palimpsest.provenance import content_digest, digest
from palimpsest.world import BUNDLED

ResultOf = Callable[["WorkUnit"], Mapping[str, Any]]
"""What `palimpsest eval --json` prints of a unit that is done; empty where it failed."""


@dataclass(frozen=True)
class WorkUnit:
    """One run: a method on a model and a data set, under a protocol, with a seed.

    Arguments:
        model, dataset, method, protocol: the recipe's entries.
        seed: of the draw and of the method.
        num_edits: how many edits; `None` for all.
        evaluation: the recipe's options of every evaluation.
        root: what relative paths are relative to. Not part of the address: moving files changes no result.
        later: options that are not known before other units are done; see `resolved`.
        candidate: the values, by dotted option name, that a candidate has of its row's grid.
    """

    model: ModelEntry
    dataset: DataEntry
    method: MethodEntry
    protocol: ProtocolEntry
    seed: int
    num_edits: int | None
    evaluation: dict[str, Any]
    root: str
    later: LaterOptions | None = None
    candidate: Mapping[str, Any] | None = None
    planned_address: str | None = None
    """Of a unit whose options came to be known: the address it was planned under."""

    @cached_property
    def address(self) -> str:
        """Sixteen hexadecimal digits; two units with one address have one result."""
        return self.planned_address or digest(self.identity())

    def identity(self) -> dict[str, Any]:
        """Everything that determines the result, JSON-ready; labels and restrictions do not."""
        return {
            "model": identity_of(self.model, "label"),
            "dataset": identity_of(self.dataset, "label", "models", "choose_on"),
            "method": {**self.method.model_dump(include={"name", "preset"}), "options": self._options()},
            "protocol": self.protocol.model_dump(exclude={"num_edits"}),
            "seed": self.seed,
            "num_edits": self.num_edits,
            "evaluation": self.evaluation,
            **({"contents": self.contents} if self.contents else {}),
        }

    def _options(self) -> dict[str, Any]:
        return self.method.options if self.later is None else self.later.identity()

    @cached_property
    def contents(self) -> dict[str, str]:
        """A digest of every file and folder on this machine that the recipe names, by that name.

        What comes with the package is not among them: results of another version of it are refused anyway.
        """
        named = {name for name in (self.model.name, self.dataset.path) if name} | set(_paths(self._options()))
        places = {name: Path(self.located(name)) for name in sorted(named)}
        return {name: content_digest(place) for name, place in places.items() if os.path.exists(place)}

    def labels(self) -> dict[str, Any]:
        """What tables call it; a candidate says what it is one for, a row of a sweep what it has of it."""
        protocol: str = self.protocol.name
        if self.protocol.batch_size is not None:
            protocol += f" of {self.protocol.batch_size}"
        is_candidate = self.candidate is not None
        return {
            "model": label_of(self.model),
            "dataset": label_of(self.dataset),
            "method": label_of(self.method) + (f": {in_words(self.candidate or {})}" if is_candidate else ""),
            "protocol": protocol,
            "num_edits": self.num_edits,
            "seed": self.seed,
            **({"swept": self.method.swept} if self.method.swept else {}),
            **({"candidate_for": label_of(self.method)} if is_candidate else {}),
        }

    def waits_for(self) -> list[WorkUnit]:
        """The units that have to be done before this one's options are known, in the order of the recipe."""
        return [] if self.later is None else list({unit.address: unit for unit in self.later.waits_for()}.values())

    def resolved(self, result_of: ResultOf) -> WorkUnit:
        """The unit with options that are known, under its own address.

        Raises `ConfigError` when no candidate could be measured.
        """
        if self.later is None:
            return self
        method = self.method.model_copy(update={"options": self.later.resolved(result_of)})
        return replace(self, method=method, later=None, planned_address=self.address)

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


@dataclass(frozen=True)
class LaterOptions:
    """Options of a row that depend on what other units come to.

    Arguments:
        label: of the row.
        given: what the recipe says of them.
        taken: names of options with the row whose options they are.
        candidates: a unit for each combination of the row's grid.
        rule: how one of these is chosen.
    """

    label: str
    given: Mapping[str, Any]
    taken: Mapping[str, LaterOptions] = field(default_factory=dict)
    candidates: tuple[WorkUnit, ...] = ()
    rule: ChoiceRule = field(default_factory=ChoiceRule)

    def waits_for(self) -> Iterator[WorkUnit]:
        """Every unit that has to be done before, those of other rows first."""
        for other in self.taken.values():
            yield from other.waits_for()
        yield from self.candidates

    def identity(self) -> dict[str, Any]:
        """What determines them, JSON-ready: for a row without others and candidates, the options themselves."""
        identity = dict(self.given)
        if self.taken:
            identity["taken from"] = {name: other.identity() for name, other in self.taken.items()}
        if self.candidates:
            rule = self.rule.model_dump(mode="json", exclude={"protocol", "num_edits", "seed"})
            identity["chosen from"] = {"rule": rule, "candidates": [unit.address for unit in self.candidates]}
        return identity

    def resolved(self, result_of: ResultOf) -> dict[str, Any]:
        """The options. Raises `ConfigError` when no candidate could be measured."""
        taken = {name: other.resolved(result_of) for name, other in self.taken.items()}
        chosen: Mapping[str, Any] = {}
        if self.candidates:
            place = self._best(result_of)
            if place is None:
                raise ConfigError(
                    "No candidate of the grid could be measured, so none can be chosen.",
                    expected=f"one of {len(self.candidates)} that has every metric of the criterion",
                    found="none",
                    where=f"method {self.label!r}",
                    remedy="see what the candidates failed with, correct the recipe, and go on with --retry-failed",
                )
            chosen = self.candidates[place].candidate or {}
        return merged(nested(taken), self.given, nested(chosen))

    def account(self, result_of: ResultOf) -> dict[str, Any] | None:
        """The grid and what was chosen of it, JSON-ready; `None` for a row without a grid."""
        if not self.candidates:
            return None
        first, place = self.candidates[0], self._best(result_of)
        listed = []
        for unit in self.candidates:
            score, metrics = quality(result_of(unit), self.rule)
            listed.append({"options": dict(unit.candidate or {}), "score": score, "metrics": metrics})
        return {
            "criterion": self.rule.criterion(),
            "on": {name: first.labels()[name] for name in ("dataset", "protocol", "num_edits", "seed")},
            "candidates": listed,
            "chosen": None if place is None else listed[place]["options"],
        }

    def _best(self, result_of: ResultOf) -> int | None:
        return best([quality(result_of(unit), self.rule) for unit in self.candidates], self.rule)


def _is_path(value: object) -> bool:
    """Whether an option's value looks like a path: a text with an ending or a slash."""
    return isinstance(value, str) and ("/" in value or bool(Path(value).suffix))


def _paths(options: Mapping[str, Any]) -> Iterator[str]:
    for value in options.values():
        if isinstance(value, Mapping):
            yield from _paths(value)
        elif _is_path(value):
            yield value
