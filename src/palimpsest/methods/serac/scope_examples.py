"""Prompts in and out of the scope of edits, drawn for SERAC's training."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from palimpsest.methods.serac.scope_options import ScopeTraining
from palimpsest.models import NgramEncoder, inner_products, most_similar
from palimpsest.requests import EditRequest, normalise
from palimpsest.training import EditExample

_ROWS = 1024


@dataclass(frozen=True)
class ScopeExample(EditExample):
    """An edit with other edits' prompts of similar wording, each with its similarity."""

    similar: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Positive:
    """A prompt in the scope of an edit.

    Arguments:
        edit: the edit's prompt.
        new: its new answer.
        prompt: what is asked.
        answer: the expected answer.
    """

    edit: str
    new: str
    prompt: str
    answer: str


def positives(example: EditExample, options: ScopeTraining) -> list[Positive]:
    """All prompts in the scope of an edit: its own, rephrasings, and those whose answers follow from it."""
    request = example.request
    own = [(prompt, request.target_new) for prompt in (request.prompt, *example.rephrasings)]
    implied = [(one.prompt, str(one.expected)) for one in request.probes if one.kind.startswith("portability")]
    pairs = own + (implied if options.has_implications else [])
    return [Positive(request.prompt, request.target_new, prompt, answer) for prompt, answer in pairs]


def drawn_statement(example: EditExample, draw: random.Random, options: ScopeTraining) -> str:
    """The prompt at which an edit is made: its own, or, in a share of the draws, one of its rephrasings."""
    return draw.choice(example.rephrasings) if draw.random() < options.reworded_share else example.request.prompt


def drawn_positives(
    example: EditExample, others: Sequence[EditExample], draw: random.Random, options: ScopeTraining
) -> list[Positive]:
    """Some prompts in the scope of an edit, a share of them with the new answer of one of the other edits."""
    found = positives(example, options)
    drawn = draw.sample(found, min(options.positives_per_edit, len(found)))
    for place, one in enumerate(drawn):
        if one.answer == one.new and draw.random() < options.swapped_share:
            other = draw.choice(others).request.target_new
            drawn[place] = replace(one, new=other, answer=other)
    return drawn


def negatives(example: EditExample, options: ScopeTraining, draw: random.Random) -> list[str]:
    """Prompts drawn out of the scope of an edit: its locality probes, and other edits' prompts of similar wording."""
    similar = example.similar if isinstance(example, ScopeExample) else ()
    drawn = []
    for _ in range(options.negatives_per_edit):
        if similar and draw.random() < options.hard_share:
            weights = [math.exp(one / options.temperature) for _, one in similar]
            drawn += [prompt for prompt, _ in draw.choices(similar, weights)]
        else:
            drawn.append(draw.choice(example.unrelated)[0])
    return drawn


def with_similar(examples: Sequence[EditExample], options: ScopeTraining) -> list[EditExample]:
    """The examples with the prompts of other edits, about other facts, that are most similar to their own."""
    prompts = [one.request.prompt for one in examples]
    vectors = NgramEncoder().encode(prompts)
    count = min(len(examples), options.skipped + options.nearest)
    found: list[EditExample] = []
    for start in range(0, len(examples), _ROWS):
        similarities = inner_products(vectors[start : start + _ROWS], vectors)
        for example, values in zip(examples[start : start + _ROWS], similarities, strict=True):
            near = [
                (prompts[other], float(values[other]))
                for other in most_similar(values, prompts, count)
                if not _is_one_fact(example.request, examples[other].request)
            ]
            kept = {field.name: getattr(example, field.name) for field in fields(example)}
            found.append(ScopeExample(**{**kept, "similar": tuple(near[options.skipped :])}))
    return found


def _is_one_fact(first: EditRequest, second: EditRequest) -> bool:
    """Whether two edits may be about one fact; where facts have no name, those about one subject may be."""
    if first.fact is not None and second.fact is not None:
        return first.fact == second.fact
    if first.subject is not None and second.subject is not None:
        return normalise(first.subject) == normalise(second.subject)
    return normalise(first.prompt) == normalise(second.prompt)
