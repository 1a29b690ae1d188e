"""Inputs of a trace: prompts with the spans of their subjects and the token whose probability is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.errors import ModelError
from palimpsest.models import EditableModel, subject_first_token, subject_last_token
from palimpsest.requests import EditRequest

KNOWN = 0.1
"""Probability of an answer's first token below which a fact does not count as known, be it the most probable one."""


@dataclass(frozen=True)
class TracedPrompt:
    """A prompt ready to be traced.

    Arguments:
        request: where it comes from.
        ids: the prompt's tokens.
        subject: half-open span of the subject's tokens.
        answer_id: first token of the answer.
    """

    request: EditRequest
    ids: tuple[int, ...]
    subject: tuple[int, int]
    answer_id: int

    @property
    def ends_with_subject(self) -> bool:
        """Whether the subject's last token is the prompt's, so that the two places cannot be told apart."""
        return self.subject[1] == len(self.ids)


def question(model: EditableModel, request: EditRequest, answer: str | None) -> TracedPrompt:
    """A request's prompt with an answer, or with what the model says by itself.

    Raises `DataError` for a request without a subject or one whose subject has no token, `ModelError` for an
    encoder-decoder.
    """
    if model.is_encoder_decoder:
        raise ModelError(
            "Causal tracing is for decoders.",
            expected="a model that reads the subject and writes the answer with one stack of layers",
            found=f"the encoder-decoder {model.name!r}",
        )
    span = (
        subject_first_token(model.tokenizer, request, chat=model.chat),
        subject_last_token(model.tokenizer, request, chat=model.chat) + 1,
    )
    encoded = model.encode(request.prompt, answer)
    answer_id = encoded.target_ids[0] if answer is not None else next_token(model, encoded.prompt_ids)[0]
    return TracedPrompt(request, encoded.prompt_ids, span, answer_id)


def known_questions(
    model: EditableModel, requests: Sequence[EditRequest], *, at_most: int | None = None
) -> tuple[list[TracedPrompt], list[tuple[str, str]]]:
    """Those of the requests that can be traced, and the others' ids, each with the reason.

    The answer is a request's old one, or the model's own where it has none. A fact can be traced when it has a subject,
    the prompt goes on after it, and the first token of the answer is the model's most probable one, with a probability
    of at least `KNOWN`. Raises as `question` does.

    Arguments:
        at_most: how many are wanted, the first ones; the requests behind them are not looked at.
    """
    known: list[TracedPrompt] = []
    skipped: list[tuple[str, str]] = []
    for request in requests:
        if at_most is not None and len(known) == at_most:
            break
        if request.subject is None:
            skipped.append((request.id, "it has no subject"))
            continue
        asked = question(model, request, request.target_old)
        predicted, probability = next_token(model, asked.ids)
        if asked.ends_with_subject:
            skipped.append((request.id, "the prompt ends with its subject"))
        elif predicted != asked.answer_id or probability < KNOWN:
            skipped.append((request.id, "the model does not know it"))
        else:
            known.append(asked)
    return known, skipped


@torch.no_grad()
def next_token(model: EditableModel, ids: Sequence[int]) -> tuple[int, float]:
    """The most probable token after a row of ids, with its probability."""
    batch = model.batch([ids])
    logits = model.logits_at(batch, torch.tensor([0], device=model.device), batch.last_columns)
    value, token = logits[0].float().softmax(-1).max(-1)
    return int(token), float(value)


@torch.no_grad()
def embedding_deviation(model: EditableModel, questions: Sequence[TracedPrompt]) -> float:
    """Standard deviation of all entries of the embeddings of the subjects' tokens."""
    ids = [token for asked in questions for token in asked.ids[slice(*asked.subject)]]
    embedded: Tensor = model.sites.module("embed")(torch.tensor([ids], device=model.device))
    return float(embedded.float().std())


def draw_noise(model: EditableModel, asked: TracedPrompt, deviation: float, *, samples: int, seed: int) -> Tensor:
    """(samples, subject tokens, width) of Gaussian noise. Drawn on the CPU: the same for every device."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(samples, asked.subject[1] - asked.subject[0], model.sites.d_model, generator=generator) * deviation
    )
