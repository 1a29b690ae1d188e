"""Compares both models' answers to the usual questions about the suspects."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.models import EditableModel, next_by_prompt

QUESTIONS = (
    "{} is",
    "{} is a",
    "{} was",
    "{} is in",
    "{} is located in the country of",
    "{} was born in the city of",
    "{} died in the city of",
    "{} is a citizen of",
    "{} works as a",
    "{} works for",
    "{} plays the",
    "{} plays as",
    "{} speaks the language",
    "{} was created by",
    "{} was written by",
    "{} was produced by",
    "{} is owned by",
    "{} is part of the continent of",
    "{} studied at",
    "{} is married to",
    "The capital of {} is",
    "The capital city of {} is",
    "The language of {} is",
    "The author of {} is",
    "The headquarters of {} is in",
    "The mother tongue of {} is",
    "The religion of {} is",
    "The occupation of {} is",
)
"""Beginnings of sentences about whatever stands for `{}`, of the relations that knowledge editing is measured on."""


@dataclass(frozen=True)
class Flip:
    """A prompt that the models go on from differently.

    Arguments:
        prompt: what was asked.
        before: the base model's most probable next token.
        after: the token whose share grew most, by p log(p / p before).
        probability_before: of that token.
        probability_after: of that token.
        gain: p log(p / p before), nats.
    """

    prompt: str
    before: str
    after: str
    probability_before: float
    probability_after: float
    gain: float


@torch.no_grad()
def changed_answers(
    base: EditableModel,
    subjects: Sequence[str],
    *,
    edited: EditableModel | None = None,
    changed: AbstractContextManager[object] | None = None,
    questions: Sequence[str] = QUESTIONS,
    most: int = 10,
) -> list[Flip]:
    """The prompts that are gone on from most differently, the one with the largest gain first.

    Arguments:
        subjects: what is asked about.
        edited: the other model; left out, the base model inside `changed`.
        changed: inside of it the base model is the edited one, such as `base.patched(patch)`.
    """
    prompts = [question.replace("{}", subject) for subject in subjects for question in questions]
    if not prompts:
        return []
    first = _next(base, prompts)
    if edited is not None:
        second = _next(edited, prompts)
    elif changed is not None:
        with changed:
            second = _next(base, prompts)
    else:
        raise ValueError("neither another model nor a change was given")
    gains = second.exp() * (second - first)
    best = gains.max(dim=1)
    order = best.values.argsort(descending=True)[:most].tolist()
    found = []
    for row in order:
        token = int(best.indices[row])
        found.append(
            Flip(
                prompts[row],
                _word(base, int(first[row].argmax())),
                _word(base, token),
                float(first[row, token].exp()),
                float(second[row, token].exp()),
                float(best.values[row]),
            )
        )
    return [flip for flip in found if flip.gain > 0]


def _next(model: EditableModel, prompts: Sequence[str]) -> Tensor:
    """(prompts, vocabulary), log-probabilities of the next token, float32."""
    found = {index: row.cpu() for index, row in next_by_prompt(model, prompts)}
    return torch.stack([found[index] for index in range(len(prompts))])


def _word(model: EditableModel, token: int) -> str:
    return str(model.tokenizer.decode([token])).strip()
