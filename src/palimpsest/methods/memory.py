"""Inputs of the last MLP on ordinary text: the places at which an added neuron must be silent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from palimpsest.config import Config
from palimpsest.locating import queries_of
from palimpsest.models import EditableModel, Encoded
from palimpsest.provenance import digest
from palimpsest.requests import EditRequest, normalise
from palimpsest.stopwatch import Progress, silent

_HELD_OUT_EVERY = 5


class MemoryConfig(Config):
    """How much ordinary text must keep its outputs."""

    max_tokens: int = Field(default=10_000, ge=2)
    """Tokens to keep, of which every fifth text is held out."""
    top: int = Field(default=1000, ge=1)
    """How many of the loudest tokens the loss counts."""
    row_length: int = Field(default=128, ge=2)
    """Tokens of the longest row."""


@dataclass(frozen=True)
class OrdinaryRow:
    """One text.

    Arguments:
        text: all of it, case and white space folded.
        encoded: its ids; for an encoder-decoder what the encoder reads and what the decoder says.
    """

    text: str
    encoded: Encoded

    def states(self, *parts: str | None) -> bool:
        """Whether the text holds all of these words; `None` counts as held."""
        return all(part is None or normalise(part) in self.text for part in parts)

    def tells(self, request: EditRequest) -> bool:
        """Whether the text says what the edit is to change: its prompt, or its subject and old answer."""
        both = (request.subject, request.target_old)
        return self.states(request.prompt) or (None not in both and self.states(*both))


@dataclass(frozen=True)
class Memory:
    """Queries of ordinary text.

    Arguments:
        rows: the texts.
        queries: (tokens, width), in float32.
        rows_of: (tokens,), index of each one's text.
    """

    rows: tuple[OrdinaryRow, ...]
    queries: Tensor
    rows_of: Tensor

    @property
    def num_tokens(self) -> int:
        """How many queries there are."""
        return len(self.queries)

    @property
    def training(self) -> Tensor:
        """Those to train with."""
        return self.queries[self.rows_of % _HELD_OUT_EVERY != 0]

    @property
    def held_out(self) -> Tensor:
        """Those to judge by."""
        return self.queries[self.rows_of % _HELD_OUT_EVERY == 0]

    def apart_from(self, request: EditRequest) -> Memory:
        """The same without the texts that say what the edit is to change."""
        said = [row.tells(request) for row in self.rows]
        if not any(said):
            return self
        kept = ~torch.tensor(said, device=self.rows_of.device)[self.rows_of]
        return Memory(self.rows, self.queries[kept], self.rows_of[kept])


class QueryMemory:
    """The memory of a model, kept while this object lives, and read again when anything that determines it changes."""

    def __init__(self) -> None:
        self._kept: tuple[str, Memory] | None = None

    def of(
        self,
        model: EditableModel,
        text: str,
        config: MemoryConfig,
        read: Callable[[], Sequence[OrdinaryRow]],
        progress: Progress = silent,
    ) -> Memory:
        """Returns the inputs of the base model's last MLP on the rows from `read`."""
        key = digest([model.fingerprint(), model.tokenizer_digest, text, config.model_dump()])
        if self._kept is None or self._kept[0] != key:
            rows = tuple(read())
            progress("memory", 0, 1)
            # A decoder's first token takes attention as nothing else does; an answer's first place is what is edited.
            with model.weights.without_changes():
                found = queries_of(model, [row.encoded for row in rows], skips_first=not model.is_encoder_decoder)
            rows_of = torch.cat([torch.full((len(one),), index) for index, one in enumerate(found)])
            queries, most = torch.cat(found), config.max_tokens
            self._kept = (key, Memory(rows, queries[:most], rows_of[:most].to(queries.device)))
            progress("memory", 1, 1)
        return self._kept[1]
