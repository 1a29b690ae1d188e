"""Decisions by the prompt: where it stands in what flows through a layer, and what was decided on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from palimpsest.models import EditableModel, PaddedBatch

T = TypeVar("T")


@dataclass(frozen=True)
class PromptColumns:
    """Where the prompts are in a tensor (rows, tokens, width).

    Arguments:
        first: (rows,), column of each prompt's first token.
        last: (rows,), of its last one.
        mask: (rows, tokens), whether a column holds a token at all.
    """

    first: Tensor
    last: Tensor
    mask: Tensor

    def chosen(self, which: str) -> Tensor:
        """(rows, tokens), whether a column is the prompt's last one (`last`), in the prompt, or any (`all`)."""
        columns = torch.arange(self.mask.shape[1], device=self.mask.device)
        if which == "last":
            return columns == self.last[:, None]
        return self.mask & (columns <= self.last[:, None]) if which == "prompt" else self.mask


def prompt_columns(model: EditableModel, stack: str, tensor: Tensor) -> PromptColumns:
    """Where the prompts are in what a stack's layer reads, (rows, tokens, width).

    The decoder behind an encoder has one token of the prompt: the one that it starts from. Where no batch has been
    announced, every token is the prompt's.
    """
    rows, width = tensor.shape[:2]
    batch = model.reading
    if batch is None:
        mask = torch.ones(rows, width, dtype=torch.bool)
        first, last = torch.zeros(rows, dtype=torch.long), torch.full((rows,), width - 1)
    elif batch.decoder is not None and stack == "decoder":
        first = last = batch.decoder.starts
        mask = batch.decoder.attention_mask.bool()
    else:
        first, mask = batch.starts, batch.attention_mask.bool()
        last = batch.last_columns if batch.prompt_ends is None else batch.prompt_ends
    device = tensor.device
    return PromptColumns(first.to(device), last.to(device), mask.to(device))


class Decision(Generic[T]):
    """The decision on the prompts of a batch, kept while the model generates from them token by token."""

    value: T

    def __init__(self) -> None:
        self._batch: PaddedBatch | None = None
        self._is_taken = False

    def is_for(self, batch: PaddedBatch | None, tensor: Tensor) -> bool:
        """Whether a tensor (rows, tokens, width) holds what follows prompts that have been decided on."""
        if batch is None or not self._is_taken or batch is not self._batch:
            return False
        # The whole rows again are a new pass; one token each may be all there is of a prompt, but never twice.
        width = (batch.decoder or batch).input_ids.shape[1]
        return tensor.shape[1] == 1 or tensor.shape[1] < width

    def take(self, batch: PaddedBatch | None, value: T) -> None:
        """Keeps a decision."""
        self._batch, self._is_taken, self.value = batch, True, value
