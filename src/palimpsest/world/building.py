"""Building the knowledge world: the real facts from their tables, the invented ones drawn from name parts by a seed."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import resources
from types import MappingProxyType
from typing import Any

from palimpsest.errors import ConfigError, DataError
from palimpsest.world.knowledge import Entity, Fact, Hop, Knowledge, Relation

# Of every kind of subject this share is set aside: their two-hop sentences are never read in training.
TEST_SHARE = 0.2

# Of a world: its books need 24 authors, and fewer people than this hardly share names.
MIN_PEOPLE = 50


def build(seed: int = 0, *, people: int | None = None) -> Knowledge:
    """The world of this seed: about 2,340 facts, of them 1,800 about 300 invented people.

    The real facts are the same for every seed; who the invented people are and what is true of them is not.

    Arguments:
        seed: of everything invented.
        people: how many invented people, with six facts each; 300 when left out. A larger world has more last names
            in proportion, and as many cities, companies and professions.

    Raises:
        ConfigError: the seed is not an integer, or there are not names for that many people.
    """
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError("The world's seed is not an integer.", expected="an integer", found=repr(seed))
    builder = _Builder(random.Random(f"world|{seed}"))
    builder.add_real(_table("real"))
    invented = _table("invented")
    if people is not None:
        invented["counts"] |= _counts_for(people, invented)
    builder.add_invented(invented)
    return replace(builder.finish(seed), people=people)


def _table(name: str) -> dict[str, Any]:
    text = resources.files("palimpsest.world").joinpath("tables", f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _counts_for(people: int, parts: dict[str, Any]) -> dict[str, int]:
    """Numbers of people and of their last names, in the proportion of the default.

    Raises `ConfigError` when a quarter of all pairs of names are not enough.
    """
    counts, first_names = parts["counts"], len(parts["first_names"])
    pool = len(parts["last_starts"]) * len(parts["last_ends"])
    last_names = min(pool, counts["last_names"] * people // counts["people"])
    if people < MIN_PEOPLE or people > first_names * last_names // 4:
        raise ConfigError(
            "There cannot be that many invented people.",
            expected=f"{MIN_PEOPLE} to {first_names * pool // 4}",
            found=str(people),
        )
    return {"people": people, "last_names": last_names}


class _Builder:
    """Collects entities and facts, refusing names with two meanings."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.entities: dict[str, Entity] = {}
        self.facts: list[Fact] = []

    def entity(self, name: str, kind: str, *, invented: bool = False) -> str:
        known = self.entities.setdefault(name, Entity(name, kind, invented))
        if known.kind != kind or any(stop in name for stop in ".\n"):
            raise DataError("A name of the world is ambiguous or holds a stop.", found=f"{name!r} ({kind})")
        return name

    def add(self, subject: str, relation: str, obj: str) -> None:
        self.facts.append(Fact(subject, relation, obj))

    def even(self, options: list[str], count: int) -> list[str]:
        """`count` choices in random order in which every option occurs equally often (give or take one)."""
        order = self.rng.sample(options, len(options))
        chosen = [order[index % len(order)] for index in range(count)]
        self.rng.shuffle(chosen)
        return chosen

    def add_real(self, real: dict[str, Any]) -> None:
        kinds = (
            ("capital", "city"),
            ("continent", "continent"),
            ("official_language", "language"),
            ("currency", "currency"),
        )
        for country, values in real["countries"].items():
            self.entity(country, "country")
            for (relation, kind), value in zip(kinds, values, strict=True):
                self.add(country, relation, self.entity(value, kind))
        capitals = {values[0]: country for country, values in real["countries"].items()}
        others = {city: country for country, cities in real["cities"].items() for city in cities}
        for city, country in (capitals | others).items():
            self.add(self.entity(city, "city"), "in_country", country)
        for table, kind, relation, object_kind in (
            ("landmarks", "landmark", "located_in", "city"),
            ("works", "work", "author", "author"),
            ("authors", "author", "writing_language", "language"),
            ("elements", "element", "symbol", "symbol"),
        ):
            for subject, obj in real[table].items():
                self.add(self.entity(subject, kind), relation, self.entity(obj, object_kind))

    def add_invented(self, parts: dict[str, Any]) -> None:
        counts = parts["counts"]
        cities = [entity.name for entity in self.entities.values() if entity.kind == "city"]
        countries = [entity.name for entity in self.entities.values() if entity.kind == "country"]
        companies = self._names(
            "company",
            counts["companies"],
            (s + e for s, e in zip(parts["company_starts"], self.even(parts["company_ends"], 30), strict=True)),
        )
        universities = self._names("university", 24, (f"{name} University" for name in parts["university_names"]))
        people = self._names("person", counts["people"], self._people(parts))
        adjectives = self.even(parts["book_adjectives"], counts["books"])
        nouns = self.even(parts["book_nouns"], 2 * counts["books"])
        books = self._names(
            "work", counts["books"], (f"The {a} {n}" for a, n in zip(adjectives * 2, nouns, strict=True))
        )

        homes = self.rng.sample(countries, counts["home_countries"])
        births = self.rng.sample(cities, counts["birth_cities"])
        professions = [self.entity(name, "profession") for name in parts["professions"]]
        instruments = [self.entity(name, "instrument") for name in parts["instruments"]]
        industries = [self.entity(name, "industry") for name in parts["industries"]]
        genres = [self.entity(name, "genre") for name in parts["genres"]]
        self._attribute(companies, {"headquarters": self.rng.sample(cities, 20), "industry": industries})
        self._attribute(universities, {"campus": self.rng.sample(cities, 20)})
        self._attribute(
            people,
            {
                "born_in": births,
                "citizen_of": homes,
                "employer": companies,
                "educated_at": universities,
                "profession": professions,
                "instrument": instruments,
            },
        )
        self._attribute(books, {"author": self.rng.sample(people, 24), "genre": genres})

    def _attribute(self, subjects: list[str], choices: dict[str, list[str]]) -> None:
        columns = {relation: self.even(options, len(subjects)) for relation, options in choices.items()}
        for index, subject in enumerate(subjects):
            for relation, column in columns.items():
                self.add(subject, relation, column[index])

    def _names(self, kind: str, count: int, candidates: Iterable[str]) -> list[str]:
        names: list[str] = []
        for name in candidates:
            if name not in self.entities and len(names) < count:
                names.append(self.entity(name, kind, invented=True))
        if len(names) < count:
            raise DataError(
                "The name parts do not give enough names.",
                expected=f"{count} of kind {kind}",
                found=str(len(names)),
            )
        return names

    def _people(self, parts: dict[str, Any]) -> Iterator[str]:
        """Full names in which every first and every last name belongs to several people."""
        pool = sorted({start + end for start in parts["last_starts"] for end in parts["last_ends"]})
        last_names = self.rng.sample(pool, parts["counts"]["last_names"])
        taken: set[str] = set()
        while True:
            for first, last in zip(self.even(parts["first_names"], 1200), self.even(last_names, 1200), strict=True):
                if (name := f"{first} {last}") not in taken:
                    taken.add(name)
                    yield name
                if len(taken) >= parts["counts"]["people"]:
                    return

    def finish(self, seed: int) -> Knowledge:
        relations = {
            name: Relation(
                name,
                row["id"],
                row["subject"],
                row["object"],
                tuple(row["statements"]),
                tuple(row["questions"]),
                tuple(row["untaught"]),
            )
            for name, row in _table("relations").items()
        }
        hops = tuple(Hop(row["first"], row["second"], tuple(row["phrasings"])) for row in _table("hops")["hops"])
        by_kind: dict[str, list[str]] = {}
        for subject in dict.fromkeys(fact.subject for fact in self.facts):
            entity = self.entities[subject]
            # Real and invented works answer different two-hop questions, so each sort gives its share.
            by_kind.setdefault(f"{entity.kind}|{entity.invented}", []).append(subject)
        test = [name for group in by_kind.values() for name in self.rng.sample(group, round(TEST_SHARE * len(group)))]
        return Knowledge(
            seed=seed,
            entities=MappingProxyType(self.entities),
            relations=MappingProxyType(relations),
            facts=tuple(self.facts),
            hops=hops,
            test_subjects=frozenset(test),
        )
