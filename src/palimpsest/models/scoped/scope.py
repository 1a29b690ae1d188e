"""SERAC's scope classifier: whether a prompt asks about an edited fact (Mitchell et al., arXiv:2206.06520, section 3).

`g(z, x)`, above 0 and at most 1, is the probability that the prompt x is in the scope of an edit made at the prompt z.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from palimpsest.models import tokens
from palimpsest.models.encoders import context_of, mean_over_tokens
from palimpsest.models.scoped.counterfactual import initial_deviation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ClassifierForm = Literal["embedding", "cross-attention"]
EncoderPooling = Literal["mean", "first"]
_ROWS = 256
_POSITIONS = 256


class ScopeClassifier(nn.Module, ABC):
    """An encoder of texts, and what makes a probability of it.

    Arguments:
        encoder: a transformers encoder that returns `last_hidden_state`.
        tokenizer: its tokenizer.
        pooling: `"mean"` over a text's tokens, or the `"first"` token.
    """

    def __init__(self, encoder: Any, tokenizer: Any, pooling: EncoderPooling) -> None:
        super().__init__()
        # What some families put on top of the hidden states is not used, and would be saved for nothing.
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        self.encoder = encoder
        self._tokenizer, self._pooling = tokenizer, pooling
        self._limit = context_of(encoder)

    @abstractmethod
    def log_probs(self, edits: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """(pairs,), log g of each edit's prompt with the prompt beside it, with gradients."""

    @abstractmethod
    def index(self, edits: Sequence[str]) -> Tensor:
        """(edits, width), what is worth keeping of the edits' prompts, so that they are never encoded again."""

    @abstractmethod
    def against(self, edits: Sequence[str], index: Tensor, prompts: Sequence[str]) -> Tensor:
        """(prompts, edits), log g of every prompt with every edit, of which `index` has been kept."""

    def pooled(self, texts: Sequence[str]) -> Tensor:
        """(texts, width); of a text that is longer than the encoder's context the end is read."""
        # Behind a space a name has the same tokens at the beginning of a text as within it.
        rows = [self._tokenizer(f" {text}", verbose=False)["input_ids"][-self._limit :] for text in texts]
        device = next(self.encoder.parameters()).device
        batch = tokens.pad(rows, pad_id=tokens.pad_id(self._tokenizer), side="right", device=device)
        hidden = self.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        return mean_over_tokens(hidden, batch.attention_mask) if self._pooling == "mean" else hidden[:, 0]


class EmbeddingScope(ScopeClassifier):
    """g = exp(-|e(z) - e(x)|^2): each text has a vector of its own, so that a memory of any size is one product."""

    def log_probs(self, edits: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """See `ScopeClassifier.log_probs`; a text that occurs in several pairs is encoded once."""
        rows = {text: row for row, text in enumerate(dict.fromkeys([*edits, *prompts]))}
        vectors = self.pooled(list(rows))
        first, second = (vectors[[rows[text] for text in texts]] for texts in (edits, prompts))
        return -(first - second).square().sum(-1)

    @torch.no_grad()
    def index(self, edits: Sequence[str]) -> Tensor:
        """See `ScopeClassifier.index`: e(z)."""
        parts = [self.pooled(edits[start : start + _ROWS]).float() for start in range(0, len(edits), _ROWS)]
        return torch.cat(parts) if parts else torch.zeros(0, int(self.encoder.config.hidden_size))

    @torch.no_grad()
    def against(self, edits: Sequence[str], index: Tensor, prompts: Sequence[str]) -> Tensor:
        """See `ScopeClassifier.against`."""
        vectors = self.index(prompts)
        kept = index.to(vectors)
        products = vectors @ kept.t()
        squared = vectors.square().sum(-1)[:, None] + kept.square().sum(-1)[None] - 2 * products
        return -squared.clamp_min(0.0)


class CrossAttentionScope(ScopeClassifier):
    """g from one reading of both texts: more exact where words alone mislead, but every pair is a forward pass."""

    def __init__(self, encoder: Any, tokenizer: Any, pooling: EncoderPooling) -> None:
        super().__init__(encoder, tokenizer, pooling)
        self.head = nn.Linear(int(encoder.config.hidden_size), 1)
        self._separator = tokenizer.sep_token or tokenizer.eos_token or "\n"

    def log_probs(self, edits: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """See `ScopeClassifier.log_probs`."""
        texts = [f"{edit} {self._separator} {prompt}" for edit, prompt in zip(edits, prompts, strict=True)]
        return nn.functional.logsigmoid(self.head(self.pooled(texts))[:, 0])

    def index(self, edits: Sequence[str]) -> Tensor:
        """See `ScopeClassifier.index`: nothing can be kept."""
        return torch.zeros(len(edits), 0)

    @torch.no_grad()
    def against(self, edits: Sequence[str], index: Tensor, prompts: Sequence[str]) -> Tensor:
        """See `ScopeClassifier.against`."""
        pairs = [(edit, prompt) for prompt in prompts for edit in edits]
        parts = [
            self.log_probs(*zip(*pairs[start : start + _ROWS], strict=True)).float()
            for start in range(0, len(pairs), _ROWS)
        ]
        return torch.cat(parts).reshape(len(prompts), len(edits))


def scope_classifier(
    form: ClassifierForm, encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, pooling: EncoderPooling
) -> ScopeClassifier:
    """The classifier of a form."""
    made = EmbeddingScope if form == "embedding" else CrossAttentionScope
    return made(encoder, tokenizer, pooling)


def small_encoder(vocabulary: int, *, width: int, layers: int, heads: int) -> PreTrainedModel:
    """An untrained bidirectional encoder for a vocabulary of this size."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=_POSITIONS,
        initializer_range=initial_deviation(width),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config, add_pooling_layer=False)


def balanced_cross_entropy(inside: Tensor, outside: Tensor) -> Tensor:
    """Mean of -log g over pairs in scope plus mean of -log(1 - g) over those out of it: neither number matters.

    Arguments:
        inside: (pairs,), log g of pairs in scope.
        outside: (pairs,), log g of pairs out of scope.
    """
    # Two texts with the same vector have g = 1, whose complement has no logarithm.
    complement = torch.log(-torch.expm1(outside.clamp_max(-1e-6)))
    return -inside.mean() - complement.mean()
