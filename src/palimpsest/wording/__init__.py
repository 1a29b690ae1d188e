"""Wording: how texts are written, spelled and joined, so that everything that compares or joins them agrees."""

from palimpsest.wording.degenerate import before_repetition, is_degenerate
from palimpsest.wording.joining import Prompt, separator, stripped
from palimpsest.wording.scripts import folded, is_hangul, is_katakana, is_mark, is_unspaced, words
from palimpsest.wording.spelling import (
    closest_words,
    find_spelled,
    first_difference,
    hidden_characters,
    looks_same,
    without_hidden,
)
from palimpsest.wording.subjects import find_subject, no_such_subject
from palimpsest.wording.texts import printed, require_text, require_whole
from palimpsest.wording.thoughts import (
    Reply,
    ThoughtMarks,
    beginning_of,
    closed_by,
    is_unfinished,
    left_open,
    may_open,
    opened_by,
    parted,
    thought_of,
    thought_so_far,
)

__all__ = [
    "Prompt",
    "Reply",
    "ThoughtMarks",
    "before_repetition",
    "beginning_of",
    "closed_by",
    "closest_words",
    "find_spelled",
    "find_subject",
    "first_difference",
    "folded",
    "hidden_characters",
    "is_degenerate",
    "is_hangul",
    "is_katakana",
    "is_mark",
    "is_unfinished",
    "is_unspaced",
    "left_open",
    "looks_same",
    "may_open",
    "no_such_subject",
    "opened_by",
    "parted",
    "printed",
    "require_text",
    "require_whole",
    "separator",
    "stripped",
    "thought_of",
    "thought_so_far",
    "without_hidden",
    "words",
]
