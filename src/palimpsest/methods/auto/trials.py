"""The tests of a fact before its patch is returned: where it must hold, and what must not change.

Nobody has to write these tests. A fact must hold at its prompt, behind texts that the model wrote itself, and in its
rephrasings where the edit has some. Its own prompt about other subjects must be answered as before, and so must prompts
about other things. Of the other subjects those are taken that the model reads as most like the fact's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from palimpsest.answers import same_beginning
from palimpsest.locating import (
    NO_CONTEXTS,
    ContextOptions,
    about,
    context_templates,
    in_context,
    subject_rows,
    subject_vectors,
    subjects_beside,
)
from palimpsest.methods.checking import NEUTRAL
from palimpsest.models import EditableModel, Point
from palimpsest.requests import EditRequest, normalise

# Other beginnings than those of the contexts that an edit is made with: a test should not repeat them.
_TESTED_BEHIND = ContextOptions(starts=["In", "She", "When", "This", "He", "It"], lengths=[12])


@dataclass(frozen=True)
class Trial:
    """The tests of one fact.

    Arguments:
        request: the fact.
        elsewhere: prompts beside its own that must get the new answer: rephrasings, the prompt behind other texts.
        neighbours: prompts whose answers must stay: its own about other subjects, those of its locality probes.
    """

    request: EditRequest
    elsewhere: tuple[str, ...]
    neighbours: tuple[str, ...]


def make_trials(
    model: EditableModel, requests: Sequence[EditRequest], *, num_contexts: int, num_neighbours: int, seed: int
) -> list[Trial]:
    """The tests of every fact, the same for the same model, facts and seed.

    Arguments:
        model: without the edits.
        requests: the facts.
        num_contexts: texts that each prompt is put behind.
        num_neighbours: other subjects that each prompt is asked about.
        seed: of the texts.
    """
    # An encoder-decoder writes answers, no texts that a prompt could stand behind.
    options = NO_CONTEXTS if model.is_encoder_decoder or not num_contexts else _TESTED_BEHIND
    templates = context_templates(model, options, seed=seed + 1)[1 : num_contexts + 1]
    return [
        Trial(
            request,
            tuple(dict.fromkeys((*_given(request, "generality"), *_behind(model, request, templates)))),
            tuple(dict.fromkeys((*_given(request, "locality"), *substituted))),
        )
        for request, substituted in zip(requests, _substituted(model, requests, num_neighbours), strict=True)
    ]


def ordinary_texts(model: EditableModel, seed: int) -> list[tuple[str, str]]:
    """Beginnings of texts with how they go on: ordinary sentences, and what the model itself wrote."""
    texts = list(NEUTRAL)
    if not model.is_encoder_decoder:
        for template in context_templates(model, _TESTED_BEHIND, seed=seed + 1)[1:]:
            start, _, rest = template.removesuffix(". {}").partition(" ")
            texts += [(start, rest)] if rest.strip() else []
    return texts


def asking_for_facts(answers: Mapping[str, str], trials: Sequence[Trial], replies: Mapping[str, str]) -> list[str]:
    """The prompts that ask for one of the facts in other words: they name its subject, and are answered as it is.

    Arguments:
        answers: by the prompts, how the model's answers begin before any edit.
        replies: by the facts' own prompts, the model's replies before any edit.
    """
    subjects = [(normalise(one.request.subject), replies[one.request.prompt]) for one in trials if one.request.subject]
    found = []
    for prompt, answer in answers.items():
        asked = normalise(prompt)
        told = (reply for subject, reply in subjects if subject in asked)
        if any(same_beginning(answer, reply[: len(answer)], prompt=prompt) for reply in told):
            found.append(prompt)
    return found


def _given(request: EditRequest, kind: str) -> list[str]:
    return [probe.prompt for probe in request.probes if probe.kind.split(".")[0] == kind]


def _behind(model: EditableModel, request: EditRequest, templates: Sequence[str]) -> list[str]:
    """The prompt behind each text; not where both are too long together, for nobody has asked for these tests."""
    placed = (in_context(request, template).prompt for template in templates)
    return [prompt for prompt in placed if model.fits(prompt, request.target_new)]


def _substituted(model: EditableModel, requests: Sequence[EditRequest], count: int) -> list[list[str]]:
    """For each fact its prompt about the `count` other subjects that the model reads as most like its own.

    None of them is edited: what is said about an edited subject may change with it, whatever is asked.
    """
    known = {normalise(request.prompt) for request in requests}
    edited = {normalise(request.subject) for request in requests if request.subject}
    # Many facts have the same few names beside them.
    is_free = cache(lambda name: not any(_overlap(normalise(name), subject) for subject in edited))
    found: list[list[str]] = []
    for request in requests:
        if request.subject is None or not count:
            found.append([])
            continue
        others = [about(request, name) for name in subjects_beside(request.subject) if is_free(name)]
        others = [
            other
            for other in others
            if normalise(other.prompt) not in known and model.fits(other.prompt, request.target_new)
        ]
        found.append([other.prompt for other in _nearest(model, request, others, count)])
    return found


def _overlap(one: str, other: str) -> bool:
    return one in other or other in one


def _nearest(
    model: EditableModel, request: EditRequest, others: Sequence[EditRequest], count: int
) -> Sequence[EditRequest]:
    if model.is_encoder_decoder:
        return others[:count]
    point = Point("resid", model.num_layers // 3)
    read = subject_vectors(model, subject_rows(model, [request, *others]), [point])[point][:, 0]
    similar = torch.nn.functional.cosine_similarity(read[1:], read[:1])
    # Rounded, so that the last bits of a sum choose nothing.
    order = sorted(range(len(others)), key=lambda index: (-round(float(similar[index]), 3), others[index].prompt))
    return [others[index] for index in order[:count]]
