"""Guesses the subject of a prompt if none is given."""

from __future__ import annotations

import re

# Capitalised at the start of a sentence without naming anything.
_OPENERS = frozenset(
    re.findall(
        r"\w+",
        """a an the this that these those what which who whom whose when where why how in on at of for from by
        to with as is are was were do does did has have had can could will would should may might it he she
        they we i you his her their its our my your if and or but not no name tell say complete fill question
        answer q after before during since until there here according""",
    )
)
# Lower-case words that stand inside names: "Edwin of Northumbria", "Ludwig van Beethoven".
_INNER = frozenset(
    re.findall(r"\w+", "of de del della di da do dos das du des la le van von der den ter ten bin ibn al el y the")
)
_WORD = re.compile(r"[^\W_]+(?:[.'’&/\-][^\W_]+)*\.?|\S")
_QUOTED = re.compile(r"“([^”]+)”|\"([^\"]+)\"|«([^»]+)»|「([^」]+)」|(?<!\w)'([^']+)'(?!\w)|(?<!\w)‘([^’]+)’(?!\w)")


def find_subject(prompt: str) -> str | None:
    """The most likely subject: the longest run of capitalised words and numbers, else quoted text, else
    `None`.

    The opening word of a sentence does not count when it is a function or question word, and a run of letters
    is preferred to a number, a later one to a bare opening word. The result occurs in the prompt as it is
    spelled.
    """
    runs = _runs(prompt)
    if runs:
        start, end = max(runs, key=lambda run: _rank(prompt, *run))
        return prompt[start:end]
    quoted = _QUOTED.search(prompt)
    return next(group for group in quoted.groups() if group).strip() if quoted else None


def _runs(prompt: str) -> list[tuple[int, int]]:
    """Character spans of capitalised runs."""
    runs: list[tuple[int, int]] = []
    start: int | None = None
    end = 0
    is_opening = True
    for match in _WORD.finditer(prompt):
        word, (first, last) = match.group(), _without_possessive(match)
        named = word[0].isupper() or word[0].isdigit()
        if is_opening and word.rstrip(".").casefold().split("'")[0].split("’")[0] in _OPENERS:
            named = False
        if named:
            start, end = (first if start is None else start), last
        inside = named or (start is not None and word in _INNER)
        # A possessive, or a full stop that is no initial's, closes the name.
        if start is not None and (not inside or last < match.end()):
            runs.append((start, end))
            start = None
        is_opening = word in {".", "!", "?", ":", "\n", '"', "“", "'"} or (word.endswith(".") and len(word) > 3)
    if start is not None:
        runs.append((start, end))
    return runs


def _without_possessive(match: re.Match[str]) -> tuple[int, int]:
    word = match.group()
    length = len(word)
    for ending in ("'s", "’s"):
        if word.endswith(ending):
            length -= len(ending)
    if word.endswith(".") and length > 3:
        length -= 1
    return match.start(), match.start() + length


def _rank(prompt: str, start: int, end: int) -> tuple[int, bool, bool, int]:
    text = prompt[start:end]
    return len(text.split()), any(letter.isalpha() for letter in text), start > 0, len(text)
