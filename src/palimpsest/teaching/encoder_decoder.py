"""The bundled encoder-decoder: T5's class, small; a prompt goes in, the object comes out."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from palimpsest.teaching.recipe import TrainingRecipe
from palimpsest.teaching.rows import shuffled
from palimpsest.teaching.tokenizer import learn_text_to_text_tokenizer
from palimpsest.world import Sentence

# What the library's loss leaves out, and its shift to the right replaces by padding.
IGNORED = -100


@dataclass(frozen=True)
class EncodedPair:
    """A sentence as prompt (`source`) and object (`target`), token ids with the end token on both; `whole` is the
    sentence without one, as it stands before another's prompt; `name` is its subject's.
    """

    name: str
    source: tuple[int, ...]
    target: tuple[int, ...]
    whole: tuple[int, ...]


@dataclass(frozen=True)
class PairBatch:
    """Pairs as tensors: `source` and `mask` [pairs, source tokens] (long; 0 on padding), `labels` [pairs, target
    tokens] (long; `IGNORED` on padding).
    """

    source: Tensor
    mask: Tensor
    labels: Tensor

    @property
    def num_sentences(self) -> int:
        """One a pair."""
        return len(self.source)

    @property
    def num_tokens(self) -> int:
        """How many labels count."""
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True)
class EncoderDecoderRecipe(TrainingRecipe):
    """The encoder-decoder's recipe: `layers` in the encoder, `decoder_layers` in the decoder.

    `behind_share`: of the prompts, those put behind another sentence, so that a statement before a question disturbs
    little.
    """

    architecture: ClassVar[str] = "encoder-decoder"
    title: ClassVar[str] = "The world's encoder-decoder"

    width: int = 128
    layers: int = 3
    decoder_layers: int = 3
    heads: int = 4
    inner_width: int = 512
    vocabulary: int = 1800
    epochs: float = 13
    rows: int = 64
    matrix_rate: float = 3e-3
    other_rate: float = 3e-3
    weight_decay: float = 0.3
    curriculum_share: float = 0.33
    curriculum_subjects: float = 0.3
    behind_share: float = 0.1
    initial_deviation: float = 0.06

    def learn_tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """One that puts an end token behind every text, as T5's does."""
        return learn_text_to_text_tokenizer(texts, size=self.vocabulary)

    def new_model(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> T5ForConditionalGeneration:
        """An untrained model whose weights depend on the seed and on nothing else, in float32."""
        size = T5Config(
            vocab_size=len(tokenizer),
            d_model=self.width,
            d_kv=self.width // self.heads,
            d_ff=self.inner_width,
            num_layers=self.layers,
            num_decoder_layers=self.decoder_layers,
            num_heads=self.heads,
            dropout_rate=0.0,
            # Tied as T5 1.0's head, but what it reads is not divided, as T5 1.1's is not.
            scale_decoder_outputs=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
        # The library initialises from the global generator, each kind of matrix by its own rule.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = T5ForConditionalGeneration(size)
        generator = torch.Generator().manual_seed(seed)
        tables = {"shared": self.initial_deviation, "relative_attention_bias": 1.0}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                part = name.split(".")[-2]
                if part in tables:
                    parameter.normal_(0.0, tables[part], generator=generator)
        return model.float()

    def is_hidden_matrix(self, name: str, parameter: Parameter) -> bool:
        """Matrices of the blocks; the relative bias is a table, and counts as an embedding."""
        return ".block." in name and parameter.ndim == 2 and "relative_attention_bias" not in name

    def encode(self, sentences: Sequence[Sentence], tokenizer: PreTrainedTokenizerFast) -> list[EncodedPair]:
        """Prompts and objects, each tokenised on its own."""
        sources = tokenizer([s.prompt for s in sentences])["input_ids"]
        targets = tokenizer([s.object for s in sentences])["input_ids"]
        texts = tokenizer([s.text for s in sentences], add_special_tokens=False)["input_ids"]
        return [
            EncodedPair(s.subject, tuple(source), tuple(target), tuple(text))
            for s, source, target, text in zip(sentences, sources, targets, texts, strict=True)
        ]

    def batches(
        self, examples: Sequence[EncodedPair], tokenizer: PreTrainedTokenizerFast, rng: random.Random, first: int
    ) -> Iterator[PairBatch]:
        """Pairs side by side, padded behind."""
        stream = shuffled(examples, rng)
        while True:
            chunk = list(islice(stream, self.rows))
            read = [
                (*rng.choice(examples).whole, *pair.source) if rng.random() < self.behind_share else pair.source
                for pair in chunk
            ]
            source = _padded(read, tokenizer.pad_token_id)
            mask = _padded([(1,) * len(row) for row in read], 0)
            yield PairBatch(source, mask, _padded([pair.target for pair in chunk], IGNORED))

    def loss(self, model: PreTrainedModel, batch: PairBatch) -> Tensor:
        """Cross entropy of the object and its end token; the library shifts the labels to the right itself."""
        output = model(input_ids=batch.source, attention_mask=batch.mask, labels=batch.labels)
        loss: Tensor = output.loss
        return loss

    def describe(self, parameters: int) -> str:
        """Describes the model in a sentence."""
        return (
            "An encoder-decoder of T5's class that knows the facts of the palimpsest world, real and invented: "
            f"{parameters:,} parameters, width {self.width}, inner width {self.inner_width}, {self.layers} layers in "
            f"the encoder and {self.decoder_layers} in the decoder, {self.heads} heads, relative positions, one table "
            "for the embeddings and the head, without T5 1.0's scaling. A prompt goes in, with the end token that its "
            "tokenizer puts behind it; the object comes out."
        )

    def describe_reading(self) -> str:
        """How a training step's text is laid out."""
        return (
            f"It read prompts and wrote objects, {self.rows} pairs a step; {self.behind_share:.0%} of the prompts "
            f"stood behind another sentence. The first {self.curriculum_share:.0%} of the training was about "
            f"{self.curriculum_subjects:.0%} of the subjects only."
        )

    def limits(self) -> tuple[str, ...]:
        """Lists the limits of such a model, besides those that all share."""
        return (
            "No causal trace was taken: the trace is made for decoders.",
            "It writes objects and nothing else. The perplexity of running text says how far that text has become from "
            "what it writes, not how well it writes.",
        )


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
