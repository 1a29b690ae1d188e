"""Auxiliaries that begin a sentence: "Will Paris host ..." is about Paris, "Will Smith was born in" about Will Smith.

Behind the name the one has a verb's plain form (host, sell), the other an inflected one (was, plays, starred, wrote).
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODALS = _words("can could would should might must shall do does did will may")
"""With a verb's plain form behind the name; the other auxiliaries, of `be` and `have`, take participles."""
AUXILIARIES = MODALS | _words("is are was were am has have had")
NAMES_TOO = _words("will may")
"""Those that are first names."""
_NEGATED = re.compile(r"(?:n't|not)$")
_FINITE = _words("is are was were has had does did isn't aren't wasn't weren't hasn't hadn't can could will would")
_IRREGULAR = _words(
    """became began bore born bought broke brought built came caught chose did died drew drove fell felt flew fought
    found gave got grew had held kept knew lay led left lost made met paid ran rose sang sat saw sold sought spent spoke
    spoken stood swam taught thought threw told took underwent went wed were won wore wrote written"""
)
_ENDS_AS_IF_INFLECTED = re.compile(r"(?:ss|us|[^gr]eed|shed|embed)$")
# Between a name and its verb.
_ADVERBS = _words("not never ever also soon still always once only now often first just again already then later")
# Behind a name they say nothing about how the sentence goes on.
_NO_VERBS = _words(
    """in on at of for from by to with about as and or but nor who whose whom which that when where while a an the
    after before during since until than"""
)


def plain_auxiliary(word: str) -> str | None:
    """The auxiliary that a word is, also where it is negated: `does` for "Doesn't"; `None` for other words."""
    lower = word.lower().replace("\u2019", "'")
    irregular = {"won't": "will", "can't": "can", "cannot": "can", "shan't": "shall"}
    found = irregular.get(lower) or _NEGATED.sub("", lower)
    return found if found in AUXILIARIES else None


def is_part_of_name(word: str, behind: Sequence[str], *, is_question: bool) -> bool:
    """Whether an auxiliary at a sentence's beginning belongs to the capitalised words after it, as in Will Smith.

    Arguments:
        word: it, in small letters.
        behind: the words after the name.
        is_question: whether the sentence ends with a question mark.
    """
    auxiliary = plain_auxiliary(word)
    if auxiliary not in MODALS:
        return False
    left = [word.lower() for word in behind]
    while left and (left[0] in _ADVERBS or left[0].endswith("ly")):
        left = left[1:]
    is_open = not left or not left[0].isalpha() or left[0] in _NO_VERBS
    # "May Day parade was": behind a plain form there is no second verb.
    if left and (_is_inflected(left[0]) or (not is_open and left[1:2] and left[1] in _FINITE)):
        return True
    # First names, and titles such as Don't Touch Me.
    return is_open and (word in NAMES_TOO or word != auxiliary) and not is_question


def _is_inflected(word: str) -> bool:
    if word in _FINITE or word in _IRREGULAR:
        return True
    return word.endswith(("s", "ed")) and not _ENDS_AS_IF_INFLECTED.search(word)
