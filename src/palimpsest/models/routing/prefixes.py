"""Prompts that begin alike: the keys and values of what they begin with are computed once, and all go on from there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any, TypeVar

import torch

from palimpsest.models import tokens
from palimpsest.models.generation import Until, continuations, decoder_steps
from palimpsest.models.reader import Reader
from palimpsest.models.scores import TargetScore, target_scores
from palimpsest.models.tokens import Encoded, PaddedBatch

# Tokens that must be shared for a pass of their own to pay; prompts that begin with the same ones go together.
LEAST = 16

T = TypeVar("T")


@dataclass(frozen=True)
class Prefix:
    """A shared beginning of some prompts of a decoder, with its keys and values.

    Arguments:
        model: the model that read it; its weights must not change meanwhile.
        length: tokens.
        cache: their keys and values, one row; `None` if there are none.
    """

    model: Reader
    length: int = 0
    cache: Any = None

    def inputs(self, batch: PaddedBatch) -> dict[str, Any]:
        """Returns the module's arguments for continuing with a padded batch."""
        inputs: dict[str, Any] = dict(self.model.inputs(batch))
        if self.cache is None:
            return inputs
        read = batch.attention_mask.new_ones(len(batch.input_ids), self.length)
        inputs["attention_mask"] = torch.cat([read, batch.attention_mask], dim=1)
        if self.model.takes_positions:
            inputs["position_ids"] = inputs["position_ids"] + self.length
        # A layer that grows puts new tensors instead of the old ones, which stay as they are.
        cache = copy(self.cache)
        cache.layers = [copy(layer) for layer in self.cache.layers]
        cache.batch_repeat_interleave(len(batch.input_ids))
        return {**inputs, "past_key_values": cache}

    def scores(self, rows: Sequence[Encoded]) -> list[TargetScore]:
        """Of the rows' targets, the prefix cut off their prompts."""
        batch = self.model.batch(rows)
        places, columns, labels = self.model.answer_places(rows, batch)
        if self.cache is None:
            logits = self.model.logits_at(batch, places, columns)
        else:
            logits = self.model.module(**self.inputs(batch), use_cache=True).logits[places, columns]
        return target_scores(rows, labels, logits.float())

    def continuations(self, rows: Sequence[Encoded], max_new_tokens: int, until: Until) -> list[str]:
        """Greedy ones; see `generation.continuations`."""
        found: dict[int, str] = {}
        # Padding behind the prefix would take places in the window of a model that looks back only so far.
        for length in {len(row) for row in rows}:
            same = [index for index, row in enumerate(rows) if len(row) == length]
            batch = self.model.batch([rows[index] for index in same])
            room = self.model.room_after(self.length + length)
            steps = decoder_steps(self.model, self.inputs(batch))
            texts = continuations(self.model, batch, max_new_tokens=max_new_tokens, room=room, until=until, steps=steps)
            found.update(zip(same, texts, strict=True))
        return [found[index] for index in range(len(rows))]


def can_share(model: Reader) -> bool:
    """Whether the model is a decoder that goes on from a cache, with nothing on it that must see whole prompts."""
    takes_cache = "past_key_values" in inspect.signature(model.module.forward).parameters
    return takes_cache and not model.is_encoder_decoder and model.weights.depth == len(model.weights.routers)


@torch.no_grad()
def score(
    model: Reader, prompts: Sequence[str], targets: Sequence[str], *, forward_batch_size: int
) -> list[TargetScore]:
    """`EditableModel.score`, for prompts many of which begin alike."""
    encoded = [model.encode(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
    return _by_prefix(model, encoded, forward_batch_size, Prefix.scores)


@torch.no_grad()
def generate(
    model: Reader,
    prompts: Sequence[str],
    max_new_tokens: int,
    until: Until,
    *,
    forward_batch_size: int,
) -> list[str]:
    """`EditableModel.generate`, for prompts many of which begin alike."""
    encoded = [model.asked(prompt) for prompt in prompts]
    return _by_prefix(
        model, encoded, forward_batch_size, lambda prefix, rows: prefix.continuations(rows, max_new_tokens, until)
    )


def _by_prefix(
    model: Reader,
    encoded: Sequence[Encoded],
    forward_batch_size: int,
    answers: Callable[[Prefix, Sequence[Encoded]], list[T]],
) -> list[T]:
    """An answer for each row, from passes over rows that begin alike."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(encoded):
        groups.setdefault(row.prompt_ids[:LEAST], []).append(index)
    found: dict[int, T] = {}
    for members in groups.values():
        prefix = _read(model, [encoded[index] for index in members])
        for chunk in tokens.by_length([len(encoded[index]) for index in members], forward_batch_size):
            chosen = [members[place] for place in chunk]
            rows = [
                replace(row, prompt_ids=row.prompt_ids[prefix.length :]) for row in map(encoded.__getitem__, chosen)
            ]
            found.update(zip(chosen, answers(prefix, rows), strict=True))
    return [found[index] for index in range(len(encoded))]


def _read(model: Reader, encoded: Sequence[Encoded]) -> Prefix:
    """Returns the common beginning of the prompts, without each one's last token, which must be read on its own."""
    shared = commonprefix([row.prompt_ids[:-1] for row in encoded])
    if len(encoded) == 1 or len(shared) < LEAST:
        return Prefix(model)
    return Prefix(model, len(shared), model.forward(model.batch([shared]), use_cache=True).past_key_values)
