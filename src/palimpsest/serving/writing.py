"""Generation for one request, token by token: stops, pieces to send, sampling, and an end if the client disconnects."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from palimpsest.models import EditableModel

Send = Callable[[str], None]


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
    """

    prompt: str
    max_tokens: int
    stops: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Written:
    """The generated text.

    Arguments:
        text: all of it.
        prompt_tokens: tokens that were read.
        completion_tokens: tokens that were written.
        reason: `stop` where it ended of its own accord or by a stop, `length` if there was no more room.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    reason: str


class Abandoned(Exception):  # no error: it ends a text that nobody waits for
    """The request has been given up."""


@dataclass
class _Rule:
    """Called with the text so far after every token; says when it is finished, and sends what is certain."""

    stops: Sequence[str]
    send: Send
    is_abandoned: threading.Event
    tokens: int = 0
    sent: int = 0
    is_stopped: bool = False
    text: str = field(default="")

    def __call__(self, text: str) -> str | None:
        if self.is_abandoned.is_set():
            raise Abandoned
        self.tokens += 1
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            self.is_stopped = True
            text = text[: min(places)]
            self._send(text)
            return text
        self._send(text[: len(text) - _uncertain(text, self.stops)])
        return None

    def finish(self, text: str) -> None:
        """Sends what was held back."""
        self._send(text)

    def _send(self, text: str) -> None:
        if len(text) > self.sent:
            self.send(text[self.sent :])
            self.sent = len(text)


def write(model: EditableModel, wish: Wish, send: Send, is_abandoned: threading.Event) -> Written:
    """Writes a text with what lies on the model, and sends it in pieces as it is written.

    Raises `DataError` for a prompt that does not fit, `Abandoned` when nobody waits for it any more.
    """
    read = len(model.encode(wish.prompt).prompt_ids)
    room = min(wish.max_tokens, model.room_after(read))
    rule = _Rule(wish.stops, send, is_abandoned)
    with _sampled(model, wish):
        text = model.generate(wish.prompt, max_new_tokens=room, until=rule)
    rule.finish(text)
    is_full = rule.tokens >= room and not rule.is_stopped
    return Written(text, read, rule.tokens, "length" if is_full else "stop")


def _uncertain(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop, or of a character that is not whole yet."""
    held = len(text) - len(text.rstrip("\ufffd"))
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                held = max(held, length)
                break
    return held


@contextmanager
def _sampled(model: EditableModel, wish: Wish) -> Iterator[None]:
    """Inside the block the likeliest token is a sample: noise of Gumbel's distribution is added to the logits."""
    if wish.temperature <= 0:
        yield
        return
    generator = torch.Generator().manual_seed(wish.seed)

    def noisy(_module: Any, _args: Any, output: Any) -> Any:
        output.logits = _with_noise(output.logits, wish, generator)
        return output

    hook = model.module.register_forward_hook(noisy)
    try:
        yield
    finally:
        hook.remove()


def _with_noise(logits: Tensor, wish: Wish, generator: torch.Generator) -> Tensor:
    last = logits[:, -1:].float() / wish.temperature
    if wish.top_p < 1:
        values, order = last.sort(dim=-1, descending=True)
        probabilities = values.softmax(-1)
        is_beyond = probabilities.cumsum(-1) - probabilities >= wish.top_p
        last = last.scatter(-1, order, values.masked_fill(is_beyond, -torch.inf))
    uniform = torch.rand(last.shape, generator=generator).clamp_(1e-20, 1 - 1e-7)
    noise = -(-uniform.log()).log()
    return torch.cat([logits[:, :-1].float(), last + noise.to(last.device)], dim=1)
