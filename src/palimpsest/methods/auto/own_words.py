"""A new answer in the sentence that the model itself replies with: `The capital of Japan is Oslo.` for `Oslo`.

To a question, and in a chat, a model replies in sentences. Where an edit has it begin with the bare answer instead, it
goes on from a place where it has never been, and what it writes there is often nonsense. All that an edit has to change
is the answer inside the reply, so it is given the reply with that changed.

The answer's place is where the old answer stands. Where that is not known, or not what the model says, it is the word
that is said of this subject and of no other: with x the words, b what stands before one, and p the prompt,

    log P(x | p, b) - mean_others log P(x | p about another, b)  +  log P(new answer | p, b)

is largest there, the last term because the new answer has to fit in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from palimpsest.answers import first_sentence, is_reply_to, new_names, old_names, place_of, shown
from palimpsest.locating import about, subjects_beside
from palimpsest.models import EditableModel
from palimpsest.requests import EditRequest, normalise
from palimpsest.wording import folded, is_unspaced, words

_LONGEST_ENDING = 6
"""Letters glued to the old answer that are kept, as a copula is; more of them say something about it."""
_GLUED = re.compile(r"^(\w*)([*_\"'”’»」』)\]]*)")
_MOST_WORDS = 3
"""Of a new answer with a full stop that is no sentence."""
_OTHERS = 8
_TELLS = 3.0
"""Nats from which on a word is said of one subject rather than of others."""


def in_own_words(model: EditableModel, requests: Sequence[EditRequest], replies: Sequence[str]) -> list[EditRequest]:
    """The edits with their replies' first sentences, up to the answer, in front of the new answers.

    What follows the answer in a sentence is left out, for it may be true of that only. An edit stays as it is where its
    prompt asks for no reply, the sentence begins with its answer or none is found in it, or the new answer is a
    sentence itself.

    Arguments:
        model: without the edits.
        replies: what it replies to the edits' prompts.
    """
    return [_in_reply(model, request, reply) for request, reply in zip(requests, replies, strict=True)]


def _in_reply(model: EditableModel, request: EditRequest, reply: str) -> EditRequest:
    if not is_reply_to(request.prompt, is_chat=model.chat is not None) or _is_sentence(request.target_new):
        return request
    names = [*old_names(request), *new_names(request)]
    sentence = first_sentence(reply, names)
    if place_of(sentence, new_names(request)):
        return request
    place = place_of(sentence, old_names(request)) or _said_of_this_subject(model, request, sentence)
    if place is None:
        return request
    before, new = sentence[: place[0]], request.target_new.rstrip(".。")
    if not words(before) or _says_again(before, new):
        return request
    letters, marks = _GLUED.findall(sentence[place[1] :])[0]
    ending = letters if len(letters) <= _LONGEST_ENDING else ""
    return replace(request, target_new=f"{before}{new}{ending}{marks}{_stop(sentence, shown(reply, names))}")


def _said_of_this_subject(model: EditableModel, request: EditRequest, sentence: str) -> tuple[int, int] | None:
    """The word of a sentence that the model says of the request's subject and of no other; offsets."""
    if request.subject is None or len(sentence.split()) < 2 or any(map(is_unspaced, sentence)):
        return None
    # The subject itself is among the well-known names, too.
    prompt = normalise(request.prompt)
    others = [name for name in subjects_beside(request.subject) if normalise(name) not in prompt][:_OTHERS]
    named = place_of(sentence, [request.subject])
    told = [sentence[: named[0]] + other + sentence[named[1] :] if named else sentence for other in others]
    prompts = [request.prompt, *(about(request, other).prompt for other in others)]
    own, *their = [score.log_probs for score in model.score(prompts, [sentence, *told])]
    low, high = named or (len(sentence), len(sentence))
    found, last = [], 0
    for start, end in (word.span() for word in re.finditer(r"\S+", sentence)):
        first, last = last, len(model.encode(request.prompt, sentence[:end]).target_ids)
        if start < high and end > low:
            continue
        # Behind the subject tokens are counted from the end.
        shifts = [len(one) - len(own) if start >= high else 0 for one in their]
        told_of_others = mean(sum(one[first + by : last + by]) for one, by in zip(their, shifts, strict=True))
        if (excess := sum(own[first:last]) - told_of_others) >= _TELLS:
            found.append((excess, first, start, end))
    if not found:
        return None
    worded = [sentence[:start] + request.target_new for _, _, start, _ in found]
    fits = model.score([request.prompt] * len(worded), worded)
    sums = [(one[0] + sum(new.log_probs[one[1] :]), *one[2:]) for one, new in zip(found, fits, strict=True)]
    return max(sums)[1:]


def _is_sentence(answer: str) -> bool:
    """Whether an answer is a sentence or several."""
    body = answer.rstrip(".。!！ ")
    return first_sentence(body) != body or (body != answer and len(words(body)) > _MOST_WORDS)


def _says_again(before: str, answer: str) -> bool:
    """Whether an answer begins with the last word before it, or repeats the last two."""
    last, own = words(folded(before))[-2:], words(folded(answer))
    return own[:1] == last[-1:] or (len(last) > 1 and set(last) <= set(own))


def _stop(sentence: str, with_end: str) -> str:
    """The sign that ends a sentence, else the full stop of its script."""
    sign = with_end[len(sentence) :].strip()
    return sign[0] if sign else "。" if is_unspaced(sentence[-1]) else "."
