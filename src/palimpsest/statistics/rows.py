"""From texts to the rows of ids that a pass reads: cut, counted, and grouped into windows of like work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from palimpsest.errors import ConfigError, DataError
from palimpsest.models import tokens
from palimpsest.statistics.text import Text
from palimpsest.statistics.writing import WrittenText

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

MINIMUM = 4
"""Tokens for every dimension of a key below which a second moment is refused."""

DEFAULT = 64
"""Tokens for every dimension at which a pass ends, converged or not."""

TOKENS_PER_BATCH = 4096
"""Tokens of one forward pass, padding included."""

MOST_PER_WINDOW = 16_384
"""A pass can stop, and go on, between windows. A window is a sixty-fourth of the tokens, but no more than this."""

_LONGEST_TOKEN = 32
"""Characters a token may take on average before the end of a long text is lost; it is cut before it is tokenised."""


@dataclass(frozen=True)
class TextRows:
    """Tokenised texts.

    Arguments:
        ids: a row of token ids each, in the order of the texts.
        num_tokens: of all rows.
        is_all: whether the texts ended before the tokens that were asked for.
    """

    ids: Sequence[tuple[int, ...]]
    num_tokens: int
    is_all: bool


def read_rows(model: EditableModel, text: Text, *, max_tokens: int, at_least: int, row_length: int) -> TextRows:
    """Reads texts until there are enough tokens. A text gives one row, its first tokens, as ROME takes them.

    Arguments:
        max_tokens: where to stop; the last row is cut to meet it.
        at_least: the fewest tokens that are of use.
        row_length: tokens of the longest row.

    Raises `DataError` when the texts hold fewer than `at_least` tokens, `ConfigError` when that many may not be read.
    """
    if max_tokens < at_least:
        raise ConfigError(
            "Too few tokens are asked for.",
            expected=f"at least {at_least:,}, {MINIMUM} for every dimension of a key",
            found=f"max_tokens = {max_tokens:,}",
            remedy=f"raise max_tokens, or leave it out for {DEFAULT} for every dimension",
        )
    rows: list[tuple[int, ...]] = []
    count, is_all = 0, True
    written = text.rows(max_tokens) if isinstance(text, WrittenText) else _encoded(model, text, row_length)
    for ids in written:
        rows.append(ids[: max_tokens - count])
        count += len(rows[-1])
        if count == max_tokens:
            is_all = False
            break
    if count < at_least:
        raise DataError(
            "The text is too short for second moments of this width.",
            expected=f"at least {at_least:,} tokens, {MINIMUM} for every dimension of a key",
            found=f"{count:,} tokens in {len(rows):,} texts of at most {row_length:,} tokens each",
            where=f"text {text.name}",
            remedy="name a longer text; long documents give more if each paragraph is on its own line",
        )
    return TextRows(rows, count, is_all)


def _encoded(model: EditableModel, text: Text, row_length: int) -> Iterator[tuple[int, ...]]:
    encode = tokens.encode_apart if model.is_encoder_decoder else tokens.encode
    for one in text.texts():
        if one.strip():
            yield encode(model.tokenizer, one[: row_length * _LONGEST_TOKEN]).ids[:row_length]


def window_size(max_tokens: int) -> int:
    """Tokens of a window where that many are read at most."""
    return min(MOST_PER_WINDOW, -(-max_tokens // 64))


def windows(rows: TextRows, size: int) -> list[list[tuple[int, ...]]]:
    """The rows in groups of consecutive ones with some `size` tokens, between which a pass can stop."""
    groups: list[list[tuple[int, ...]]] = []
    filled = size
    for row in rows.ids:
        if filled >= size:
            groups.append([])
            filled = 0
        groups[-1].append(row)
        filled += len(row)
    return groups


def batches(window: Sequence[tuple[int, ...]], tokens: int = TOKENS_PER_BATCH) -> Iterator[list[tuple[int, ...]]]:
    """Batches of a window's rows, longest first, with a limit on padded tokens, or of one row each."""
    ordered = sorted(window, key=len, reverse=True)
    start = 0
    while start < len(ordered):
        size = max(1, tokens // len(ordered[start]))
        yield ordered[start : start + size]
        start += size
