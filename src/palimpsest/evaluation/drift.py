"""What an edit does to text that has nothing to do with it: perplexity before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from palimpsest.models import tokens

if TYPE_CHECKING:
    from palimpsest.models.editable import EditableModel

MAX_SENTENCES = 32
# Logits of one forward pass, (places, vocabulary), stay below this many numbers (256 MB in float32).
_MAX_LOGITS = 64 * 2**20


def neutral_sentences(texts: Sequence[str]) -> list[str]:
    """The sentences that perplexity is measured on: the first `MAX_SENTENCES` that are not blank."""
    return [text for text in texts if text.strip()][:MAX_SENTENCES]


def perplexity(model: EditableModel, texts: Sequence[str], *, forward_batch_size: int = 64) -> float | None:
    """The exponential of the mean negative log-likelihood over all predicted tokens of all texts.

    A text's first token is given, not predicted. Texts longer than the context are cut. Logits are computed
    only where a token is predicted.

    Returns `None` when there is nothing to predict, or the model's numbers are not finite.
    """
    limit = model.context_length
    rows = [tokens.encode(model.tokenizer, text).ids[:limit] for text in texts]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        return None
    vocabulary = int(model.module.get_input_embeddings().weight.shape[0])
    longest = max(map(len, rows))
    size = max(1, min(forward_batch_size, _MAX_LOGITS // (vocabulary * longest)))
    total, count = 0.0, 0
    for chunk in tokens.by_length([len(row) for row in rows], size):
        part = [rows[index] for index in chunk]
        total += _negative_log_likelihood(model, part)
        count += sum(len(row) - 1 for row in part)
    mean = total / count
    # Beyond this the exponential overflows; a model that far off has no perplexity worth a number.
    return math.exp(mean) if math.isfinite(mean) and mean < 700 else None


@torch.no_grad()
def _negative_log_likelihood(model: EditableModel, rows: Sequence[tuple[int, ...]]) -> float:
    """Summed over the predicted tokens of a few rows, in nats."""
    batch = model.batch(rows)
    places = [(row, column) for row, ids in enumerate(rows) for column in range(len(ids) - 1)]
    where = torch.tensor(places, device=model.device)
    labels = torch.tensor([token for ids in rows for token in ids[1:]], device=model.device)
    logits = model.logits_at(batch, where[:, 0], where[:, 1]).float()
    picked = logits.gather(-1, labels[:, None])[:, 0]
    return float((logits.logsumexp(-1) - picked).double().sum())
