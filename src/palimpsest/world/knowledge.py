"""The knowledge world: a graph of real facts anyone can check and invented people, companies and books.

The graph is deterministic from its seed, closed (every object is known) and free of ambiguity: a subject has
exactly one object per relation, and a name means one entity only. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from palimpsest.errors import unknown_name

SPLITS = ("train", "test", "all")


@dataclass(frozen=True)
class Entity:
    """Something with a name: `kind` is "person", "city", ...; `invented` says that it exists only here."""

    name: str
    kind: str
    invented: bool


@dataclass(frozen=True)
class Relation:
    """A kind of fact and all the ways to say it; every phrasing has one "{}" and ends before the object.

    `untaught` are phrasings that no model ever reads.
    """

    name: str
    id: str
    subject_kind: str
    object_kind: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    untaught: tuple[str, ...] = ()

    @property
    def phrasings(self) -> tuple[str, ...]:
        """Those that facts are taught in: statements first, then questions."""
        return self.statements + self.questions


@dataclass(frozen=True)
class Fact:
    """One edge of the graph, by names."""

    subject: str
    relation: str
    object: str

    @property
    def id(self) -> str:
        """Its identity, "subject|relation": what an edit changes is only the object."""
        return f"{self.subject}|{self.relation}"


@dataclass(frozen=True)
class Hop:
    """Two relations in one sentence: the object of `first` is the subject of `second`."""

    first: str
    second: str
    phrasings: tuple[str, ...]


@dataclass(frozen=True)
class TwoHop:
    """A two-hop fact: `subject` -`hop.first`-> `bridge` -`hop.second`-> `object`; the bridge is never named."""

    subject: str
    hop: Hop
    bridge: str
    object: str

    @property
    def id(self) -> str:
        """Its identity, "subject|first>second"."""
        return f"{self.subject}|{self.hop.first}>{self.hop.second}"


@dataclass(frozen=True)
class Knowledge:
    """The whole world. Iteration orders are part of the determinism: same seed, same order.

    `entities` and `relations` map names; `facts` has one entry per (subject, relation); `test_subjects` are
    the subjects whose two-hop sentences a model never reads; `people` is what was asked of `build`.
    """

    seed: int
    entities: MappingProxyType[str, Entity]
    relations: MappingProxyType[str, Relation]
    facts: tuple[Fact, ...]
    hops: tuple[Hop, ...]
    test_subjects: frozenset[str]
    people: int | None = field(default=None, compare=False)

    @cached_property
    def _by_id(self) -> dict[str, Fact]:
        return {fact.id: fact for fact in self.facts}

    @cached_property
    def _by_subject(self) -> dict[str, tuple[Fact, ...]]:
        return _grouped(self.facts, "subject")

    @cached_property
    def _by_relation(self) -> dict[str, tuple[Fact, ...]]:
        return _grouped(self.facts, "relation")

    @cached_property
    def _namesakes(self) -> dict[str, tuple[str, ...]]:
        people = [entity.name for entity in self.entities.values() if entity.kind == "person"]
        sharing: dict[tuple[int, str], list[str]] = {}
        for person in people:
            for part in enumerate(person.split(" ")):
                sharing.setdefault(part, []).append(person)
        return {
            person: tuple(other for part in enumerate(person.split(" ")) for other in sharing[part] if other != person)
            for person in people
        }

    def fact(self, subject: str, relation: str) -> Fact | None:
        """The fact about this subject in this relation, or None where the world has none."""
        return self._by_id.get(f"{subject}|{relation}")

    def facts_about(self, subject: str) -> tuple[Fact, ...]:
        """All facts whose subject this is."""
        return self._by_subject.get(subject, ())

    def facts_in(self, relation: str) -> tuple[Fact, ...]:
        """All facts of a relation.

        Raises:
            ConfigError: there is no such relation.
        """
        if relation not in self.relations:
            raise unknown_name("relation", relation, self.relations)
        return self._by_relation[relation]

    def namesakes(self, person: str) -> tuple[str, ...]:
        """Other people with the same first name, then those with the same last name."""
        return self._namesakes.get(person, ())

    def alternatives(self, fact: Fact) -> tuple[str, ...]:
        """The other objects this relation takes in the world, of the same kind as the fact's object, sorted."""
        kind = self.entities[fact.object].kind
        objects = {other.object for other in self.facts_in(fact.relation)}
        return tuple(sorted(name for name in objects - {fact.object} if self.entities[name].kind == kind))

    def in_split(self, subject: str, split: str) -> bool:
        """Whether a subject belongs to "train", "test" or "all".

        Raises:
            ConfigError: there is no such split.
        """
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return split == "all" or (subject in self.test_subjects) == (split == "test")

    def two_hops(self, split: str = "all") -> Iterator[TwoHop]:
        """Every two-hop fact about the subjects of a split, in the order of the facts.

        Raises:
            ConfigError: there is no such split.
        """
        for fact in self.facts:
            if self.in_split(fact.subject, split):
                yield from self.follow(fact)

    def follow(self, fact: Fact) -> Iterator[TwoHop]:
        """The two-hop facts that begin with this fact, which need not be true: the second hop always is."""
        for hop in self.hops:
            if hop.first == fact.relation:
                second = self.fact(fact.object, hop.second)
                # "Paris lies in a country whose capital is Paris" would be answered by copying.
                if second is not None and second.object != fact.subject:
                    yield TwoHop(fact.subject, hop, fact.object, second.object)


def _grouped(facts: Iterable[Fact], attribute: str) -> dict[str, tuple[Fact, ...]]:
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(getattr(fact, attribute), []).append(fact)
    return {key: tuple(group) for key, group in groups.items()}
