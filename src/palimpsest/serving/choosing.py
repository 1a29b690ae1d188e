"""Which token comes next, the likeliest or a sample, and how likely each was."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import Tensor

_CONTEXT = 8
"""Tokens before one that decide how it is written: a leading space, the rest of a character."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class LikelyToken:
    """A token and how likely it was.

    Arguments:
        text: what it adds to the text before it.
        log_prob: natural logarithm of its probability, as the model gives it: before temperature and `top_p`.
        bytes: what it stands for; `None` where the tokenizer does not say.
    """

    text: str
    log_prob: float
    bytes: tuple[int, ...] | None


@dataclass(frozen=True)
class WrittenToken:
    """A token that was written.

    Arguments:
        chosen: it.
        likeliest: those that were most likely in its place, the likeliest first.
        offset: characters of the text before it.
    """

    chosen: LikelyToken
    likeliest: tuple[LikelyToken, ...]
    offset: int


class Sampler:
    """Chooses tokens by adding Gumbel's noise to the logits, which is sampling; the likeliest ones at temperature 0.

    Arguments:
        temperature: 0 for the likeliest token each time.
        top_p: sample from the likeliest tokens that together have this probability.
        seed: of the noise.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, logits: Tensor) -> Tensor:
        """(rows,), an id for each row of logits, (rows, vocabulary)."""
        if self._temperature <= 0:
            return logits.argmax(-1)
        last = logits.float() / self._temperature
        if self._top_p < 1:
            values, order = last.sort(dim=-1, descending=True)
            probabilities = values.softmax(-1)
            is_beyond = probabilities.cumsum(-1) - probabilities >= self._top_p
            last = last.scatter(-1, order, values.masked_fill(is_beyond, -torch.inf))
        uniform = torch.rand(last.shape, generator=self._generator).clamp_(1e-20, 1 - 1e-7)
        noise = -(-uniform.log()).log()
        return (last + noise.to(last.device)).argmax(-1)


def written_token(
    tokenizer: Any, before: list[int], chosen: int, logits: Tensor, *, likeliest: int, offset: int = 0
) -> WrittenToken:
    """A token with how likely it and others were.

    Arguments:
        before: ids of the text so far.
        chosen: the token's id.
        logits: (vocabulary,), of its place.
        likeliest: how many of the likeliest to name.
        offset: characters of the text so far.
    """
    log_probs = logits.float().log_softmax(-1)
    context = before[-_CONTEXT:]

    def described(one: int) -> LikelyToken:
        text = _added(tokenizer, context, one)
        return LikelyToken(text, float(log_probs[one]), _bytes(tokenizer, one, text))

    top = log_probs.topk(min(likeliest, len(log_probs))).indices.tolist() if likeliest else []
    return WrittenToken(described(chosen), tuple(described(one) for one in top), offset)


def _added(tokenizer: Any, context: list[int], one: int) -> str:
    """What a token adds behind others; by itself where it changes how they are written."""
    former = str(tokenizer.decode(context))
    whole = str(tokenizer.decode([*context, one]))
    return whole[len(former) :] if whole.startswith(former) else str(tokenizer.decode([one]))


def _bytes(tokenizer: Any, one: int, text: str) -> tuple[int, ...] | None:
    # A part of a character adds nothing, or a sign that it is none.
    if text and "\ufffd" not in text:
        return tuple(text.encode())
    name = str(tokenizer.convert_ids_to_tokens(one))
    if found := _BYTE_TOKEN.fullmatch(name):
        return (int(found[1], 16),)
    letters = _byte_letters()
    return tuple(letters[letter] for letter in name) if all(letter in letters for letter in name) else None


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level tokenizers write bytes: printable ones as they are, the others from 256 on."""
    known = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
    plain = {letter: ord(letter) for letter in known if ord(letter) < 256}
    others = [byte for byte in range(256) if byte not in plain.values()]
    return plain | dict(zip([letter for letter in known if ord(letter) >= 256], others, strict=True))
