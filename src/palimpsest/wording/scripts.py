"""Classes of characters: letters of scripts without spaces between words, quotes, dashes, spaces.

Everything that compares texts or joins them agrees on this.
"""

from __future__ import annotations

import re
import unicodedata

# Scripts that put no space between words.
_UNSPACED = (
    (0x0E00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3000, 0x30FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF00, 0xFFEF),
    (0x20000, 0x3FFFF),
)
DOUBLE_QUOTES = '"“”„‟«»″＂「」『』《》〈〉'
SINGLE_QUOTES = "'‘’‚‛′`´ʼ＇‹›"
_HYPHENS = "-‐‑‒–−⁃﹣－"
_LONG_DASHES = "—―⸺"
# Decompositions that change only how a character is drawn, not what it says: width, Arabic letter forms.
_DRAWN = ("<wide>", "<narrow>", "<initial>", "<medial>", "<final>", "<isolated>")
_LIGATURES = (0xFB00, 0xFB06)
_NEWLINES = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_MISSING_SPACE = re.compile(r"(?<=[^\W\d_])\.(?=[^\W\d_])")


def is_unspaced(char: str) -> bool:
    """Whether a character belongs to a script that puts no space between words."""
    code = ord(char)
    return any(low <= code <= high for low, high in _UNSPACED)


def is_katakana(char: str) -> bool:
    """Whether a character is Katakana; a word of these goes on as long as they do."""
    return 0x30A1 <= ord(char) <= 0x30FF and char != "・"


def is_hangul(char: str) -> bool:
    """Whether a character is a Korean syllable."""
    return 0xAC00 <= ord(char) <= 0xD7A3


def is_mark(char: str) -> bool:
    """Whether a character combines with the one before it."""
    return unicodedata.category(char).startswith("M")


def folded(text: str) -> str:
    """A text with everything levelled that does not change what it says, for comparing and never for showing.

    Composed (NFC), case folded; full and half width, Arabic letter forms and Latin ligatures as the plain letters
    (other compatibility characters stay: `²` is not 2); all double quotes, all single quotes and apostrophes, and all
    hyphens alike; a long dash is a hyphen between spaces; runs of spaces of all kinds one space; line breaks stay,
    without spaces around them; marks of direction and other characters without a shape left out.
    """
    text = unicodedata.normalize("NFC", _NEWLINES.sub("\n", text))
    text = unicodedata.normalize("NFC", "".join(map(_levelled, text)))
    text = _MISSING_SPACE.sub(_with_space, text)
    text = re.sub(r" *\n *", "\n", re.sub(r"[^\S\n]+", " ", text)).strip()
    return unicodedata.normalize("NFC", text.casefold())


def words(text: str) -> list[str]:
    """The words of a folded text; of scripts without spaces every character."""
    found: list[str] = []
    for run in re.findall(r"\w+(?:[.,:'-]\w+)*", text):
        start = 0
        for index, char in enumerate(run):
            if is_unspaced(char):
                found += [run[start:index]] if start < index else []
                found.append(char)
                start = index + 1
        found += [run[start:]] if start < len(run) else []
    return found


def _levelled(char: str) -> str:
    if char.isascii():
        return "'" if char == "`" else char
    if char in DOUBLE_QUOTES:
        return '"'
    if char in SINGLE_QUOTES:
        return "'"
    if char in _HYPHENS:
        return "-"
    if char in _LONG_DASHES:
        return " - "
    category = unicodedata.category(char)
    if category == "Zs":
        return " "
    if category == "Cf" or 0xFE00 <= ord(char) <= 0xFE0F:
        return ""
    is_ligature = _LIGATURES[0] <= ord(char) <= _LIGATURES[1]
    if is_ligature or unicodedata.decomposition(char).startswith(_DRAWN):
        return unicodedata.normalize("NFKC", char)
    return char


def _with_space(found: re.Match[str]) -> str:
    """A stop with a space behind it where one is missing: a small letter before it and a capital behind."""
    before, after = found.string[found.start() - 1], found.string[found.end()]
    return ". " if before.islower() and after.isupper() else "."
