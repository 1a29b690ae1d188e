"""Texts that are spelled alike to a reader and differ to a computer: found, told apart, and made visible."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator

# Characters without a width of their own. Joiners (U+200C, U+200D) are not among them: they change what is seen in
# Persian, in Indic scripts and in emoji.
INVISIBLE = frozenset("\u00ad\u061c\u180e\u200b\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff") | frozenset(
    map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))
)
_QUOTES = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u0060\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u300c\u300d\u300e\u300f", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
}
_CLOSE = 0.7
_LONGEST_COMPARED = 2000


def find_spelled(part: str, text: str) -> tuple[int, int] | None:
    """Character offsets `(start, end)` in `text` of the last occurrence of `part`; `None` if there is none.

    Looked for in this order: as it is spelled, as whole words; as it is spelled, inside words; and with the
    differences between composed and decomposed letters, wide and narrow ones, kinds of quotes, dashes and spaces
    folded, first with case and at last, as whole words only, without. No match begins or ends inside a letter.
    """
    exact = _as_spelled(part, text)
    return exact or _folded(part, text, case=True) or _folded(part, text, case=False)


def looks_same(first: str, second: str) -> bool:
    """Whether no reader could tell the two apart: they differ in composition, white space or invisible characters."""
    return _seen(first) == _seen(second)


def hidden_characters(text: str) -> list[str]:
    """Each invisible or control character of a text, named, with what stands before it."""
    return [
        f"{named(letter)} after {text[max(0, index - 12) : index]!r}" if index else f"{named(letter)} at the start"
        for index, letter in enumerate(text)
        if letter in INVISIBLE or (unicodedata.category(letter) == "Cc" and letter not in "\t\n\r")
    ]


def without_hidden(text: str) -> str:
    """The text without its invisible characters."""
    return "".join(letter for letter in text if letter not in INVISIBLE)


def named(letter: str) -> str:
    """A character by its code point and name: `U+200B ZERO WIDTH SPACE`."""
    return f"U+{ord(letter):04X} {unicodedata.name(letter, 'without a name')}"


def first_difference(first: str, second: str) -> str:
    """Where two texts first differ, by code points; empty for equal texts."""
    pairs = zip((*first, ""), (*second, ""), strict=False)
    for index, (one, other) in enumerate(pairs):
        if one != other:
            shown = [named(letter) if letter else "the end" for letter in (one, other)]
            return f"they differ at character {index + 1}: {shown[0]} and {shown[1]}"
    return ""


def closest_words(part: str, text: str) -> str | None:
    """The words of `text` that look most like `part`; `None` where none do."""
    words, size = text[:_LONGEST_COMPARED].split(), max(1, len(part.split()))
    windows = [
        " ".join(words[start : start + length]).strip("?!.,;:\"'()")
        for length in {size, size + 1, max(1, size - 1)}
        for start in range(len(words) - length + 1)
    ]
    by_folded = {window.casefold(): window for window in windows if window}
    found = difflib.get_close_matches(part.casefold(), by_folded, n=1, cutoff=_CLOSE)
    return by_folded[found[0]] if found else None


def _as_spelled(part: str, text: str) -> tuple[int, int] | None:
    inside, start = None, text.rfind(part)
    while start >= 0:
        end = start + len(part)
        if not _splits_letter(text, end):
            if not _in_word(text, start - 1) and not _in_word(text, end):
                return start, end
            inside = inside or (start, end)
        start = text.rfind(part, 0, end - 1) if end > 1 else -1
    return inside


def _in_word(text: str, index: int) -> bool:
    return 0 <= index < len(text) and (text[index] == "_" or unicodedata.category(text[index])[0] in "LNM")


def _splits_letter(text: str, index: int) -> bool:
    """Whether the character there is an accent of the one before."""
    return index < len(text) and unicodedata.combining(text[index]) > 0


def _folded(part: str, text: str, *, case: bool) -> tuple[int, int] | None:
    wanted = "".join(folded for _, _, folded in _letters(part, case=case)).strip()
    places: list[tuple[int, int]] = []
    folded_text = ""
    for start, end, folded in _letters(text, case=case):
        if folded == " " and folded_text.endswith(" "):
            continue
        folded_text += folded
        places += [(start, end)] * len(folded)
    wanted = " ".join(wanted.split())
    inside, at = None, folded_text.rfind(wanted) if wanted else -1
    while at >= 0:
        last = at + len(wanted) - 1
        starts_letter = at == 0 or places[at - 1] != places[at]
        ends_letter = last + 1 == len(places) or places[last + 1] != places[last]
        if starts_letter and ends_letter:
            span = places[at][0], places[last][1]
            if not _in_word(folded_text, at - 1) and not _in_word(folded_text, last + 1):
                return span
            inside = inside or span
        at = folded_text.rfind(wanted, 0, last) if last else -1
    return inside if case else None


def _letters(text: str, *, case: bool) -> Iterator[tuple[int, int, str]]:
    """Each letter with its accents: where it starts and ends, and its folded form."""
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and _joins(text[start:end], text[end]):
            end += 1
        folded = unicodedata.normalize("NFKC", text[start:end])
        folded = "".join(" " if one.isspace() else _QUOTES.get(one, one) for one in folded)
        yield start, end, folded if case else folded.casefold()
        start = end


def _joins(cluster: str, letter: str) -> bool:
    """Whether a character belongs to the letter before it: an accent, or the vowel of a Korean syllable."""
    if unicodedata.combining(letter) > 0:
        return True
    return "\u1160" <= letter <= "\u11ff" and len(unicodedata.normalize("NFC", cluster + letter)) == 1


def _seen(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", without_hidden(text)).split())
