"""A recipe: the numbers of a training, and what differs between a decoder and an encoder-decoder."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from palimpsest.errors import ConfigError
from palimpsest.world import Sentence


class Example(Protocol):
    """An encoded sentence; `name` is its subject's, by which the curriculum chooses."""

    @property
    def name(self) -> str: ...


class TrainingBatch(Protocol):
    """The batch of one step: the number of sentences, and of tokens with a loss."""

    @property
    def num_sentences(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...


@dataclass(frozen=True)
class TrainingRecipe(ABC):
    """How a model is made. Rates are peak learning rates; shares are of the training or of the rows.

    Matrices inside the blocks are trained with Muon at `matrix_rate` with `weight_decay`, everything else with AdamW
    at `other_rate`. The first `curriculum_share` of the training reads about `curriculum_subjects` of the subjects
    only. `rows` are a batch's.
    """

    architecture: ClassVar[str]
    title: ClassVar[str]

    width: int
    layers: int
    heads: int
    vocabulary: int
    epochs: float
    rows: int
    matrix_rate: float
    other_rate: float
    weight_decay: float
    curriculum_share: float
    curriculum_subjects: float
    warmup_share: float = 0.02
    decay_from: float = 0.4
    gradient_clip: float = 1.0
    precision: str = "auto"
    threads: int = 1
    device: str = "cpu"

    @abstractmethod
    def learn_tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """A tokenizer learnt from whole sentences."""

    @abstractmethod
    def new_model(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
        """An untrained model whose weights depend on the seed and on nothing else, in float32."""

    @abstractmethod
    def is_hidden_matrix(self, name: str, parameter: Parameter) -> bool:
        """Whether Muon trains this parameter."""

    @abstractmethod
    def encode(self, sentences: Sequence[Sentence], tokenizer: PreTrainedTokenizerFast) -> Sequence[Example]:
        """Sentences as token ids.

        Raises `DataError` where a sentence cannot be told apart into prompt and object.
        """

    @abstractmethod
    def batches(
        self, examples: Sequence[Any], tokenizer: PreTrainedTokenizerFast, rng: random.Random, first: int
    ) -> Iterator[TrainingBatch]:
        """Batches of these examples without end, in epochs; the first one is the training's `first`-th, from 1."""

    @abstractmethod
    def loss(self, model: PreTrainedModel, batch: Any) -> Tensor:
        """Returns the loss of one step (nats per token, a scalar)."""

    @abstractmethod
    def describe(self, parameters: int) -> str:
        """Describes the model in a sentence."""

    @abstractmethod
    def describe_reading(self) -> str:
        """How a training step's text is laid out."""

    @abstractmethod
    def limits(self) -> tuple[str, ...]:
        """Lists the limits of such a model, besides those that all share."""

    def check(self) -> None:
        """Raises `ConfigError` for a number that is out of range."""
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ConfigError("Unknown precision.", expected="auto, bf16 or fp32", found=repr(self.precision))
        kind = self.device.partition(":")[0]
        if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
            raise ConfigError(
                "The device cannot be used.",
                expected="cpu" + (", or cuda" if torch.cuda.is_available() else " (there is no CUDA device here)"),
                found=repr(self.device),
                where="option device",
            )
        # Of these zero means none; every other number counts or scales something that must be there.
        may_be_zero = {"weight_decay", "long_every"}
        shares = {"masked_share", "behind_share", "other_weight", "warmup_share", "decay_from"}
        shares |= {"curriculum_share", "curriculum_subjects"}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) or field.name in may_be_zero:
                continue
            if field.name in shares:
                if not 0 <= value <= 1:
                    raise ConfigError(f"{field.name} is not a share.", expected="0 to 1", found=str(value))
            elif not 0 < value < math.inf:
                raise ConfigError(
                    f"{field.name} is not positive.", expected="> 0, and a finite number", found=str(value)
                )
