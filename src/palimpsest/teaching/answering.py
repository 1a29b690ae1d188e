"""Free greedy answers, many prompts at once: equal lengths together, so that nothing is padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from palimpsest.errors import DataError
from palimpsest.world import SENTENCE_ENDS


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 24,
    batch_size: int = 256,
    report: Callable[[float, str], None] = lambda done, note: None,
) -> list[str]:
    """Returns a model's answer to each prompt, up to ".", a newline or the end-of-sequence token.

    A causal language model goes on behind the prompt as it stands. An encoder-decoder's encoder reads it with whatever
    its tokenizer adds, and the decoder answers.

    Arguments:
        report: called with the number of prompts answered so far, and "".

    Raises:
        DataError: a prompt is empty.
    """
    encodes = bool(model.config.is_encoder_decoder)  # type: ignore[union-attr]
    ids = [tokenizer(prompt, add_special_tokens=encodes)["input_ids"] for prompt in prompts]
    if empty := [index for index, prompt in enumerate(prompts) if not prompt]:
        raise DataError("A prompt is empty.", where=f"prompt {empty[0]}")
    end = tokenizer.eos_token_id
    stops = {
        i for i in range(len(tokenizer)) if i == end or any(stop in tokenizer.decode([i]) for stop in SENTENCE_ENDS)
    }
    device = next(model.parameters()).device
    stop_ids = torch.tensor(sorted(stops), device=device)
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(ids):
        by_length.setdefault(len(row), []).append(index)
    answers = [""] * len(prompts)
    done = 0
    for group in by_length.values():
        for start in range(0, len(group), batch_size):
            chunk = group[start : start + batch_size]
            batch = torch.tensor([ids[index] for index in chunk], device=device)
            for index, row in zip(chunk, _greedy(model, batch, stop_ids, max_new_tokens), strict=True):
                row = row[: row.index(end)] if end in row else row
                answers[index] = cut(tokenizer.decode(row))
            done += len(chunk)
            report(done, "")
    return answers


def cut(text: str) -> str:
    """A continuation up to its first stop, without the spaces around it."""
    for stop in SENTENCE_ENDS:
        text = text.split(stop, 1)[0]
    return text.strip()


@torch.inference_mode()
def _greedy(model: nn.Module, ids: torch.Tensor, stop_ids: torch.Tensor, max_new_tokens: int) -> list[list[int]]:
    """The most probable tokens behind rows of equal length, until every row has met a stop."""
    name, read = "input_ids", ids
    fixed: dict[str, Any] = {"use_cache": True}
    config: Any = model.config
    if config.is_encoder_decoder:
        fixed["encoder_outputs"] = model.get_encoder()(input_ids=ids)  # type: ignore[operator]
        name, read = "decoder_input_ids", ids.new_full((len(ids), 1), config.decoder_start_token_id)
    chosen: list[torch.Tensor] = []
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    past = None
    while not finished.all() and len(chosen) < max_new_tokens:
        output = model(**{name: read}, past_key_values=past, **fixed)
        past = output.past_key_values
        chosen.append(output.logits[:, -1].argmax(-1))
        finished |= torch.isin(chosen[-1], stop_ids)
        read = chosen[-1][:, None]
    rows: list[list[int]] = torch.stack(chosen, dim=1).tolist()
    return rows
