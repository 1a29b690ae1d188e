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
from palimpsest.wording.subjects import find_subject
from palimpsest.wording.texts import printed, require_text, require_whole

__all__ = [
    "Prompt",
    "before_repetition",
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
    "is_unspaced",
    "looks_same",
    "printed",
    "require_text",
    "require_whole",
    "separator",
    "stripped",
    "without_hidden",
    "words",
]
