"""The effect of an edit on unrelated text: perplexity before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from palimpsest.models import Encoded, by_length, encode, encode_apart

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

MAX_SENTENCES = 32
# Logits of one forward pass, (places, vocabulary), stay below this many numbers (256 MB in float32).
_MAX_LOGITS = 64 * 2**20


def neutral_sentences(texts: Sequence[str]) -> list[str]:
    """The sentences that perplexity is measured on: the first `MAX_SENTENCES` that are not blank."""
    return [text for text in texts if text.strip()][:MAX_SENTENCES]


def perplexity(model: EditableModel, texts: Sequence[str], *, forward_batch_size: int = 64) -> float | None:
    """The exponential of the mean negative log-likelihood over all predicted tokens of all texts.

    A text's first token is given, not predicted. An encoder-decoder is given the first half of a text and predicts
    the second. Texts longer than the context are cut. Logits are computed only where a token is predicted.

    Returns `None` when there is nothing to predict, or the model's numbers are not finite.
    """
    found, count = 0.0, 0
    for total, number in _totals(model, texts, forward_batch_size):
        found += total
        count += number
    if not count:
        return None
    mean = -found / count
    # Beyond this the exponential overflows; a model that far off has no perplexity worth a number.
    return math.exp(mean) if math.isfinite(mean) and mean < 700 else None


def log_likelihoods(model: EditableModel, texts: Sequence[str], *, forward_batch_size: int = 64) -> list[float]:
    """The log-likelihood of each text in nats, of what `perplexity` takes to be predicted; 0 where that is nothing."""
    return [total for total, _ in _totals(model, texts, forward_batch_size)]


def _totals(model: EditableModel, texts: Sequence[str], forward_batch_size: int) -> list[tuple[float, int]]:
    """Of each text the log-likelihood of its predicted tokens, and how many they are."""
    coded = [_halves(model, text) if model.is_encoder_decoder else _after_the_first(model, text) for text in texts]
    rows = [(index, row) for index, row in enumerate(coded) if row is not None and row.target_ids]
    found = [(0.0, 0)] * len(texts)
    if not rows:
        return found
    vocabulary = int(model.module.get_input_embeddings().weight.shape[0])
    longest = max(len(row) for _, row in rows)
    size = max(1, min(forward_batch_size, _MAX_LOGITS // (vocabulary * longest)))
    for chunk in by_length([len(row) for _, row in rows], size):
        part = [rows[index] for index in chunk]
        values = _log_likelihoods(model, [row for _, row in part])
        for (index, row), value in zip(part, values, strict=True):
            found[index] = (value, len(row.target_ids))
    return found


def _after_the_first(model: EditableModel, text: str) -> Encoded:
    ids = encode(model.tokenizer, text).ids[: model.context_length]
    return Encoded(ids[:1], ids[1:])


def _halves(model: EditableModel, text: str) -> Encoded | None:
    """The first half of a text and the second, parted at a space if there is one; `None` for a single letter."""
    text = text.strip()
    if len(text) < 2:
        return None
    middle = len(text) // 2
    behind, before = text.find(" ", middle), text.rfind(" ")
    cut = behind if behind > 0 else before if before > 0 else middle
    first, second = text[:cut].rstrip(), text[cut:].lstrip()
    row, limit = encode_apart(model.tokenizer, first, second), model.context_length
    return Encoded(row.prompt_ids[:limit], row.target_ids[:limit])


@torch.no_grad()
def _log_likelihoods(model: EditableModel, encoded: Sequence[Encoded]) -> list[float]:
    """Of each of a few rows, summed over its predicted tokens, in nats."""
    batch = model.batch(encoded)
    rows, columns, labels = model.answer_places(encoded, batch)
    logits = model.logits_at(batch, rows, columns).float()
    picked = (logits.gather(-1, labels[:, None])[:, 0] - logits.logsumexp(-1)).double()
    totals = torch.zeros(len(encoded), dtype=torch.float64, device=picked.device).index_add(0, rows, picked)
    return [float(value) for value in totals]
