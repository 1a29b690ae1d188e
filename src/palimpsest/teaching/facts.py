"""A data set's true facts as sentences to read and questions to ask, so that a model can be trained to know them.

A record's true answer is its old one (`target_old`). Its prompt is read, and so are some other phrasings of the same
relation; its rephrasings never are. Neighbours and out-of-scope questions whose true answer the data set gives are
read as they stand, neighbours also in other phrasings. Nothing here imports torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from palimpsest.datasets import Phrasings, Skipped, own_phrasing, relation_of
from palimpsest.errors import ConfigError, DataError
from palimpsest.requests import EditRequest, Probe, normalise
from palimpsest.wording import find_subject
from palimpsest.world import Sentence, sentence

MIN_FACTS = 20
# A distracting probe states the edit's false answer itself; what portability asks is true only after the edit.
ASKED_ELSEWHERE = frozenset({"locality.distracting"})
UNREAD = "unread phrasing"
_CONTRADICTED = "another record gives another true answer"
_SAME_RELATION = frozenset({"locality.neighborhood", "locality.namesake"})
_PREFIX_WORDS = (3, 10)


@dataclass(frozen=True)
class FactQuestion:
    """Something to ask after training; `kind` is a probe's, or `UNREAD`: a phrasing never read with this subject."""

    kind: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Lessons:
    """Sentences for training a model, and questions that test it.

    Arguments:
        sentences: everything read in one epoch.
        questions: by kind, each distinct one once.
        num_facts: distinct facts among the sentences.
        left_out: requests and locality probes that are not taught, with the reason.
    """

    sentences: tuple[Sentence, ...]
    questions: tuple[FactQuestion, ...]
    num_facts: int
    left_out: tuple[Skipped, ...]


@dataclass
class _Fact:
    """A true fact about a subject; `read` and `unread` are phrasings that must, and must not, be read."""

    subject: str
    relation: str
    answer: str
    read: dict[str, None] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)


def lessons(
    requests: Sequence[EditRequest], *, seed: int = 0, phrasings: int = 4, prefixed_share: float = 0.2
) -> Lessons:
    """Sentences and questions from the true facts of a data set.

    Arguments:
        requests: of them, `target_old`, the rephrasings and the locality probes with an expected answer are used.
        seed: of the choice of phrasings and prefixes.
        phrasings: in how many a fact is read at most, besides those it must be read in.
        prefixed_share: of the sentences, how many are read a second time behind unrelated words, drawn from the words
            that stand before the data set's rephrasings; none are where it has no such words.

    Raises:
        ConfigError: a number is out of range.
        DataError: fewer than `MIN_FACTS` requests have a true answer.
    """
    if phrasings < 1 or not 0 <= prefixed_share <= 1:
        raise ConfigError("A number is out of range.", expected="phrasings >= 1 and prefixed_share from 0 to 1")
    usable, left_out = _usable(requests)
    known = Phrasings.of(usable)
    book = _Book(known)
    for request in usable:
        book.enter(request)
    for request in usable:
        book.enter_probes(request)
    rng = random.Random(f"lessons|{seed}")
    read = [*book.sentences(phrasings, rng)]
    words = _prefix_words(usable, known)
    if words:
        read += [_behind(one, words, rng) for one in read if rng.random() < prefixed_share]
    asked = dict.fromkeys([*questions(usable), *book.unread])
    return Lessons(tuple(read), tuple(asked), book.num_facts, (*left_out, *book.conflicting))


def questions(requests: Sequence[EditRequest]) -> Iterator[FactQuestion]:
    """Returns the questions of requests with a true answer before any edit: prompts, rephrasings, locality probes."""
    for request in requests:
        answer = request.target_old or ""
        yield FactQuestion("reliability", request.prompt, answer)
        for probe in request.probes:
            if probe.kind == "generality":
                yield FactQuestion("generality", probe.prompt, answer)
        for probe in _locality(request):
            yield FactQuestion(probe.kind, probe.prompt, probe.expected or "")


def _usable(requests: Sequence[EditRequest]) -> tuple[list[EditRequest], list[Skipped]]:
    usable = [request for request in requests if request.target_old is not None]
    left_out = [Skipped(f"edit {r.id}", "it has no true answer") for r in requests if r.target_old is None]
    if len(usable) < MIN_FACTS:
        raise DataError(
            "There are too few facts to train a model on.",
            expected=f"at least {MIN_FACTS} records with a true answer (`target_old`, `ground_truth`, `answers`)",
            found=f"{len(usable)} of {len(requests)} records have one",
            remedy="take a data set whose records say what is true today",
        )
    return usable, left_out


class _Book:
    """Collects facts; where two answers contradict each other the first one counts."""

    def __init__(self, phrasings: Phrasings) -> None:
        self.phrasings = phrasings
        self.facts: dict[tuple[str, str], _Fact] = {}
        self.plain: dict[str, Sentence] = {}
        self.unread: list[FactQuestion] = []
        self.conflicting: list[Skipped] = []

    @property
    def num_facts(self) -> int:
        return len(self.facts) + len(self.plain)

    def enter(self, request: EditRequest) -> None:
        """A request's own fact."""
        answer = request.target_old or ""
        if request.subject is None:
            self._enter_plain(request.prompt, answer, f"edit {request.id}")
            return
        relation, own = relation_of(request), own_phrasing(request)
        fact = self._fact(relation or own, request.subject, relation, answer)
        if fact is None:
            self.conflicting.append(Skipped(f"edit {request.id}", _CONTRADICTED))
            return
        fact.read[own] = None
        fact.unread.update(phrasing for _, phrasing in self.phrasings.paraphrases(request))

    def enter_probes(self, request: EditRequest) -> None:
        """The facts that a request's locality probes ask about."""
        relation = relation_of(request)
        for probe in _locality(request):
            where = f"edit {request.id}, {probe.prompt!r}"
            matched = self.phrasings.match(relation, probe.prompt) if probe.kind in _SAME_RELATION else None
            if matched is None:
                self._enter_plain(probe.prompt, probe.expected or "", where)
                continue
            phrasing, subject = matched
            fact = self._fact(relation, subject, relation, probe.expected or "")
            if fact is None:
                self.conflicting.append(Skipped(where, _CONTRADICTED))
            else:
                fact.read[phrasing] = None

    def sentences(self, phrasings: int, rng: random.Random) -> Iterator[Sentence]:
        """Every fact in the phrasings it must be read in and in some others; one that is left is asked."""
        for fact in self.facts.values():
            must = [phrasing for phrasing in fact.read if phrasing not in fact.unread]
            others = dict.fromkeys(o for p in fact.read for o in self.phrasings.alternatives(fact.relation, p))
            free = [phrasing for phrasing in others if phrasing not in fact.unread and phrasing not in fact.read]
            rng.shuffle(free)
            more = max(0, min(phrasings - len(must), len(free) - 1))
            for phrasing in must + free[:more]:
                yield sentence(phrasing, fact.subject, fact.answer)
            if free[more:]:
                self.unread.append(FactQuestion(UNREAD, free[more].replace("{}", fact.subject), fact.answer))
        yield from self.plain.values()

    def _fact(self, key: str, subject: str, relation: str, answer: str) -> _Fact | None:
        """The fact of this key and subject, or `None` where it has another answer."""
        fact = self.facts.setdefault((key, normalise(subject)), _Fact(subject, relation, answer))
        return fact if normalise(fact.answer) == normalise(answer) else None

    def _enter_plain(self, prompt: str, answer: str, where: str) -> None:
        subject = find_subject(prompt) or ""
        start = prompt.rfind(subject) if subject else 0
        new = Sentence(prompt, answer, start, start + len(subject))
        if normalise(self.plain.setdefault(normalise(prompt), new).object) != normalise(answer):
            self.conflicting.append(Skipped(where, _CONTRADICTED))


def _locality(request: EditRequest) -> Iterator[Probe]:
    """Locality probes whose answer is true today and given."""
    for probe in request.probes:
        if probe.is_locality and probe.expected and probe.kind not in ASKED_ELSEWHERE:
            yield probe


def _prefix_words(requests: Sequence[EditRequest], known: Phrasings) -> list[str]:
    return [word for r in requests for prefix, _ in known.paraphrases(r) for word in prefix.split()]


def _behind(one: Sentence, words: Sequence[str], rng: random.Random) -> Sentence:
    """The sentence behind a few unrelated words."""
    chosen = [rng.choice(words).rstrip(".") for _ in range(rng.randint(*_PREFIX_WORDS))]
    lead = " ".join(chosen) + ". "
    return Sentence(lead + one.prompt, one.object, one.start + len(lead), one.end + len(lead))
