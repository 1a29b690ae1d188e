"""Degenerate text: a model that says the same thing over and over.

Two signs, each of them enough: something that is repeated at once three times or more and is at least half of the text
(`Osaka Osaka Osaka`), or an n-gram entropy far below that of a text of this length in which nothing is said twice. The
entropy is CounterFact's fluency (Meng et al., arXiv:2202.05262, appendix D.3): the entropies of the distributions of
bigrams and trigrams in bits, with weights 2/3 and 4/3, averaged.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from palimpsest.wording.scripts import folded, is_unspaced, words

REPEATS = 3
"""So often at once; twice is a name (`Duran Duran`), or emphasis."""
NUMBER_REPEATS = 6
"""The same for digits: `10,000,000,000` is a number."""
LEAST_CHARACTERS = 10
"""What is shorter than this, repetitions included, is not judged; characters of scripts without spaces count twice."""
LEAST_SHARE = 0.5
"""Of the text that the repetitions must cover."""
LEAST_WORDS = 16
"""Entropy of fewer words says little."""
LEAST_ENTROPY = 0.6
"""Share of the highest entropy that as many words can have. A sentence of seven words said four times is at 0.59."""

_REPEATED = re.compile(rf"(?P<unit>.{{1,80}}?)(?P=unit){{{REPEATS - 1},}}", re.DOTALL)


def is_degenerate(text: str, answers: Iterable[str] = ()) -> bool:
    """Whether a generated text repeats itself in a way that no reader would take for an answer.

    Arguments:
        answers: expected ones; a text is not degenerate for repeating what one of them repeats.
    """
    body = folded(text)
    if any(_repeats(folded(answer)) for answer in answers):
        return False
    return _repeats(body) or is_monotonous(words(body))


def ngram_entropy(said: Sequence[str]) -> float:
    """Weighted mean of the bigram and trigram entropies of a list of words, in bits: CounterFact's fluency."""
    return (2 / 3 * _entropy(said, 2) + 4 / 3 * _entropy(said, 3)) / 2


def is_monotonous(said: Sequence[str]) -> bool:
    """Whether the entropy is below `LEAST_ENTROPY` of what as many different words would have."""
    if len(said) < LEAST_WORDS:
        return False
    return ngram_entropy(said) < LEAST_ENTROPY * ngram_entropy([str(number) for number in range(len(said))])


def _entropy(said: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(said[start:] for start in range(n)), strict=False))
    total = sum(counts.values())
    return -math.fsum(count / total * math.log2(count / total) for count in counts.values()) if total else 0.0


def before_repetition(text: str) -> str:
    """What a text says before it repeats itself at once; empty where it begins with that or repeats nothing."""
    start = _start_of_run(text)
    return "" if start is None else text[:start].rstrip()


def _repeats(body: str) -> bool:
    """Whether something repeated at once makes up the better part of a folded text."""
    return _start_of_run(body) is not None


def _start_of_run(body: str) -> int | None:
    """Where that begins, if there is something."""
    # So that the last one of a list of words is closed like the others.
    closed = f"{body} ".replace("\n", " ")
    for found in _REPEATED.finditer(closed):
        unit, length = found["unit"], len(found[0])
        has_letters = any(char.isalpha() for char in unit)
        if not has_letters and any(char.isdigit() for char in unit) and length < NUMBER_REPEATS * len(unit):
            continue
        drawn = length + sum(map(is_unspaced, found[0]))
        if drawn >= LEAST_CHARACTERS and length >= LEAST_SHARE * len(closed):
            return found.start()
    return None
