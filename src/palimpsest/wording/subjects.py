"""What a prompt is about: guessed where nobody has said it yet, and what is wrong where it is not there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from palimpsest.errors import DataError
from palimpsest.wording.auxiliaries import NAMES_TOO, is_part_of_name, plain_auxiliary
from palimpsest.wording.spelling import (
    closest_words,
    find_spelled,
    first_difference,
    hidden_characters,
    without_hidden,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Full stops that end a word and not its sentence: of initials, of words with stops inside (S.p.A.), of these.
_ABBREVIATIONS = _words("Inc Ltd Co Corp Bros Jr Sr St Mt Dr Mr Mrs Ms Prof Rev Hon Gen Col Capt Lt Sgt No vs")
_WORD = re.compile(
    r"[^\W_](?:[\w.&'\u2019/-]*\w)?(?:(?:(?<=\.\w)|(?<=\b[A-Z])|"
    + "|".join(rf"(?<=\b{one})" for one in _ABBREVIATIONS)
    + r")\.)?"
)
_QUOTED = re.compile(
    r"[\"\u201c\u00ab\u300c]([^\"\u201d\u00bb\u300d]{2,80})[\"\u201d\u00bb\u300d]"
    r"|(?<!\w)['\u2018]([^'\u2018\u2019]{2,80})['\u2019](?!\w)"
)
_POSSESSIVE = re.compile(r"['\u2019]s$")
# Words that begin a sentence and name nothing.
_OPENERS = _words(
    """a an the this that these those what which who whom whose when where why how in on at of for from by to
    with about as it he she they we i you his her their its our my your there here if and or but not no name tell
    say complete fill question answer q after before during since until according
    в на из о об с со у к по от до для за при кто где что когда как какой какая какое"""
)
# Words inside a name that stay small: University of Oslo, Ludwig van Beethoven.
_LINKS = _words(
    """of the and & for in y de du des del della di da do dos das la le les van von der den ter ten zu bin ibn al
    el"""
)
# What belongs to the owner and not to its name: France's President, but La Fontaine's Fables.
_ROLES = _words("President Prime Minister King Queen Chancellor Foreign Secretary Head CEO CFO CTO GDP")
_MOST_LINKS = 2


def find_subject(prompt: str) -> str | None:
    """The name that a prompt is most likely about: what stands in quotes, else the longest run of capitalised words.

    Numbers belong to the name beside them. Of equally long runs, one with letters goes before a number, and the last
    before the others. Returns the text as the prompt spells it, or `None` where nothing looks like a name, as in
    scripts without capitals.
    """
    if quoted := _QUOTED.search(prompt):
        return (quoted.group(1) or quoted.group(2)).strip()
    words = list(_WORD.finditer(prompt))
    best: tuple[tuple[int, bool, bool], str] | None = None
    start = 0
    while start < len(words):
        end = _end_of_name(prompt, words, start)
        if end > start:
            name = _POSSESSIVE.sub("", prompt[words[start].start() : words[end - 1].end()])
            rank = end - start, any(map(str.isalpha, name)), start > 0
            if best is None or rank >= best[0]:
                best = rank, name
        start = max(end, start + 1)
        if _POSSESSIVE.search(words[start - 1].group()):
            while start < len(words) and words[start].group() in _ROLES:
                start += 1
    return None if best is None else best[1]


def _end_of_name(prompt: str, words: Sequence[re.Match[str]], start: int) -> int:
    """The index behind the name that begins at a word; `start` itself where none does."""
    if not _is_name(words[start]):
        return start
    end = _end_of_capitals(prompt, words, start)
    # An article with nothing behind it names nothing: "the A of".
    is_bare = end == start + 1 and _opens(words[start])
    return start if is_bare or _is_opener(prompt, words, start, end) else end


def _end_of_capitals(prompt: str, words: Sequence[re.Match[str]], start: int) -> int:
    """The index behind the run of capitalised words that begins at one, with the small ones that link them."""
    end = start + 1
    while end < len(words):
        ahead = end
        while ahead < len(words) and words[ahead].group() in _LINKS:
            ahead += 1
        is_linked = ahead > end
        if ahead == len(words) or ahead - end > _MOST_LINKS or not _is_name(words[ahead]):
            break
        # In "Kepler in 1609" the number is another matter, in "France's President" the role.
        if is_linked and words[ahead].group()[0].isdigit():
            break
        if _POSSESSIVE.search(words[end - 1].group()) and (is_linked or words[ahead].group() in _ROLES):
            break
        if _are_parted(prompt, words[end - 1], words[ahead]):
            break
        end = ahead + 1
    return end


def _is_name(word: re.Match[str]) -> bool:
    return word.group()[0].isdigit() or any(letter.isupper() for letter in word.group())


def _opens(word: re.Match[str]) -> bool:
    """Whether a word names nothing by itself, but begins sentences."""
    return word.group().lower() in _OPENERS or plain_auxiliary(word.group()) is not None


def _is_opener(prompt: str, words: Sequence[re.Match[str]], start: int, end: int) -> bool:
    """Whether a word has its capital from the sentence that it begins, and not from the name that goes on to `end`."""
    word = words[start]
    plain = _POSSESSIVE.sub("", word.group().lower())
    is_auxiliary = plain_auxiliary(plain) is not None
    if plain not in _OPENERS and not is_auxiliary:
        return False
    before = prompt[: word.start()].rstrip()
    if before and before[-1] not in '.?!:"\u201c':
        return False
    if not is_auxiliary or end == start + 1:
        return True
    # The month: May 1968.
    if words[start + 1].group()[0].isdigit():
        return plain not in NAMES_TOO
    is_question = prompt.rstrip().endswith("?")
    behind = [] if _ends_clause(prompt, words, end) else [one.group() for one in words[end : end + 4]]
    if _POSSESSIVE.search(words[end - 1].group()):
        # "Will Smith's wife is": the verb is somewhere behind what he has.
        behind = behind[1:]
    return not is_part_of_name(plain, behind, is_question=is_question)


def _are_parted(prompt: str, left: re.Match[str], right: re.Match[str]) -> bool:
    """Whether a comma, the end of a sentence or another mark stands between two words."""
    between = prompt[left.end() : right.start()]
    if left.group().endswith(".") and right.group().lower() in _OPENERS:
        return True
    return ". " in between or any(mark in between for mark in ',;:()[]?!\u2014"\n')


def _ends_clause(prompt: str, words: Sequence[re.Match[str]], end: int) -> bool:
    return end == len(words) or _are_parted(prompt, words[end - 1], words[end])


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
