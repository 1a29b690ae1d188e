"""The world as data sets of edits, in the layouts in which CounterFact and ZsRE were published.

A record is a plain dictionary with exactly the published fields, and two more: `fact`, the identity of the
edited fact ("subject|relation"), and `probes`, a list of `{"kind", "prompt", "expected", "fact"}` where
`fact` is the identity of the fact asked about, so that an evaluation can leave out what was itself edited.
Nothing here imports torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.world.knowledge import Fact, Knowledge
from palimpsest.world.text import held_out, taught

# How many probes of each kind a record has at most.
GENERALITY = 3
NEIGHBORS = 6
NAMESAKES = 4
OTHER_RELATIONS = 5
OUT_OF_SCOPE = 3
DISTRACTING = 2
ONE_HOP_PHRASINGS = 1

# CounterFact's published sizes.
NEIGHBORHOOD_PROMPTS = 10
ATTRIBUTE_PROMPTS = 10
GENERATION_PROMPTS = 10


@dataclass(frozen=True)
class _Edit:
    """One edit before it is laid out; `prompt` and `rephrasings` are phrasings with "{}"."""

    fact: Fact
    target_new: str
    prompt: str
    generality: tuple[str, ...]
    neighbors: tuple[Fact, ...]
    probes: list[dict[str, str]]
    rng: random.Random


def counterfact(knowledge: Knowledge, *, split: str = "test") -> list[dict[str, Any]]:
    """The edits of a split in ROME's CounterFact layout; prompts are statements.

    `paraphrase_prompts` were never read with the subject. `neighborhood_prompts` ask about other subjects
    with the same true object, as published; if there are fewer than six such, others of the same relation
    follow (their own true objects are in `probes`). `attribute_prompts` ask about subjects whose object is
    the new one.

    Raises:
        ConfigError: there is no such split ("train", "test", "all").
    """
    records = []
    for number, edit in enumerate(_edits(knowledge, split, "counterfact")):
        fact, rng = edit.fact, edit.rng
        relation = knowledge.relations[fact.relation]
        attributes = [other for other in knowledge.facts_in(fact.relation) if other.object == edit.target_new]
        others = [other for other in knowledge.facts_about(fact.subject) if other != fact] or [fact]
        records.append(
            {
                "case_id": number,
                "requested_rewrite": {
                    "prompt": edit.prompt,
                    "relation_id": relation.id,
                    "target_new": {"str": edit.target_new},
                    "target_true": {"str": fact.object},
                    "subject": fact.subject,
                },
                "paraphrase_prompts": [_fill(text, fact) for text in edit.generality[:2]],
                "neighborhood_prompts": _prompts(knowledge, edit.neighbors, NEIGHBORHOOD_PROMPTS, rng),
                "attribute_prompts": _prompts(knowledge, attributes, ATTRIBUTE_PROMPTS, rng),
                "generation_prompts": _prompts(knowledge, others, GENERATION_PROMPTS, rng),
                "fact": fact.id,
                "probes": edit.probes,
            }
        )
    return records


def zsre(knowledge: Knowledge, *, split: str = "test") -> list[dict[str, Any]]:
    """The edits of a split in MEND's ZsRE layout; prompts are questions, `loc` an unrelated plain question.

    `pred` and `answers` hold the true object, `alt` the new one, `rephrase` a question never read with the
    subject.

    Raises:
        ConfigError: there is no such split ("train", "test", "all").
    """
    records = []
    for edit in _edits(knowledge, split, "zsre"):
        fact = edit.fact
        unrelated = _unrelated(knowledge, edit, 1)[0]
        question = _questions(taught(knowledge, unrelated))[0]
        src = _fill(edit.prompt, fact)
        records.append(
            {
                "subject": fact.subject,
                "src": src,
                "pred": fact.object,
                "rephrase": _fill(edit.generality[0], fact),
                "alt": edit.target_new,
                "answers": [fact.object],
                "loc": _fill(question, unrelated),
                "loc_ans": unrelated.object,
                "cond": f"{fact.object} >> {edit.target_new} || {src}",
                "fact": fact.id,
                "probes": edit.probes,
            }
        )
    return records


def _edits(knowledge: Knowledge, split: str, layout: str) -> Iterator[_Edit]:
    """Every fact of the split that has another object to take, in the order of the facts."""
    for fact in knowledge.facts:
        alternatives = knowledge.alternatives(fact)
        if not knowledge.in_split(fact.subject, split) or not alternatives:
            continue
        # A generator of its own per record: a record does not depend on the others, or on the split.
        rng = random.Random(f"{layout}|{knowledge.seed}|{fact.id}")
        target_new = _target(knowledge, fact, alternatives, rng)
        kept = _questions if layout == "zsre" else _statements
        shown, unseen = taught(knowledge, fact), held_out(knowledge, fact)
        # The layout's own form first; the other form tests generality as well.
        generality = (*kept(unseen), *(text for text in unseen if text not in kept(unseen)))[:GENERALITY]
        edit = _Edit(fact, target_new, kept(shown)[0], generality, _neighbors(knowledge, fact, rng), [], rng)
        edit.probes.extend(_probes(knowledge, edit))
        yield edit


def _target(knowledge: Knowledge, fact: Fact, alternatives: tuple[str, ...], rng: random.Random) -> str:
    """A new object; where two-hop questions can follow, one that changes some answer."""
    order = rng.sample(alternatives, len(alternatives))
    if not list(knowledge.follow(fact)):
        return order[0]
    return next((name for name in order if _consequences(knowledge, fact, name)), order[0])


def _consequences(knowledge: Knowledge, fact: Fact, target_new: str) -> list[tuple[str, str, str]]:
    """(prompt, answer, second fact's identity) of the two-hop questions whose answer changes with the edit."""
    old = {two_hop.hop: two_hop.object for two_hop in knowledge.follow(fact)}
    found = []
    for two_hop in knowledge.follow(Fact(fact.subject, fact.relation, target_new)):
        if old.get(two_hop.hop) != two_hop.object:
            for text in two_hop.hop.phrasings:
                found.append((text.replace("{}", fact.subject), two_hop.object, f"{target_new}|{two_hop.hop.second}"))
    return found


def _probes(knowledge: Knowledge, edit: _Edit) -> Iterator[dict[str, str]]:
    fact, rng = edit.fact, edit.rng
    for text in edit.generality:
        yield _probe("generality", _fill(text, fact), edit.target_new, fact.id)
    for other in edit.neighbors[:NEIGHBORS]:
        yield _ask(knowledge, "locality.neighborhood", other, rng)
    namesakes = [knowledge.fact(name, fact.relation) for name in knowledge.namesakes(fact.subject)]
    sharing = [other for other in namesakes if other is not None]
    for other in rng.sample(sharing, min(NAMESAKES, len(sharing))):
        yield _ask(knowledge, "locality.namesake", other, rng)
    others = [other for other in knowledge.facts_about(fact.subject) if other != fact]
    for other in rng.sample(others, min(OTHER_RELATIONS, len(others))):
        yield _ask(knowledge, "locality.other_relation", other, rng)
    unrelated = _unrelated(knowledge, edit, OUT_OF_SCOPE + DISTRACTING)
    for other in unrelated[:OUT_OF_SCOPE]:
        yield _ask(knowledge, "locality.out_of_scope", other, rng)
    for other in unrelated[OUT_OF_SCOPE:]:
        yield _ask(
            knowledge,
            "locality.distracting",
            other,
            rng,
            before=f"{_fill(edit.prompt, fact)} {edit.target_new}. ",
        )
    by_second: dict[str, list[tuple[str, str, str]]] = {}
    for found in _consequences(knowledge, fact, edit.target_new):
        by_second.setdefault(found[2], []).append(found)
    for group in by_second.values():
        for prompt, answer, second in rng.sample(group, ONE_HOP_PHRASINGS):
            yield _probe("portability.one_hop", prompt, answer, second)


def _neighbors(knowledge: Knowledge, fact: Fact, rng: random.Random) -> tuple[Fact, ...]:
    """Facts of the same relation about others: those with the same true object first, and at least six if
    there are.
    """
    # Works of real authors and invented books are told apart: their objects are of different kinds.
    kind = knowledge.entities[fact.object].kind
    others = [
        other
        for other in knowledge.facts_in(fact.relation)
        if other.subject != fact.subject and knowledge.entities[other.object].kind == kind
    ]
    same = [other for other in others if other.object == fact.object]
    rest = [other for other in others if other.object != fact.object]
    chosen = rng.sample(same, min(NEIGHBORHOOD_PROMPTS, len(same)))
    return (*chosen, *rng.sample(rest, min(max(0, NEIGHBORS - len(chosen)), len(rest))))


def _unrelated(knowledge: Knowledge, edit: _Edit, count: int) -> list[Fact]:
    """Facts of other relations about subjects that are neither the edit's, nor its namesakes, nor its
    objects.
    """
    fact = edit.fact
    near = {fact.subject, fact.object, edit.target_new, *knowledge.namesakes(fact.subject)}
    found: list[Fact] = []
    while len(found) < count:
        other = edit.rng.choice(knowledge.facts)
        if other.relation != fact.relation and other.subject not in near and other not in found:
            found.append(other)
    return found


def _ask(knowledge: Knowledge, kind: str, fact: Fact, rng: random.Random, before: str = "") -> dict[str, str]:
    """A probe for a true fact in a phrasing in which it was taught, so that the model knows it beforehand."""
    return _probe(kind, before + _fill(rng.choice(taught(knowledge, fact)), fact), fact.object, fact.id)


def _probe(kind: str, prompt: str, expected: str, fact: str) -> dict[str, str]:
    return {"kind": kind, "prompt": prompt, "expected": expected, "fact": fact}


def _prompts(knowledge: Knowledge, facts: Sequence[Fact], count: int, rng: random.Random) -> list[str]:
    """Taught prompts about these facts, each fact once, then again in other phrasings, up to `count`."""
    order = rng.sample(facts, min(count, len(facts)))
    rounds = zip(*(rng.sample(shown, len(shown)) for shown in (taught(knowledge, fact) for fact in order)), strict=True)
    return [_fill(text, fact) for texts in rounds for text, fact in zip(texts, order, strict=True)][:count]


def _statements(phrasings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text for text in phrasings if not text.endswith("?"))


def _questions(phrasings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text for text in phrasings if text.endswith("?"))


def _fill(phrasing: str, fact: Fact) -> str:
    return phrasing.replace("{}", fact.subject)
