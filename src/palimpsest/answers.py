"""The definition of an answer, shared by evaluation, verification and every check of what a model knows.

A text gives an answer when it begins with it, at a word's end, after quotes, brackets and Markdown. A reply (in a chat,
or to a prompt that ends in a question mark) gives it when its first sentence states it and not the answer it competes
with. Negations are not parsed: "not Paris" states Paris.

Of a model that thinks first, the text is what follows its thought (`palimpsest.wording.parted`). A thought that has
not ended is no answer. Nothing here looks at a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from palimpsest.requests import EditRequest, normalise
from palimpsest.wording import folded, is_hangul, is_katakana, is_mark, is_unspaced, words

VERSION = 2
"""Of the definition. Results of different versions are never mixed; 1 took as `generate` what is now `exact`."""

SHARED_WORDS = 3
"""First words that must be alike for an answer to be the same. Two would be too few for names such as
`The New York`; what a model writes from the fourth word on is how it runs on, not what it answers."""
SHARED_CHARACTERS = 5
"""The same for scripts without spaces, in characters: two or three words."""

_QUESTION_MARKS = "?？؟\u037e՞⁇⸮፧꘏"
_LEAD = re.compile(r"(?:[\s\"'*_(\[{:¿¡]|#+\s|>\s|[-•]\s|</?[a-z]+>)+")
_BULLET = re.compile(r"^\s*\d{1,3}[.)](?=\s+\S)")
# What may be glued to a Korean noun: particles and the copula.
_PARTICLES = re.compile(r"이|입니|였|인|의|에|은|는|가|을|를|와|과|로|으로|도|라")

# A full stop ends an answer unless it belongs to an initial ("J. R. R."), a common abbreviation, or a number ("3.5").
_ABBREVIATIONS = ["St", "Mt", "Dr", "Mr", "Mrs", "Ms", "Jr", "Sr", "Prof", "Rev", "Gen", "Bros", "Ph", "vs"]
_NOT_BEFORE = "".join(rf"(?<!\b{one})" for one in ("[A-Z]", *_ABBREVIATIONS))
_STOP = rf"(?P<line>\n)|(?P<wide>[。！？｡।॥؟۔።፧։…]+)|(?P<mark>[!?;]+)|(?P<stop>{_NOT_BEFORE}\.)"
_CANDIDATE = re.compile(_STOP)
_STRICT_STOP = re.compile(r"\s*(?:\.(?!\d)|[。！？｡।॥؟۔።։…])")


def gives(
    text: str, answers: Iterable[str], *, against: Iterable[str] = (), prompt: str = "", is_reply: bool = False
) -> bool:
    """Whether a generated text gives one of the answers.

    Arguments:
        text: what a model wrote after the prompt.
        answers: the right answer and its other names.
        against: answers that compete with it, such as the old one. Of two that fit the longer one is given: a text
            that begins with `New York City` does not give `New York` where both are known.
        prompt: what was asked. In a reply its words may be repeated, so they state nothing.
        is_reply: whether the text answers a question or a turn of a chat; see `is_reply_to`.
    """
    right, wrong = _distinct(answers), _distinct(against)
    wrong = [one for one in wrong if one not in right]
    body = folded(text)
    if not is_reply:
        return _leading(body, right, wrong)
    sentence, asked = folded(first_sentence(text, [*answers, *against])), folded(prompt)
    return _stated(sentence, asked, right, wrong) and not _stated(sentence, asked, wrong, right)


def states(text: str, answers: Iterable[str], *, against: Iterable[str] = (), prompt: str = "") -> bool:
    """Whether a text names one of the answers anywhere, more often than the prompt does.

    Arguments: see `gives`; here `against` are longer answers that the ones looked for may be a part of.
    """
    body, asked, others = folded(text), folded(prompt), _distinct(against)
    return any(_count(body, one, others) > _count(asked, one, others) for one in _distinct(answers))


def gives_new(request: EditRequest, text: str, *, is_chat: bool = False) -> bool:
    """Whether a text, generated after an edit's prompt, gives the new answer."""
    return _gives_to(request, text, new_names(request), old_names(request), is_chat)


def gives_old(request: EditRequest, text: str, *, is_chat: bool = False) -> bool:
    """Whether a text, generated after an edit's prompt, gives the old answer; no if there is none."""
    return _gives_to(request, text, old_names(request), new_names(request), is_chat)


def new_names(request: EditRequest) -> tuple[str, ...]:
    """An edit's new answer and its other names."""
    return (request.target_new, *request.accepts)


def old_names(request: EditRequest) -> tuple[str, ...]:
    """An edit's old answer, if it has one, and its other names."""
    return (*([request.target_old] if request.target_old else []), *request.accepts_old)


def _gives_to(request: EditRequest, text: str, names: tuple[str, ...], against: tuple[str, ...], is_chat: bool) -> bool:
    is_reply = is_reply_to(request.prompt, is_chat=is_chat)
    return gives(text, names, against=against, prompt=request.prompt, is_reply=is_reply)


def is_reply_to(prompt: str, *, is_chat: bool = False) -> bool:
    """Whether what follows a prompt is a reply: in a chat, or where it ends in a question mark of any script."""
    return is_chat or prompt.rstrip().rstrip("\"'”’»」』)*_ ").endswith(tuple(_QUESTION_MARKS))


def is_exact(text: str, expected: str) -> bool:
    """Whether a continuation is the expected answer and nothing else, up to the stop.

    The answer must stand at the beginning and be followed by a full stop, a newline or nothing. Case and runs of
    white space do not matter; a full stop inside the expected answer does no harm.
    """
    line, answer = normalise(text.strip().split("\n")[0]), normalise(expected)
    return line == answer or (line.startswith(answer) and bool(_STRICT_STOP.match(line[len(answer) :])))


def same_beginning(first: str, second: str, *, prompt: str = "", is_reply: bool = False) -> bool:
    """Whether two texts answer alike: their first sentences have the same first words.

    `SHARED_WORDS` of them, or `SHARED_CHARACTERS` in scripts without spaces. In a reply the words of the prompt do not
    count, for both may repeat it.
    """
    return _opening(first, prompt, is_reply) == _opening(second, prompt, is_reply)


def first_sentence(text: str, answers: Iterable[str] = ()) -> str:
    """The text up to its first sentence end or newline, without surrounding spaces and without that end.

    Arguments:
        answers: texts inside which no sentence ends, such as `Amazon.com` and `Ph.D. in physics`.
    """
    body = text.strip()
    end = next(sentence_ends(body, answers), None)
    return (body if end is None else body[: end[0]]).strip()


def place_of(text: str, answers: Iterable[str]) -> tuple[int, int] | None:
    """Where a text first has one of the answers as a whole word, the longest of those that begin there; offsets."""
    found = (span for answer in answers for span in _occurrences(text, answer.strip(" .。\"'")))
    whole = [(start, end) for start, end in found if _begins_word(text, start) and _ends_word(text, end)]
    return min(whole, key=lambda span: (span[0], -span[1]), default=None)


def shown(text: str, answers: Iterable[str] = ()) -> str:
    """Returns the part of a generated text that is shown: its first sentence with the sign that ends it."""
    body = text.strip()
    end = next(sentence_ends(body, answers), None)
    return (body if end is None else body[: end[1]]).strip()


def ended_sentence(text: str) -> str | None:
    """The text up to and with its first sentence end, if it has one; for a text that still grows."""
    body = text.lstrip()
    end = next(sentence_ends(body, is_growing=True), None)
    return None if end is None else body[: end[1]]


def after_two_sentences(longest: int = 0) -> Callable[[str], str | None]:
    """A rule that ends generation behind two different sentences: enough to read an answer and how a text goes on.

    Arguments:
        longest: characters before which no text ends; the length of the longest answer that is looked for.
    """

    def ended(text: str) -> str | None:
        if len(text.strip()) < longest:
            return None
        body, found, start = text.lstrip(), [], 0
        for first, last in sentence_ends(body, is_growing=True):
            if body[start:first].strip():
                found.append(folded(body[start:first]))
            start = last
            if len(found) == 2:
                # One that says the same again may go on for ever, which is worth seeing.
                return text if found[0] != found[1] else None
        return None

    return ended


def after_beginning(names: Iterable[str]) -> Callable[[str], str | None]:
    """A rule that ends generation as soon as it is decided whether a text begins with one of some answers.

    Not for replies, which may state an answer anywhere in their first sentence.
    """
    # A word's end is seen in the two characters behind it; one that is written in parts may come in two more.
    enough = max(map(len, _distinct(names)), default=0) + 4

    def ended(text: str) -> str | None:
        body = folded(text)
        lead = _LEAD.match(body)
        return text if len(body) - (lead.end() if lead else 0) >= enough else None

    return ended


def sentence_ends(text: str, answers: Iterable[str] = (), *, is_growing: bool = False) -> Iterator[tuple[int, int]]:
    """Where sentences end: offsets of the signs' beginnings and of what follows them.

    Signs of all scripts and newlines end a sentence. A full stop does not inside an initial, an abbreviation, a number
    at a line's beginning (`2. Bundesliga`) or one with digits behind it, before a small letter (`Inc. in`, `.com`), or
    inside one of the answers.

    Arguments:
        is_growing: whether more text will come, so that a stop without anything behind it is not decided yet.
    """
    inside = [span for answer in answers for span in _occurrences(text, answer)]
    return _ends(text, inside, is_growing)


def _ends(text: str, inside: Sequence[tuple[int, int]], is_growing: bool) -> Iterator[tuple[int, int]]:
    bullet = _BULLET.match(text)
    for found in _CANDIDATE.finditer(text):
        start, end = found.span()
        if any(low <= start < high for low, high in inside):
            continue
        if found["line"] is not None:
            if text[:start].rstrip().endswith((":", "：")):
                continue
        elif found["stop"] is not None:
            rest = text[end:].lstrip(" \t")
            if bullet is not None and end == bullet.end():
                continue
            if not rest and is_growing:
                return
            if _goes_on(text[start - 1 : start], text[end : end + 1], rest[:1]):
                continue
        yield start, end


def _goes_on(before: str, following: str, next_visible: str) -> bool:
    """Whether a sentence goes on behind a full stop."""
    if following.isdigit():
        return before.isdigit() or not before.isspace()
    if following.isalpha() and not is_unspaced(following):
        return not (before.islower() and following.isupper())
    return next_visible.islower()


def _leading(body: str, right: Sequence[str], wrong: Sequence[str]) -> bool:
    """Whether a folded text begins with one of the right answers, and with no longer one of the wrong ones."""
    fits = [max((len(one) for one in group if _begins(body, one)), default=0) for group in (right, wrong)]
    return fits[0] > 0 and fits[0] >= fits[1]


def _begins(body: str, answer: str) -> bool:
    lead = _LEAD.match(body)
    starts = {0, lead.end() if lead else 0}
    return any(body.startswith(answer, start) and _ends_word(body, start + len(answer)) for start in starts)


def _stated(sentence: str, asked: str, those: Sequence[str], others: Sequence[str]) -> bool:
    """Whether a folded sentence states one of these answers: begins with it, or has it more often than the prompt."""
    return _leading(sentence, those, others) or any(
        _count(sentence, one, others) > _count(asked, one, others) for one in those
    )


def _count(text: str, answer: str, others: Sequence[str]) -> int:
    """How often an answer stands in a text as whole words, not as part of a longer one."""
    longer = [span for other in others if len(other) > len(answer) and answer in other for span in _spans(text, other)]
    return sum(not any(low <= start and end <= high for low, high in longer) for start, end in _spans(text, answer))


def _spans(text: str, answer: str) -> list[tuple[int, int]]:
    found, start = [], text.find(answer)
    while start >= 0:
        end = start + len(answer)
        if _begins_word(text, start) and _ends_word(text, end):
            found.append((start, end))
        start = text.find(answer, start + 1)
    return found


def _ends_word(text: str, end: int) -> bool:
    """Whether a word ends before that place of a folded text."""
    rest = text[end:]
    if not rest:
        return True
    last, char = text[end - 1], rest[0]
    if is_mark(char):
        return False
    if char.isalnum():
        return _parts(last, char) or (is_hangul(last) and bool(_PARTICLES.match(rest)))
    following = rest[1:2]
    if char in "+#" and last.isalpha():
        return False
    if not following.isalnum() or is_unspaced(following):
        return True
    if char in ".,:/" and last.isdigit() and following.isdigit():
        return False
    return char not in "-_&@."


def _begins_word(text: str, start: int) -> bool:
    """Whether a word begins at that place of a folded text."""
    before = text[:start]
    if not before:
        return True
    char, first = before[-1], text[start]
    if char.isalnum() or is_mark(char):
        return _parts(char, first)
    if char == "-" and first.isdigit() and not before[-2:-1].isalnum():
        return False
    return not (char in "-_&@.,:/" and before[-2:-1].isalnum() and (char in "-_&@" or first.isdigit()))


def _parts(left: str, right: str) -> bool:
    """Whether a word may end between two characters that are both letters or digits."""
    if not left.isalnum() and not is_mark(left):
        return left != "."
    if is_katakana(left) and is_katakana(right):
        return False
    return is_unspaced(left) or is_unspaced(right)


def _distinct(answers: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(one for answer in answers if (one := _bare(answer))))


def _bare(answer: str) -> str:
    """An answer without quotes and markup around it and without a full stop at its end, unless nothing else is left."""
    whole = folded(answer)
    lead = _LEAD.match(whole)
    core = whole[lead.end() if lead else 0 :]
    return re.sub(r"[\s\"'*_]+$", "", core).rstrip("。.").rstrip() or whole


def _occurrences(text: str, answer: str) -> list[tuple[int, int]]:
    """Where an answer stands in a text as it is, whatever its case and spaces."""
    pattern = r"\s+".join(map(re.escape, answer.split()))
    return [found.span() for found in re.finditer(pattern, text, re.IGNORECASE)] if pattern else []


def _opening(text: str, prompt: str, is_reply: bool) -> list[str]:
    found = words(folded(first_sentence(text)))
    if is_reply:
        asked = set(words(folded(prompt)))
        found = [word for word in found if word not in asked] or found
    unspaced = bool(found) and is_unspaced(found[0][0])
    return found[: SHARED_CHARACTERS if unspaced else SHARED_WORDS]
