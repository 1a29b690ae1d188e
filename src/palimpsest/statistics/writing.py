"""Text that a model samples itself: the default text for its statistics.

Rows are sampled from the token that a document begins with, at temperature 1, so they are spread as the model
believes text to be. They are drawn in rounds. Each round is kept in the cache, so an interrupted run goes on at the
next round and more tokens only add rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palimpsest.errors import ModelError
from palimpsest.files import shaped
from palimpsest.models import cast_above, frozen_parameters
from palimpsest.statistics.cache import Cache, CacheEntry, whole_identity
from palimpsest.statistics.catalogue import open_text
from palimpsest.statistics.one_token import OneTokenAttention
from palimpsest.statistics.text import Text
from palimpsest.stopwatch import Progress, silent

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

OWN_WRITING = "own"
"""What options call it."""

SAMPLER_VERSION = 4
"""Goes up when the same model, seed and length would give other rows."""

ROWS = 128
"""Rows of a round, sampled together: a step's matrices are then large enough to be fast."""

ROW_LENGTH = 64
"""Tokens of a row, its start included. Prompts of edits are shorter, and later tokens cost more attention."""

_LEAST_ROWS = 32

PER_DIMENSION = 4
"""Tokens for every dimension of a key, at the least."""

ROUNDS = 2
"""Default number of rounds that are read: 16,384 tokens. Of the last one only what is read is sampled."""

_END_OF_TEXT = "<|endoftext|>"
_CACHE_BYTES = 2**30
_CHUNK_ELEMENTS = 2**19
_BLOCK = 512


@dataclass(frozen=True)
class OwnWriting(Text):
    """The own writing of whatever model it is asked for; `for_model` says whose.

    Arguments:
        seed: of the sampling.
    """

    seed: int = 0
    name: str = OWN_WRITING

    def identity(self) -> dict[str, Any]:
        return {"kind": "own writing", "sampler": SAMPLER_VERSION, "seed": self.seed}

    def texts(self) -> Iterator[str]:
        raise ModelError(
            "The text `own` needs the model that writes it.", expected="a model that writes it", found="no model",
            remedy="call for_model(model) first",
        )  # fmt: skip

    def for_model(self, model: EditableModel, *, cache: Cache | None = None, progress: Progress = silent) -> Text:
        if model.is_encoder_decoder:
            # It writes answers to what its encoder reads, and nothing without that.
            return open_text("world")
        return WrittenText(model, self.seed, cache, progress)


class WrittenText(Text):
    """The own writing of one model, without the patches that are on it. Nothing is sampled before it is read.

    Arguments:
        model: who writes.
        seed: of the sampling.
        cache: where rounds are kept; left out, nowhere.
        progress: told "own writing" with tokens done and wanted.
    """

    name = OWN_WRITING

    def __init__(
        self, model: EditableModel, seed: int = 0, cache: Cache | None = None, progress: Progress = silent
    ) -> None:
        self.model, self.seed, self.cache, self.progress = model, seed, cache, progress
        self._rounds: dict[int, Tensor] = {}

    @cached_property
    def _known(self) -> dict[str, Any]:
        return {
            "kind": "own writing",
            "sampler": SAMPLER_VERSION,
            **whole_identity(self.model),
            "start": start_token(self.model),
            "row_length": self.row_length,
            "dtype": str(fast_dtype(self.model) or "the model's").removeprefix("torch."),
            "seed": self.seed,
        }

    @property
    def row_length(self) -> int:
        """Tokens of a row."""
        return min(ROW_LENGTH, self.model.context_length or ROW_LENGTH)

    def identity(self) -> dict[str, Any]:
        return dict(self._known)

    def limits(self, max_tokens: int | None, width: int) -> dict[str, Any]:
        """How much of it a second moment of that width is taken over: all that is asked for, whatever the error."""
        return {"max_tokens": max_tokens or tokens_for(width), "tolerance": None, "row_length": self.row_length}

    def texts(self, max_tokens: int | None = None) -> Iterator[str]:
        """The rows as text, special tokens left out: those of `rows`, by default of all rounds that are read."""
        for ids in self.rows(max_tokens or ROUNDS * ROWS * self.row_length):
            yield self.model.tokenizer.decode(ids, skip_special_tokens=True)

    def rows(self, max_tokens: int) -> Iterator[tuple[int, ...]]:
        """The rows' ids until there are `max_tokens` tokens or more."""
        wanted = -(-max_tokens // self.row_length)
        # A few too many rather than a batch that no processor is fast at.
        wanted += -wanted % _LEAST_ROWS
        for number, first in enumerate(range(0, wanted, ROWS)):
            yield from map(tuple, self._round(number, min(ROWS, wanted - first), wanted).tolist())

    def _round(self, number: int, rows: int, of: int) -> Tensor:
        """A round's first rows, (rows, tokens): from memory or the cache, or sampled now.

        Arguments:
            of: rows of all rounds, for the progress.
        """
        if len(self._rounds.get(number, ())) >= rows:
            return self._rounds[number][:rows]
        for size in (ROWS, rows):
            if (stored := self._stored(number, size)) is not None:
                self._rounds[number] = stored
                return stored[:rows]
        before, length = number * ROWS, self.row_length
        ids = sample_rows(
            self.model, rows, length, self.seed, before,
            lambda stage, done, _: self.progress(stage, before * length + done, of * length),
        )  # fmt: skip
        if self.cache:
            self.cache.write(self._round_known(number, rows), {"ids": ids.to(torch.int32)}, count=ids.numel())
        self._rounds[number] = ids
        return ids

    def _stored(self, number: int, rows: int) -> Tensor | None:
        """A round's first rows, where the cache has as many as that."""

        def kept(entry: CacheEntry) -> Tensor:
            ids = shaped(entry.tensors["ids"], rows, self.row_length, name="ids").long()
            if int(ids.min()) < 0 or int(ids.max()) >= int(self.model.module.config.get_text_config().vocab_size):
                raise ValueError("tensor ids: numbers that no token has")
            return ids

        return self.cache.read(self._round_known(number, rows), kept) if self.cache else None

    def _round_known(self, number: int, rows: int) -> dict[str, Any]:
        return {**self._known, "round": number, "rows": rows}


def tokens_for(width: int) -> int:
    """How many tokens of own writing the second moment of keys of that width is taken over."""
    return max(ROUNDS * ROWS * ROW_LENGTH, PER_DIMENSION * width)


@contextmanager
def computing_fast(model: EditableModel, is_wanted: bool = True) -> Iterator[None]:
    """Inside the block the weights are copies in `fast_dtype`, if that is wanted."""
    with cast_above(model.sites, model.weights, 0, fast_dtype(model) if is_wanted else None):
        yield


def start_token(model: EditableModel) -> int:
    """The token that a document begins with: what the tokenizer itself puts in front of a text, else `<|endoftext|>`,
    else the end or the beginning of a sequence. Raises `ModelError` where the tokenizer has none of these.
    """
    tokenizer = model.tokenizer
    put, special = tokenizer("a", verbose=False)["input_ids"], set(tokenizer.all_special_ids)
    if len(put) > 1 and put[0] in special:
        return int(put[0])
    vocabulary = tokenizer.get_vocab()
    for token in (vocabulary.get(_END_OF_TEXT), tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    raise ModelError(
        "The model cannot write texts of its own: its tokenizer has no token that begins a text.",
        expected=f"a beginning-of-sequence or end-of-sequence token, or {_END_OF_TEXT}",
        found="none of them",
        where=f"model {model.name!r}",
        remedy="name a text with the option text: a file, or world",
    )


def fast_dtype(model: EditableModel) -> torch.dtype | None:
    """bfloat16 where the model is in float32 and the machine multiplies it in hardware; `None` for the model's own."""
    embedding = model.sites.module("embed").weight
    if embedding.dtype != torch.float32 or not all(map(_is_plain, model.module.parameters())):
        return None
    if embedding.device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    is_fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if embedding.device.type == "cpu" and is_fast else None


@torch.no_grad()
def sample_rows(
    model: EditableModel, rows: int, length: int, seed: int = 0, before: int = 0, progress: Progress = silent
) -> Tensor:
    """(rows, length) of ids on the CPU: the start token, then what the model draws at temperature 1.

    Arguments:
        before: rows of the same seed that came before these; what a row becomes does not depend on the rounds.
    """
    generator = torch.Generator().manual_seed(seed)
    chances = torch.rand(before + rows, length, generator=generator, dtype=torch.float64)[before:]
    start, device = start_token(model), model.device
    at_once = _rows_at_once(model, length)
    found = torch.full((rows, length), start)
    with (
        model.weights.without_changes(),
        frozen_parameters(model.module),
        computing_fast(model),
        OneTokenAttention(),
    ):
        for first in range(0, rows, at_once):
            part = slice(first, first + at_once)
            ids, past = found[part, :1], None
            for step in range(1, length):
                # Rows are equally long, so there is no padding and nothing to mask.
                output = model.module(
                    input_ids=ids.to(device), past_key_values=past, use_cache=True, **model.last_logits_only
                )
                past = output.past_key_values
                ids = drawn(output.logits[:, -1], chances[part, step])[:, None].cpu()
                found[part, step : step + 1] = ids
                progress("own writing", first * length + (step + 1) * len(ids), rows * length)
    return found


def drawn(logits: Tensor, chances: Tensor) -> Tensor:
    """One id a row, (rows,): where the cumulated probabilities pass its chance in [0, 1).

    A few rows at a time, so that they stay in the processor's cache; first among blocks of ids, then inside one.
    """
    at_once = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    wanted = chances.to(logits.device, torch.float64)[:, None]
    parts = zip(torch.split(logits, at_once), torch.split(wanted, at_once), strict=True)
    # A copy, for it is overwritten.
    return torch.cat([_drawn(part.to(torch.float32, copy=True), chance) for part, chance in parts])


def _drawn(logits: Tensor, chances: Tensor) -> Tensor:
    weights = torch.exp_(logits.sub_(logits.amax(1, keepdim=True)))
    blocks = torch.nn.functional.pad(weights, (0, -weights.shape[1] % _BLOCK)).view(len(weights), -1, _BLOCK)
    reached = blocks.sum(-1).double().cumsum(-1)
    wanted = chances * reached[:, -1:]
    block = torch.searchsorted(reached, wanted, right=True).clamp(max=reached.shape[1] - 1)
    before = torch.where(block > 0, reached.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double().cumsum(-1)
    place = torch.searchsorted(inside, wanted - before, right=True)
    # Rounding may point past the last id of a block that has any weight; there, take that one.
    last = (inside < inside[:, -1:]).sum(-1, keepdim=True)
    return (block * _BLOCK + torch.minimum(place, last))[:, 0]


def _rows_at_once(model: EditableModel, length: int) -> int:
    config = model.module.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or model.sites.d_model // heads
    each = 4 * model.num_layers * kept * width * length
    return max(16, min(ROWS, _CACHE_BYTES // each))


def _is_plain(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and type(parameter.data) is Tensor
