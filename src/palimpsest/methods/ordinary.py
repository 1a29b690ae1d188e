"""Ordinary text as a model reads it: text whose outputs an edit must keep, as rows of ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from palimpsest.datasets import DATASETS, dataset
from palimpsest.errors import DataError
from palimpsest.methods.memory import MemoryConfig, OrdinaryRow
from palimpsest.models import Encoded, tokens
from palimpsest.provenance import digest
from palimpsest.requests import EditRequest, normalise
from palimpsest.statistics import OWN_WRITING, Cache, WrittenText, open_text
from palimpsest.stopwatch import Progress, silent
from palimpsest.wording import separator

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

# Characters a token may take on average before the end of a long text is lost; it is cut before it is tokenised.
_LONGEST_TOKEN = 32


def ordinary_rows(
    model: EditableModel, name: str, config: MemoryConfig, *, at_least: int, progress: Progress = silent
) -> list[OrdinaryRow]:
    """Rows of a text until there are enough tokens; if there is an encoder, rows of the decoder.

    Arguments:
        name: which text: `own`, or another name as for second moments, or a data set of edits without a path, such as
            `world-counterfact`: its training prompts with their old answers. Behind an encoder a text is cut between
            two words in its middle: the first half is read, the second one said.
        config: how much of it.
        at_least: the fewest tokens that are of use.

    Raises `DataError` for a text that is not there or too short.
    """
    rows: list[OrdinaryRow] = []
    count, row_length = 0, min(config.row_length, model.context_length or config.row_length)
    for prompt, answer in _texts(model, name, config.max_tokens, progress):
        text = prompt if answer is None else f"{prompt}{separator(prompt, answer)}{answer}"
        encoded = _encoded(model, prompt[: row_length * _LONGEST_TOKEN], answer, row_length)
        counted = len(encoded.target_ids) if model.is_encoder_decoder else len(encoded)
        if counted:
            rows.append(OrdinaryRow(normalise(text), encoded))
            count += counted
        if count >= config.max_tokens:
            break
    if count < at_least:
        raise DataError(
            "The text is too short to say what an edit is to leave alone.",
            expected=f"at least {at_least:,} tokens",
            found=f"{count:,} tokens in {len(rows):,} texts",
            where=f"text {name!r}",
            remedy="name a longer text with the option text, or ask for less",
        )
    return rows


class OrdinaryText:
    """Rows of a text, from which edits draw what they are held against; read once for each tokenizer, own writing for
    each model.
    """

    def __init__(self) -> None:
        self._kept: tuple[str, list[OrdinaryRow]] = ("", [])

    def of(
        self, model: EditableModel, name: str, config: MemoryConfig, progress: Progress = silent
    ) -> list[OrdinaryRow]:
        """See `ordinary_rows`."""
        weights = model.fingerprint() if name == OWN_WRITING else None
        key = digest([weights, model.tokenizer_digest, name, config.model_dump()])
        if self._kept[0] != key:
            self._kept = (key, ordinary_rows(model, name, config, at_least=1, progress=progress))
        return self._kept[1]


def drawn(rows: Sequence[OrdinaryRow], request: EditRequest, count: int, seed: int) -> list[Encoded]:
    """Some rows, none of which says what the edit is to change. Raises `DataError` where all do."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    apart = (rows[index].encoded for index in order if rows[index].encoded.ids and not rows[index].tells(request))
    found = [encoded for encoded, _ in zip(apart, range(count), strict=False)]
    if not found:
        raise DataError(
            "No ordinary text is left to hold the edit against.",
            expected="text that does not say what the edit is to change",
            found=f"{len(rows)} rows, all of which do",
            where=f"edit {request.id!r}",
            remedy="name another text with the option text, or allow more of its tokens",
        )
    return found


def _texts(model: EditableModel, name: str, max_tokens: int, progress: Progress) -> Iterator[tuple[str, str | None]]:
    """Prompts with their answers, or texts without one."""
    if name in DATASETS:
        for request in dataset(name, split="train").requests:
            if request.target_old is not None:
                yield request.prompt, request.target_old
        return
    source = open_text(name).for_model(model, cache=Cache(), progress=progress)
    # What nobody reads is not sampled.
    for text in source.texts(max_tokens) if isinstance(source, WrittenText) else source.texts():
        words = text.split()
        if not model.is_encoder_decoder and words:
            yield text, None
        elif len(words) > 1:
            half = len(words) // 2
            yield " ".join(words[:half]), " ".join(words[half:])


def _encoded(model: EditableModel, prompt: str, answer: str | None, row_length: int) -> Encoded:
    # Text is no turn of a chat.
    encode = tokens.encode_apart if model.is_encoder_decoder else tokens.encode
    full = encode(model.tokenizer, prompt, answer)
    room = row_length if model.is_encoder_decoder else max(0, row_length - len(full.prompt_ids))
    return Encoded(full.prompt_ids[:row_length], full.target_ids[:room])
