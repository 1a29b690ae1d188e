"""Greedy generation with cached keys and values, and the rule that says where an answer ends."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palimpsest.errors import ModelError
from palimpsest.requests import normalise

if TYPE_CHECKING:
    from palimpsest.models.editable import EditableModel
    from palimpsest.models.tokens import Batch

# A full stop ends an answer unless it belongs to an initial ("J. R. R."), a common title, or a number ("3.5").
_STOP = r"\n|(?<!\b[A-Z])(?<!\bSt)(?<!\bMt)(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bJr)\."
_END = re.compile(rf"(?:{_STOP})(?:(?<!\d\.)|(?=\D|$))")
# While a text still grows, a stop behind a digit has to wait for the next character.
_GROWING_END = re.compile(rf"(?:{_STOP})(?:(?<!\d\.)|(?=\D))")

_FULL_STOP = re.compile(r"\s*\.(?!\d)")


def cut_at_end(text: str) -> str:
    """The text before its first sentence end or newline, without surrounding spaces."""
    body = text.strip()
    end = _END.search(body)
    return (body[: end.start()] if end else body).strip()


def is_exact_match(generated: str, expected: str) -> bool:
    """Whether a continuation is the expected answer, up to the stop.

    The answer must stand at the beginning and be followed by a sentence end, a newline or nothing. Case and runs of
    white space do not matter; a full stop inside the expected answer does no harm.
    """
    text, answer = normalise(generated.strip().split("\n")[0]), normalise(expected)
    return text == answer or (text.startswith(answer) and bool(_FULL_STOP.match(text[len(answer) :])))


def continuations(
    model: EditableModel,
    batch: Batch,
    *,
    max_new_tokens: int,
    until: Sequence[str] | None = None,
    steps: Steps | None = None,
) -> list[str]:
    """Greedy continuations of a batch, stopped at the end of the answer; a decoder's prompts are padded on the left.

    Arguments:
        until: texts that end an answer and do not belong to it; left out, a sentence's end, which does.
        steps: where the logits come from; left out, from the model itself.

    Returns one string a row: as it was written where `until` is given, else without surrounding spaces.
    """
    eos, ended = _end_ids(model), _ended_sentence if until is None else partial(_before, until)
    produced: list[list[int]] = [[] for _ in range(len(batch.input_ids))]
    texts = [""] * len(produced)
    alive = list(range(len(produced)))
    steps = logits_by_step(model, batch) if steps is None else steps
    logits = next(steps)
    for left in reversed(range(max_new_tokens)):
        chosen = logits.argmax(-1)
        ids = chosen.tolist()
        for row in list(alive):
            if ids[row] in eos:
                alive.remove(row)
                continue
            produced[row].append(ids[row])
            texts[row] = model.tokenizer.decode(produced[row], skip_special_tokens=True)
            answer = ended(texts[row])
            if answer is not None:
                texts[row] = answer
                alive.remove(row)
        if not (alive and left):
            break
        logits = steps.send(chosen)
    return texts if until is not None else [text.strip() for text in texts]


def start_id(module: Any) -> int:
    """The id that an encoder-decoder's decoder starts from. Raises `ModelError` when the model does not say."""
    for config in (module.config, getattr(module, "generation_config", None)):
        declared = getattr(config, "decoder_start_token_id", None)
        if declared is not None:
            return int(declared)
    raise ModelError(
        "The model does not say what its decoder starts from.",
        expected="decoder_start_token_id in config.json or generation_config.json",
        found="none",
        where=f"a model of type {module.config.model_type!r}",
        remedy="add it; T5 starts from its padding token",
    )


Steps = Generator[Tensor, Tensor, None]
"""Logits after the last token of each row, (rows, vocabulary); takes the ids that were chosen from them, (rows,)."""


def logits_by_step(model: EditableModel, batch: Batch) -> Steps:
    """A model's logits for what follows a batch of prompts, token by token."""
    return (
        _encoder_decoder_steps(model, batch) if batch.decoder is not None else decoder_steps(model, model.inputs(batch))
    )


def decoder_steps(model: EditableModel, inputs: dict[str, Any]) -> Steps:
    """A decoder's logits token by token, from what its module is given first."""
    while True:
        output = model.module(**inputs, use_cache=True, **model.last_logits_only)
        chosen = yield output.logits[:, -1]
        mask = inputs["attention_mask"]
        positions = {"position_ids": inputs["position_ids"][:, -1:] + 1} if model.takes_positions else {}
        inputs = {
            "input_ids": chosen[:, None],
            "attention_mask": torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1),
            "past_key_values": output.past_key_values,
            **positions,
        }


def _encoder_decoder_steps(model: EditableModel, batch: Batch) -> Steps:
    """Every row of the decoder grows by one at each step, so that it is never padded."""
    output = model.forward(batch, use_cache=True)
    encoded = (output.encoder_last_hidden_state,)
    while True:
        chosen = yield output.logits[:, -1]
        output = model.module(
            encoder_outputs=encoded,
            attention_mask=batch.attention_mask,
            decoder_input_ids=chosen[:, None],
            past_key_values=output.past_key_values,
            use_cache=True,
        )


def _ended_sentence(text: str) -> str | None:
    """The text up to and with its first sentence end, if it has one."""
    body = text.lstrip()
    end = _GROWING_END.search(body)
    return body[: end.end()] if end else None


def _before(stops: Sequence[str], text: str) -> str | None:
    """The text before the first of the stops, if there is one."""
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None


def _end_ids(model: EditableModel) -> set[int]:
    """Ids that end a sequence, by the model's generation config and its tokenizer."""
    declared = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
    ids = set(declared if isinstance(declared, (list, tuple)) else [declared])
    ids |= {model.tokenizer.eos_token_id, model.end_id}
    return {int(one) for one in ids if one is not None}
