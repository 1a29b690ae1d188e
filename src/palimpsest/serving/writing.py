"""Generation for one request, token by token: stops, pieces to send, sampling, and an end if the client disconnects."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from palimpsest.models import EditableModel, Writer
from palimpsest.serving.choosing import Sampler, WrittenToken, written_token
from palimpsest.wording import beginning_of, is_unfinished, thought_of


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
        thinks: whether the model thinks first; the thought's tokens are among `max_tokens`.
    """

    prompt: str
    max_tokens: int
    stops: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    likeliest: int | None = None
    thinks: bool = False


@dataclass(frozen=True)
class Piece:
    """A part of a text, to be sent.

    Arguments:
        text: what is certain now and was not before.
        tokens: those that begin in it, where probabilities were asked for.
        thought: likewise, of the thought before the text.
    """

    text: str
    tokens: tuple[WrittenToken, ...] = ()
    thought: str = ""


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
        thought: what was thought before it; `None` where nothing was.
        thought_tokens: of those written, the thought's.
        is_unfinished: whether the thought did not end, so that there is no text.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    reason: str
    tokens: tuple[WrittenToken, ...] = ()
    left: int = 0
    thought: str | None = None
    thought_tokens: int = 0
    is_unfinished: bool = False


class Abandoned(Exception):  # no error: it ends a text that nobody waits for
    """The request has been given up."""


class _Rule(Writer):
    """Called with the text so far after every token; says when it is finished, and sends what is certain."""

    def __init__(self, tokenizer: Any, wish: Wish, send: Send, is_abandoned: threading.Event) -> None:
        self._tokenizer, self._wish, self._send_piece, self._is_abandoned = tokenizer, wish, send, is_abandoned
        self._sampler = Sampler(wish.temperature, wish.top_p, wish.seed)
        self._ids: list[int] = []
        self._text, self._sent, self._sent_tokens = "", 0, 0
        self._thought = ""
        self.tokens: list[WrittenToken] = []
        self.num_tokens, self.is_stopped = 0, False
        self.thought_tokens, self._undecided = 0, 0

    def choose(self, logits: Tensor) -> Tensor:
        """See `Writer.choose`."""
        chosen = self._sampler.choose(logits)
        if self._wish.likeliest is not None:
            [one] = chosen.tolist()
            most = self._wish.likeliest
            self.tokens.append(written_token(self._tokenizer, self._ids, one, logits[0], likeliest=most))
            self._ids.append(one)
        return chosen

    def think(self, thought: str | None) -> None:
        """See `Writer.think`."""
        if self._is_abandoned.is_set():
            raise Abandoned
        self._undecided += 1
        if thought is not None:
            # What is named is the answer's tokens.
            self._name_no_token()
            self.thought_tokens, self._undecided = self.thought_tokens + self._undecided, 0
            self._send_thought(thought)

    def __call__(self, text: str) -> str | None:
        """See `Writer.__call__`."""
        if self._is_abandoned.is_set():
            raise Abandoned
        # What might have become a thought is an answer, token by token.
        self._undecided = max(0, self._undecided - 1)
        if self.thought_tokens and not text:
            # Between a thought and its answer.
            self._name_no_token()
            self.thought_tokens += 1
            return None
        if self.num_tokens < len(self.tokens):
            self.tokens[self.num_tokens] = replace(self.tokens[self.num_tokens], offset=len(self._text))
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

    def _name_no_token(self) -> None:
        self.tokens.clear()
        self._ids.clear()

    @property
    def written(self) -> int:
        """Tokens of thought and text."""
        return self.thought_tokens + self._undecided + self.num_tokens

    def finish(self, text: str) -> int:
        """Sends what was held back, leaves out what does not belong to the text; how many tokens were in no piece."""
        self._send_thought(thought_of(text) or "")
        # The token that ends the sequence was chosen and not written.
        kept = self.tokens[: self.num_tokens]
        self.tokens = [one for one in kept if one.offset < len(text)] if self.is_stopped else kept
        self._send(text)
        return len(self.tokens) - self._sent_tokens

    def _send_thought(self, thought: str) -> None:
        if len(thought) > len(self._thought) and thought.startswith(self._thought):
            self._send_piece(Piece("", thought=thought[len(self._thought) :]))
            self._thought = thought

    def _send(self, text: str) -> None:
        if len(text) > self._sent:
            begun = [one for one in self.tokens[self._sent_tokens : self.num_tokens] if one.offset < len(text)]
            self._send_piece(Piece(text[self._sent :], tuple(begun)))
            self._sent, self._sent_tokens = len(text), self._sent_tokens + len(begun)


def write(model: EditableModel, wish: Wish, send: Send, is_abandoned: threading.Event) -> Written:
    """Writes a text with what lies on the model, and sends it in pieces as it is written.

    Raises `DataError` for a prompt that does not fit, `Abandoned` when nobody waits for it any more.
    """
    read = len(model.asked(wish.prompt).prompt_ids)
    room = min(wish.max_tokens, model.room_after(read))
    rule = _Rule(model.tokenizer, wish, send, is_abandoned)
    text = model.generate(wish.prompt, max_new_tokens=room, until=rule)
    left = rule.finish(text)
    is_full = rule.written >= room and not rule.is_stopped
    return Written(
        str(text),
        read,
        rule.written,
        "length" if is_full else "stop",
        tuple(rule.tokens),
        left,
        thought_of(text),
        rule.thought_tokens,
        is_unfinished(text),
    )


def _uncertain(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop, or of a character that is not whole yet."""
    return max(len(text) - len(text.rstrip("\ufffd")), beginning_of(text, stops))
