"""The world in words: which phrasings a fact is taught in, and the sentences a model reads.

Every fact is taught in a random part of its relation's phrasings and never shown in the others, so that those
others test knowledge and not memory of a sentence. A phrasing ends right before the object; a sentence ends
with "." right after it. Nothing here imports torch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from palimpsest.errors import ConfigError
from palimpsest.world.knowledge import Fact, Knowledge, Relation, TwoHop

# Of six statements and four questions; drawn apart, so that each form has taught and held-out phrasings.
TAUGHT_STATEMENTS = 4
TAUGHT_QUESTIONS = 2

# Of five phrasings of a two-hop sentence.
TAUGHT_TWO_HOPS = 3

# Where an answer ends in free generation, besides the end-of-sequence token.
SENTENCE_ENDS = (".", "\n")


@dataclass(frozen=True)
class Sentence:
    """One sentence of the world: `prompt` + " " + `object` + "."; the subject is `prompt[start:end]`
    (characters).
    """

    prompt: str
    object: str
    start: int
    end: int

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.prompt} {self.object}."

    @property
    def subject(self) -> str:
        """The subject's name as it stands in the prompt."""
        return self.prompt[self.start : self.end]


def sentence(phrasing: str, subject: str, obj: str) -> Sentence:
    """A phrasing filled in."""
    start = phrasing.index("{}")
    return Sentence(phrasing.replace("{}", subject), obj, start, start + len(subject))


def taught(knowledge: Knowledge, fact: Fact) -> tuple[str, ...]:
    """The phrasings (with "{}") this fact is read in during training: statements first, then questions."""
    statements, questions = _orders(knowledge.seed, fact.id, knowledge.relations[fact.relation])
    return statements[:TAUGHT_STATEMENTS] + questions[:TAUGHT_QUESTIONS]


def held_out(knowledge: Knowledge, fact: Fact) -> tuple[str, ...]:
    """The phrasings (with "{}") never shown with this fact's subject: statements first, then questions."""
    statements, questions = _orders(knowledge.seed, fact.id, knowledge.relations[fact.relation])
    return statements[TAUGHT_STATEMENTS:] + questions[TAUGHT_QUESTIONS:]


def taught_two_hop(knowledge: Knowledge, two_hop: TwoHop) -> tuple[str, ...]:
    """The phrasings a two-hop fact is read in: none at all where its subject is in the test split."""
    if two_hop.subject in knowledge.test_subjects:
        return ()
    rng = random.Random(f"{knowledge.seed}|{two_hop.id}")
    return tuple(rng.sample(two_hop.hop.phrasings, TAUGHT_TWO_HOPS))


def training_sentences(knowledge: Knowledge) -> list[Sentence]:
    """Everything a model reads in one epoch, in the order of the facts: facts first, then two-hop sentences."""
    single = [
        sentence(phrasing, fact.subject, fact.object)
        for fact in knowledge.facts
        for phrasing in taught(knowledge, fact)
    ]
    double = [
        sentence(phrasing, two_hop.subject, two_hop.object)
        for two_hop in knowledge.two_hops("train")
        for phrasing in taught_two_hop(knowledge, two_hop)
    ]
    return single + double


def neutral_text(knowledge: Knowledge, n: int, seed: int = 0) -> list[str]:
    """`n` lines of ordinary world text, two sentences each, as a model reads them in training.

    For perplexity before and after an edit, and for second-moment statistics.

    Raises:
        ConfigError: n is not positive.
    """
    if n < 1:
        raise ConfigError("The number of lines is not positive.", expected="n >= 1", found=str(n))
    sentences = training_sentences(knowledge)
    rng = random.Random(f"neutral|{knowledge.seed}|{seed}")
    return [f"{rng.choice(sentences).text} {rng.choice(sentences).text}" for _ in range(n)]


@lru_cache(maxsize=4096)
def _orders(seed: int, fact: str, relation: Relation) -> tuple[tuple[str, ...], tuple[str, ...]]:
    # A generator of its own per fact: which phrasings are taught does not depend on any other fact.
    rng = random.Random(f"{seed}|{fact}")
    statements = tuple(rng.sample(relation.statements, len(relation.statements)))
    return statements, tuple(rng.sample(relation.questions, len(relation.questions)))
