"""What a prompt is about: guessed where nobody has said it yet, and what is wrong where it is not there."""

from __future__ import annotations

import re

from palimpsest.errors import DataError
from palimpsest.wording.spelling import (
    closest_words,
    find_spelled,
    first_difference,
    hidden_characters,
    without_hidden,
)

_WORD = re.compile(r"[^\W_](?:[\w.&'\u2019-]*\w)?", re.UNICODE)
_QUOTED = re.compile(r"[\"\u201c\u00ab]([^\"\u201d\u00bb]{2,80})[\"\u201d\u00bb]")
_POSSESSIVE = re.compile(r"['\u2019]s$")
# Words that begin a sentence and name nothing.
_OPENERS = frozenset(
    {
        "the", "a", "an", "what", "which", "who", "whom", "whose", "where", "when", "why", "how", "in", "on", "at",
        "of", "for", "by", "from", "to", "with", "about", "is", "are", "was", "were", "does", "did", "do", "can",
        "there", "here", "this", "that", "these", "those", "it", "he", "she", "they", "his", "her", "its", "their",
        "my", "our",
        "your", "as", "after", "before", "during", "since",
    }
)  # fmt: skip
_ABBREVIATION = 4
"""Letters up to which a word before a full stop may be one: J. R. R. Tolkien, Warner Bros. Records."""
# Words inside a name that stay small: University of Oslo, Ludwig van Beethoven.
_LINKS = frozenset(
    {
        "of", "the", "and", "de", "la", "le", "du", "van", "von", "der", "den", "del", "di", "da", "al", "el", "y", "&",
        "for", "in",
    }
)  # fmt: skip


def find_subject(prompt: str) -> str | None:
    """The name that a prompt is most likely about: what stands in quotes, else the longest run of capitalised words.

    Of equally long ones the last is taken. Returns the text as the prompt spells it, or `None` where nothing looks
    like a name, as in scripts without capitals.
    """
    if quoted := _QUOTED.search(prompt):
        return quoted.group(1).strip()
    words = [(match.group(), match.start()) for match in _WORD.finditer(prompt)]
    best: tuple[int, int, int] | None = None
    start = 0
    while start < len(words):
        end = _end_of_name(prompt, words, start)
        if end > start:
            first, last = words[start][1], words[end - 1]
            found = (end - start, first, last[1] + len(_POSSESSIVE.sub("", last[0])))
            if best is None or found[0] >= best[0]:
                best = found
        start = max(end, start + 1)
    return None if best is None else prompt[best[1] : best[2]]


def _end_of_name(prompt: str, words: list[tuple[str, int]], start: int) -> int:
    """The index behind the name that begins at a word; `start` itself where none does."""
    if not _is_name(words[start][0]) or words[start][0].lower() in _OPENERS:
        return start
    end = start + 1
    while end < len(words) and not _POSSESSIVE.search(words[end - 1][0]):
        ahead = end
        while ahead < len(words) and words[ahead][0] in _LINKS:
            ahead += 1
        # A number belongs to the name that it follows, a small word to the name that goes on behind it.
        is_number = ahead == end and words[end][0].isdigit() if end < len(words) else False
        if ahead == len(words) or not (_is_name(words[ahead][0]) or is_number) or ahead - end > 2:
            break
        if _is_parted(prompt, words, end - 1, ahead):
            break
        end = ahead + 1
    return end


def _is_name(word: str) -> bool:
    return any(letter.isupper() for letter in word) or (word[0].isdigit() and len(word) == 4)


def _is_parted(prompt: str, words: list[tuple[str, int]], left: int, right: int) -> bool:
    """Whether a comma or another mark stands between two words."""
    (before, at), (after, begin) = words[left], words[right]
    between = prompt[at + len(before) : begin]
    is_abbreviation = len(before) <= _ABBREVIATION and after.lower() not in _OPENERS
    return any(mark in between for mark in ",;:()?!\u2014") or (". " in between and not is_abbreviation)


def no_such_subject(subject: str, prompt: str) -> DataError:
    """The error for a subject that does not occur in its prompt: what may be meant, and what cannot be seen."""
    unseen = [
        f"{one} in the {name}"
        for name, text in (("subject", subject), ("prompt", prompt))
        for one in hidden_characters(text)
    ]
    if unseen and find_spelled(without_hidden(subject), without_hidden(prompt)) is not None:
        return DataError(
            "The subject occurs in the prompt only if invisible characters are ignored.",
            expected=f"{without_hidden(subject)!r} in both, without invisible characters",
            found=f"subject {subject!r}, prompt {prompt!r}: {'; '.join(unseen[:3])}",
            where="field `subject`",
            remedy="delete the invisible characters; a soft hyphen or a zero-width space often comes with copied text",
        )
    near, found = closest_words(subject, prompt), f"prompt {prompt!r}"
    if near is not None:
        found += f"; the closest in it is {near!r}"
        # Letters of two scripts that look alike: a reader sees no difference.
        if not (subject.isascii() and near.isascii()):
            found += f", and {first_difference(subject, near)}"
    return DataError(
        "The subject does not occur in the prompt.",
        expected=f"{subject!r} somewhere in the prompt, or {{}} in its place",
        found=found,
        where="field `subject`",
        remedy="correct the subject or the prompt, or leave `subject` out to have it found",
    )
