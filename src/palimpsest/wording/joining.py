"""The separator of a prompt and its answer, as a model would read and write it."""

from __future__ import annotations

import re
import unicodedata

from palimpsest.wording.scripts import is_mark, is_unspaced

_OPENERS = "([{（［｛「『《〈【〔‹¿¡$£€¥₹₩₽/\\@"
# A mark that opens and one that closes it; some open in one language and close in another.
_PAIRS = {"“": "„", "‘": "‚", "«": "»", "»": "«"}
_ELISION = re.compile(r"(?<!\w)(?:l|d|j|m|n|s|t|c|qu|jusqu|lorsqu|puisqu|un|dell|all|nell|sull|dall|quell)['’]$", re.I)
_CLOSERS = ")]}）］｝」』》〉】〕”’»›,;:!?%‰°，。、；：！？…"
_SUFFIX = re.compile(r"['’](?:s|re|ve|ll|d|m|t)\b", re.I)


class Prompt(str):
    """A prompt that says itself what stands between it and its answer, whoever it is handed to.

    Arguments:
        text: the prompt.
        joiner: what stands between it and its answer.
    """

    joiner: str

    def __new__(cls, text: str, joiner: str = " ") -> Prompt:
        made = super().__new__(cls, text)
        made.joiner = joiner
        return made


def stripped(prompt: str) -> str:
    """A prompt without spaces at its end, which belong to the answer; a newline or a tab at its end belongs to it."""
    end = len(prompt)
    while end and unicodedata.category(prompt[end - 1]) == "Zs":
        end -= 1
    text = prompt[:end]
    return Prompt(text, prompt.joiner) if isinstance(prompt, Prompt) else text


def separator(prompt: str, target: str) -> str:
    """Returns the separator of a prompt and its target: one space, or nothing if the two belong together.

    Nothing follows white space, what opens (brackets, quotes, currency and other signs that are written in front),
    an elided article, and scripts that put no space between words. Nothing precedes what closes, combining
    characters, and letters of such scripts. A `Prompt` says itself what follows it.
    """
    if isinstance(prompt, Prompt):
        return prompt.joiner
    if not target or not prompt or prompt[-1].isspace():
        return ""
    first = target[0]
    if is_mark(first) or is_unspaced(first) or first in _CLOSERS or _SUFFIX.match(target):
        return ""
    base = prompt
    while len(base) > 1 and is_mark(base[-1]):
        base = base[:-1]
    return "" if is_unspaced(base[-1]) or _opens(prompt, first) else " "


def _opens(prompt: str, first: str) -> bool:
    """Whether the end of a prompt is written without a space before what follows."""
    last, before = prompt[-1], prompt[:-1]
    stands_alone = not before or before[-1].isspace() or before[-1] in _OPENERS
    if last in _OPENERS or _ELISION.search(prompt):
        return True
    if last in '"`':
        return before.count(last) % 2 == 0
    if last in "„‚":
        return True
    if last in _PAIRS:
        return before.count(_PAIRS[last]) <= before.count(last)
    if last == "'":
        return stands_alone
    if last in "*_":
        # Emphasis opens where as many of it stand before, and closes where one more does.
        run = len(prompt) - len(prompt.rstrip(last))
        marks = re.findall(rf"(?<!{re.escape(last)}){re.escape(last) * run}(?!{re.escape(last)})", prompt)
        return len(marks) % 2 == 1
    if last in "-–−+~":
        # A sign in front of a number, but not between two of them.
        is_sign = stands_alone and first.isdigit() and not before.rstrip()[-1:].isdigit()
        return is_sign if stands_alone else last in "-–"
    if last == "#":
        return stands_alone
    return last in "=—<" and not stands_alone
