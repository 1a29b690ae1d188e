"""ROUGE-L: how much of a text stands in another one, in the same order (Lin, "ROUGE", 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from palimpsest.wording import folded, words


class Rouge(NamedTuple):
    """With L words in the longest common subsequence of a text of m words and a reference of n words."""

    precision: float
    """L / m."""
    recall: float
    """L / n."""
    f1: float
    """2 L / (m + n), the harmonic mean of the two."""


def rouge_l(text: str, reference: str) -> Rouge:
    """Compares the words of two texts, without case and punctuation; of scripts without spaces, their characters.

    A text without words against another one without words is a perfect match, against words none. Words are not
    stemmed.
    """
    said, wanted = words(folded(text)), words(folded(reference))
    if not said or not wanted:
        same = float(said == wanted)
        return Rouge(same, same, same)
    common = longest_common_subsequence(said, wanted)
    return Rouge(common / len(said), common / len(wanted), 2 * common / (len(said) + len(wanted)))


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """How many items two sequences share in the same order, with gaps; O(len(first) len(second))."""
    lengths = [0] * (len(second) + 1)
    for one in first:
        diagonal = 0
        for index, other in enumerate(second, start=1):
            above = lengths[index]
            lengths[index] = diagonal + 1 if one == other else max(above, lengths[index - 1])
            diagonal = above
    return lengths[-1]
