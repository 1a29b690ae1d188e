"""Contrastive knowledge assessment: which facts a model holds wrongly (Dong et al., arXiv:2210.03329, section 2).

A fact's score is how much more probable its answer is where it is right than where it is wrong,

    score = (P(answer | prompt) + smoothing) / (mean of P over its contrasts + smoothing)

and below one the model does not hold it. In the paper a contrast is the same answer behind prompts of other relations
about the same subject (`relations`); with `answers` it is a wrong answer behind the same prompt. P is the probability
of a token of the answer, the geometric mean over its tokens, so that answers of several lengths compare; behind the
model's own thought where it thinks first.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from palimpsest.datasets import own_phrasing, relation_of
from palimpsest.errors import ConfigError, DataError, near_matches
from palimpsest.evaluation.behind_thoughts import answer_log_probs
from palimpsest.provenance import digest
from palimpsest.requests import EditRequest, normalise
from palimpsest.showing import counted, html_table, named
from palimpsest.stopwatch import Progress, silent

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

Against = Literal["answers", "relations"]


@dataclass(frozen=True)
class Contrast:
    """Something that is not true, and the probability that the model gives it."""

    prompt: str
    answer: str
    probability: float


@dataclass(frozen=True)
class AssessedFact:
    """One fact.

    Arguments:
        id: the record's.
        prompt: what is asked.
        answer: what is right.
        subject: what it is about, if the record says.
        probability: of the answer.
        contrasts: what it is held against.
        score: see the module's docstring.
        is_held: whether the score is at least the threshold.
    """

    id: str
    prompt: str
    answer: str
    subject: str | None
    probability: float
    contrasts: tuple[Contrast, ...]
    score: float
    is_held: bool


@dataclass(frozen=True)
class Assessment:
    """All facts, in their order.

    Arguments:
        model: its name.
        settings: how it was asked.
        facts: those that were assessed.
        left_out: ids of those without anything to hold them against.
        unfinished: ids of those that the model thought about without an end.
    """

    model: str
    settings: dict[str, Any]
    facts: tuple[AssessedFact, ...]
    left_out: tuple[str, ...]
    unfinished: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return named(self, self.model, f"{len(self.wrong)} of {counted(len(self.facts), 'fact')} held wrongly")

    def _repr_html_(self) -> str:
        rows = [(fact.prompt, fact.answer, fact.score, fact.is_held) for fact in self.facts]
        return html_table(repr(self), ("prompt", "answer", "score", "held"), rows)

    @property
    def wrong(self) -> list[AssessedFact]:
        """Facts that the model does not hold, the worst first."""
        return sorted((fact for fact in self.facts if not fact.is_held), key=lambda fact: fact.score)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        counts = {"facts": len(self.facts), "wrong": len(self.wrong), "left_out": len(self.left_out)}
        return {**asdict(self), "counts": counts}


def assess(
    model: EditableModel,
    facts: Sequence[EditRequest],
    *,
    answer: Literal["new", "old"] = "new",
    against: Against = "answers",
    distractors: Mapping[str, Sequence[str]] | None = None,
    num_contrasts: int = 3,
    smoothing: float = 0.0,
    threshold: float = 1.0,
    seed: int = 0,
    progress: Progress = silent,
) -> Assessment:
    """Scores facts and says which of them the model holds wrongly.

    Arguments:
        facts: records of edits.
        answer: which of a record's two answers is right: the `new` one, that should be true, or the `old` one.
        against: wrong `answers` behind the same prompt: a record's own distractors, or else its other answer and those
            of other records of its relation; or the prompts of other `relations`, about the same subject.
        distractors: wrong answers of a record's own, by its id or its prompt.
        num_contrasts: how many each fact is held against, at most; all of its own distractors.
        smoothing: added to both probabilities: the paper's alpha.
        threshold: the score from which on a fact is held.
        seed: of the choice among more contrasts.

    Raises `DataError` if there are no facts, or none of them has anything to be held against; `ConfigError` for a
    number out of range, or a distractor of a record that is not there.
    """
    if num_contrasts < 1 or smoothing < 0 or not threshold > 0:
        raise ConfigError(
            "A number is out of range.",
            expected="num_contrasts >= 1, smoothing >= 0, threshold > 0",
            found=f"{num_contrasts}, {smoothing}, {threshold}",
        )
    own = dict(distractors or {})
    _require_known(own, facts)
    pairs = _Pairs(_stated(facts, answer), own, against, num_contrasts, seed)
    chosen = [pairs.contrasts(index) for index in range(len(facts))]
    kept = [index for index, one in enumerate(chosen) if one]
    if not kept:
        raise _nothing_to_compare(len(facts), against)
    asked = [pair for index in kept for pair in [(facts[index].prompt, pairs.answers[index]), *chosen[index]]]
    logs = answer_log_probs(model, asked, progress)
    assessed, unfinished, start = [], [], 0
    for index in kept:
        end = start + 1 + len(chosen[index])
        found = [one for one in logs[start:end] if one is not None]
        if len(found) == end - start:
            assessed.append(_scored(facts[index], asked[start:end], found, smoothing, threshold))
        else:
            unfinished.append(facts[index].id)
        start = end
    settings = {
        "answer": answer,
        "against": against,
        "num_contrasts": num_contrasts,
        "smoothing": smoothing,
        "threshold": threshold,
        "seed": seed,
    }
    left_out = tuple(facts[index].id for index, one in enumerate(chosen) if not one)
    return Assessment(model.name, settings, tuple(assessed), left_out, tuple(unfinished))


@dataclass(frozen=True)
class _Pairs:
    """Prompts and answers that are wrong together."""

    stated: Sequence[tuple[EditRequest, str]]
    own: Mapping[str, Sequence[str]]
    against: Against
    most: int
    seed: int

    @property
    def answers(self) -> list[str]:
        """The right answers."""
        return [right for _, right in self.stated]

    def contrasts(self, index: int) -> list[tuple[str, str]]:
        """Prompts with answers."""
        request, right = self.stated[index]
        given = self.own.get(request.id, self.own.get(request.prompt, ()))
        if given and self.against == "answers":
            return [(request.prompt, text) for text in given if normalise(text) != normalise(right)]
        found = self._answers(index) if self.against == "answers" else self._prompts(index)
        if len(found) <= self.most:
            return found
        rng = random.Random(digest([self.seed, request.id]))
        return sorted(rng.sample(found, self.most), key=found.index)

    def _answers(self, index: int) -> list[tuple[str, str]]:
        request, _ = self.stated[index]
        # Whatever else is right for the same prompt is not wrong.
        right = {normalise(answer) for other, answer in self.stated if other.prompt == request.prompt}
        relation = _relation(request)
        others = [answer for other, answer in self.stated if relation is not None and _relation(other) == relation]
        candidates = [text for text in (request.target_old, request.target_new) if text] + others
        wrong = {normalise(text): text for text in reversed(candidates) if normalise(text) not in right}
        return [(request.prompt, text) for text in reversed(wrong.values())]

    def _prompts(self, index: int) -> list[tuple[str, str]]:
        request, right = self.stated[index]
        if request.subject is None:
            return []
        relation = _relation(request)
        by_relation = {_relation(other): own_phrasing(other) for other, _ in self.stated if other.subject is not None}
        prompts = [
            phrasing.replace("{}", request.subject) for other, phrasing in by_relation.items() if other != relation
        ]
        # The same answer may be right there too: where somebody was born, and where he died.
        true = {(other.prompt, normalise(answer)) for other, answer in self.stated}
        return [(prompt, right) for prompt in prompts if (prompt, normalise(right)) not in true]


def _stated(facts: Sequence[EditRequest], answer: str) -> list[tuple[EditRequest, str]]:
    """Every record with its right answer."""
    if not facts:
        raise DataError("There are no facts to assess.", expected="at least one record", found="none")
    lacking = [request.id for request in facts if answer == "old" and request.target_old is None]
    if lacking:
        raise DataError(
            "Some records have no old answer.",
            expected="`target_old` in every record, as the old answer is taken as the right one",
            found=f"{len(lacking)} of {len(facts)} without it; the first: {lacking[0]!r}",
            remedy="add it, or take the new answer as the right one",
        )
    return [(request, (request.target_old or "") if answer == "old" else request.target_new) for request in facts]


def _relation(request: EditRequest) -> str | None:
    """Returns the relation in the record's fact identity, or its prompt without the subject."""
    return relation_of(request) or (own_phrasing(request) if request.subject is not None else None)


def _scored(
    request: EditRequest, pairs: Sequence[tuple[str, str]], logs: Sequence[float], smoothing: float, threshold: float
) -> AssessedFact:
    """One fact from its own pair and its contrasts; by logarithms, since a wrong answer may underflow to zero."""
    alpha = math.log(smoothing) if smoothing else -math.inf
    above = _log_sum([logs[0], alpha])
    below = _log_sum([_log_sum(logs[1:]) - math.log(len(logs) - 1), alpha])
    score = math.exp(min(above - below, 700.0))
    contrasts = tuple(
        Contrast(prompt, answer, math.exp(log)) for (prompt, answer), log in zip(pairs[1:], logs[1:], strict=True)
    )
    return AssessedFact(
        id=request.id,
        prompt=request.prompt,
        answer=pairs[0][1],
        subject=request.subject,
        probability=math.exp(logs[0]),
        contrasts=contrasts,
        score=score,
        is_held=score >= threshold,
    )


def _log_sum(logs: Sequence[float]) -> float:
    """Log of the sum of exp."""
    most = max(logs)
    return most + math.log(sum(math.exp(one - most) for one in logs)) if most > -math.inf else most


def _require_known(own: Mapping[str, Sequence[str]], facts: Sequence[EditRequest]) -> None:
    known = {name for request in facts for name in (request.id, request.prompt)}
    for name in own:
        if name not in known:
            raise ConfigError(
                "A distractor belongs to no record.",
                expected="the id or the prompt of one"
                + "".join(f"; near: {one!r}" for one in near_matches(name, known)),
                found=repr(name),
                where="distractors",
            )


def _nothing_to_compare(count: int, against: str) -> DataError:
    return DataError(
        "There are no alternatives that the facts could be held against.",
        expected="distractors, a second answer in the records, or several facts of one relation"
        if against == "answers"
        else "records with a subject, of more than one relation",
        found=f"{count} fact(s), none of them with any",
        remedy="give wrong answers of your own (distractors), or assess more facts at once",
    )
