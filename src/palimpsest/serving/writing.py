"""Generation for one request, token by token: stops, pieces to send, sampling, and an end if the client disconnects."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from palimpsest.models import EditableModel, Writer
from palimpsest.serving.choosing import Sampler, WrittenToken, written_token


@dataclass(frozen=True)
class Wish:
    """How a text is to be written.

    Arguments:
        prompt: the text that goes before.
        max_tokens: at most so many.
        stops: texts that end it and do not belong to it.
        temperature: 0 for the likeliest token each time.
        top_p: sample from the likeliest tokens that together have this probability.
        seed: of the sampling.
        likeliest: name every token's probability, and as many of the likeliest in its place; `None` for neither.
    """

    prompt: str
    max_tokens: int
    stops: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    likeliest: int | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a text, to be sent.

    Arguments:
        text: what is certain now and was not before.
        tokens: those that begin in it, where probabilities were asked for.
    """

    text: str
    tokens: tuple[WrittenToken, ...] = ()


Send = Callable[[Piece], None]


@dataclass(frozen=True)
class Written:
    """The generated text.

    Arguments:
        text: all of it.
        prompt_tokens: tokens that were read.
        completion_tokens: tokens that were written.
        reason: `stop` where it ended of its own accord or by a stop, `length` if there was no more room.
        tokens: all that begin in the text, where probabilities were asked for.
        left: how many of them, at the end, were in no piece.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    reason: str
    tokens: tuple[WrittenToken, ...] = ()
    left: int = 0


class Abandoned(Exception):  # no error: it ends a text that nobody waits for
    """The request has been given up."""


class _Rule(Writer):
    """Called with the text so far after every token; says when it is finished, and sends what is certain."""

    def __init__(self, tokenizer: Any, wish: Wish, send: Send, is_abandoned: threading.Event) -> None:
        self._tokenizer, self._wish, self._send_piece, self._is_abandoned = tokenizer, wish, send, is_abandoned
        self._sampler = Sampler(wish.temperature, wish.top_p, wish.seed)
        self._ids: list[int] = []
        self._text, self._sent, self._sent_tokens = "", 0, 0
        self.tokens: list[WrittenToken] = []
        self.num_tokens, self.is_stopped = 0, False

    def choose(self, logits: Tensor) -> Tensor:
        """See `Writer.choose`."""
        chosen = self._sampler.choose(logits)
        if self._wish.likeliest is not None:
            [one] = chosen.tolist()
            most, offset = self._wish.likeliest, len(self._text)
            self.tokens.append(written_token(self._tokenizer, self._ids, one, logits[0], likeliest=most, offset=offset))
            self._ids.append(one)
        return chosen

    def __call__(self, text: str) -> str | None:
        """See `Writer.__call__`."""
        if self._is_abandoned.is_set():
            raise Abandoned
        self.num_tokens += 1
        self._text = text
        places = [place for stop in self._wish.stops if (place := text.find(stop)) >= 0]
        if places:
            self.is_stopped = True
            text = text[: min(places)]
            self._send(text)
            return text
        self._send(text[: len(text) - _uncertain(text, self._wish.stops)])
        return None

    def finish(self, text: str) -> int:
        """Sends what was held back, leaves out what does not belong to the text; how many tokens were in no piece."""
        # The token that ends the sequence was chosen and not written.
        kept = self.tokens[: self.num_tokens]
        self.tokens = [one for one in kept if one.offset < len(text)] if self.is_stopped else kept
        self._send(text)
        return len(self.tokens) - self._sent_tokens

    def _send(self, text: str) -> None:
        if len(text) > self._sent:
            begun = [one for one in self.tokens[self._sent_tokens : self.num_tokens] if one.offset < len(text)]
            self._send_piece(Piece(text[self._sent :], tuple(begun)))
            self._sent, self._sent_tokens = len(text), self._sent_tokens + len(begun)


def write(model: EditableModel, wish: Wish, send: Send, is_abandoned: threading.Event) -> Written:
    """Writes a text with what lies on the model, and sends it in pieces as it is written.

    Raises `DataError` for a prompt that does not fit, `Abandoned` when nobody waits for it any more.
    """
    read = len(model.encode(wish.prompt).prompt_ids)
    room = min(wish.max_tokens, model.room_after(read))
    rule = _Rule(model.tokenizer, wish, send, is_abandoned)
    text = model.generate(wish.prompt, max_new_tokens=room, until=rule)
    left = rule.finish(text)
    is_full = rule.num_tokens >= room and not rule.is_stopped
    return Written(text, read, rule.num_tokens, "length" if is_full else "stop", tuple(rule.tokens), left)


def _uncertain(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop, or of a character that is not whole yet."""
    held = len(text) - len(text.rstrip("\ufffd"))
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                held = max(held, length)
                break
    return held
