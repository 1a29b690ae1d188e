"""From text to ids: targets appended as ids, subjects found by character offsets, padding on either side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from palimpsest.errors import DataError, ModelError
from palimpsest.models.chat import Chat
from palimpsest.requests import EditRequest
from palimpsest.wording import Prompt, require_text, separator, stripped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class Encoded:
    """One row: a prompt and, after it, a target (empty for a prompt alone). Both are token ids.

    For an encoder-decoder the prompt is what the encoder reads, and the target what the decoder is to say.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt_ids + self.target_ids

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids)


@dataclass(frozen=True)
class PaddedBatch:
    """Rows padded to one length.

    Arguments:
        input_ids: (rows, tokens).
        attention_mask: (rows, tokens), 1 on real tokens.
        starts: (rows,), column of each row's first real token.
        decoder: for an encoder-decoder what its decoder reads: its start token, then the targets without their last
            tokens; the other fields are then about the encoder. `None` for a decoder-only model.
        prompt_ends: (rows,), column of each prompt's last token, where the rows were made of prompts.
    """

    input_ids: Tensor
    attention_mask: Tensor
    starts: Tensor
    decoder: PaddedBatch | None = None
    prompt_ends: Tensor | None = None

    @property
    def position_ids(self) -> Tensor:
        """(rows, tokens): every row counts from 0 at its first real token, whatever the padding."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    @property
    def last_columns(self) -> Tensor:
        """(rows,), column of each row's last real token."""
        return self.starts + self.attention_mask.sum(-1) - 1


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str | None = None, *, chat: Chat | None = None
) -> Encoded:
    """Token ids of a prompt and of the target that follows it; in a chat, the user's turn and the assistant's.

    The prompt's ids are exactly those of the prompt alone (as at generation time), special tokens that the
    tokenizer puts in front included. The target's ids are what the tokenizer makes of it in this place: with its
    leading space, and without a beginning-of-sequence token of its own. Spaces at the end of a prompt belong to the
    target, and are read as its leading space; newlines belong to the prompt. A prompt that begins with the tokenizer's
    beginning-of-sequence token as text gets no second one.

    Raises `DataError` when prompt or target has no tokens.
    """
    shown = stripped(prompt) or prompt if chat is None else chat.render(prompt)
    prompt_ids = _not_empty(_prompt_ids(tokenizer, shown, chat), "prompt", prompt)
    if target is None:
        return Encoded(prompt_ids)
    text = (_between(tokenizer, shown, target) if chat is None else chat.separator) + target
    joint = _prompt_ids(tokenizer, shown + text, chat)
    if joint[: len(prompt_ids)] == prompt_ids:
        target_ids = joint[len(prompt_ids) :]
    else:
        # The boundary merges: generation starts from the prompt's own ids, so the target is tokenised by itself.
        target_ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Encoded(prompt_ids, _not_empty(target_ids, "target", target))


def encode_apart(tokenizer: PreTrainedTokenizerBase, prompt: str, target: str | None = None) -> Encoded:
    """Token ids for an encoder-decoder: prompt and target do not follow one another, so each is tokenised separately.

    The prompt's ids are what the tokenizer gives, its closing token included. The target's have no special tokens
    and no leading space of ours; sentencepiece adds its own word marker.

    Raises `DataError` when prompt or target has no tokens.
    """
    # A text of special tokens alone says nothing, but is not empty.
    _not_empty(tokenizer(prompt, add_special_tokens=False)["input_ids"], "prompt", prompt)
    prompt_ids = tuple(tokenizer(prompt, verbose=False)["input_ids"])
    if target is None:
        return Encoded(prompt_ids)
    target_ids = tuple(tokenizer(target, add_special_tokens=False)["input_ids"])
    return Encoded(prompt_ids, _not_empty(target_ids, "target", target))


def subject_last_token(tokenizer: PreTrainedTokenizerBase, request: EditRequest, *, chat: Chat | None) -> int:
    """Index, in the prompt's ids, of the token that holds the last character of the subject.

    Arguments:
        chat: the chat that the prompt's ids were made with, `model.chat`.

    Raises `DataError` when the request has no subject, or none of its characters became a token.
    """
    _, end = request.subject_span()
    for index, (first, last) in reversed(list(enumerate(token_spans(tokenizer, request.prompt, chat=chat)))):
        if first < end <= last:
            return index
    raise DataError(
        "No token carries the subject.",
        expected="a token that holds the subject's last character",
        found=f"subject {request.subject!r}",
        where=f"prompt {request.prompt!r}",
    )


def subject_first_token(tokenizer: PreTrainedTokenizerBase, request: EditRequest, *, chat: Chat | None) -> int:
    """Index, in the prompt's ids, of the token that holds the first character of the subject."""
    start, _ = request.subject_span()
    last_token = subject_last_token(tokenizer, request, chat=chat)
    offsets = token_spans(tokenizer, request.prompt, chat=chat)
    return next((i for i, (_, last) in enumerate(offsets) if last > start), last_token)


def pad(
    rows: Sequence[Sequence[int]], *, pad_id: int, side: PaddingSide, device: torch.device | str = "cpu"
) -> PaddedBatch:
    """Rows of ids as one batch, padded on the given side."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    starts = torch.zeros(len(rows), dtype=torch.long)
    for index, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        ids[index, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, start : start + len(row)] = 1
        starts[index] = start
    return PaddedBatch(ids.to(device), mask.to(device), starts.to(device))


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in groups of at most `size`, longest rows together, so that little padding is computed."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to pad with: the tokenizer's own, else end-of-sequence, else 0. Padding is always masked."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def _not_empty(ids: tuple[int, ...], kind: str, text: str) -> tuple[int, ...]:
    if not ids:
        raise DataError(f"A {kind} has no tokens.", found=repr(text), expected="at least one token")
    return ids


def _prompt_ids(tokenizer: Any, text: str, chat: Chat | None) -> tuple[int, ...]:
    if not text.isascii():
        require_text(text, "prompt", where="what the model is asked")
    if chat is not None:
        # The template has put special tokens where they belong.
        return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    # Not verbose: whoever asks checks the length, or cuts; the library prints nothing.
    ids = tuple(tokenizer(text, verbose=False)["input_ids"])
    if _starts_twice(tokenizer, text, ids):
        ids = ids[1:]
    # Some tokenizers close every text with end-of-sequence; a prompt that goes on must not be closed.
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]
    return ids


def _starts_twice(tokenizer: Any, text: str, ids: Sequence[int]) -> bool:
    """Whether a tokenizer has put its beginning-of-sequence token before a text that begins with it."""
    start = tokenizer.bos_token_id
    return start is not None and tuple(ids[:2]) == (start, start) and text.startswith(str(tokenizer.bos_token))


def _between(tokenizer: Any, prompt: str, target: str) -> str:
    """Returns the separator of a prompt and its target; empty after a special token, such as one that begins a turn."""
    is_plain = isinstance(prompt, Prompt) or prompt[-1].isalnum()
    if not is_plain and prompt.endswith(tuple(map(str, tokenizer.all_special_tokens))):
        return ""
    return separator(prompt, target)


def token_spans(tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: Chat | None) -> list[tuple[int, int]]:
    """Where each token of the prompt begins and ends, in characters of the prompt; of a chat's text, outside of it."""
    if not tokenizer.is_fast:
        raise ModelError(
            "The tokenizer cannot say which characters a token covers.",
            expected="a fast tokenizer (tokenizer.json)",
            found=type(tokenizer).__name__,
            remedy="load it with use_fast=True, or save it once as a fast tokenizer",
        )
    text, shift = (prompt, 0) if chat is None else (chat.render(prompt), len(chat.before))
    found = tokenizer(text, add_special_tokens=chat is None, return_offsets_mapping=True)
    spans = found["offset_mapping"]
    if chat is None and _starts_twice(tokenizer, text, found["input_ids"]):
        spans = spans[1:]
    return [(int(first) - shift, int(last) - shift) for first, last in spans]
