"""What a fact is tested by before it is handed over: where it must hold, and what must stay as it was.

Nobody has to write these tests. A fact must hold at its prompt, behind texts that the model wrote itself, and in its
rephrasings where the edit has some. Its own prompt about other subjects must be answered as before, and so must prompts
about other things. Of the other subjects those are taken that the model reads as most like the fact's own.
"""

from __future__ import annotations

import tomllib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import torch

from palimpsest.locating import NO_CONTEXTS, ContextOptions, context_templates, subject_rows, subject_vectors
from palimpsest.models import EditableModel, Point
from palimpsest.requests import EditRequest, normalise

_SCRIPTS = {"CYRILLIC": "cyrillic", "CJK": "han", "HIRAGANA": "kana", "KATAKANA": "kana", "ARABIC": "arabic"}
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
            tuple(dict.fromkeys((*_given(request, "generality"), *(_behind(request, one) for one in templates)))),
            tuple(dict.fromkeys((*_given(request, "locality"), *substituted))),
        )
        for request, substituted in zip(requests, _substituted(model, requests, num_neighbours), strict=True)
    ]


def unrelated_prompts(requests: Sequence[EditRequest]) -> list[str]:
    """Prompts about other things, in the scripts of the edits: not those edited, nor others about their subjects."""
    edited = {normalise(request.prompt) for request in requests}
    scripts = dict.fromkeys(("latin", *(script_of(request.prompt) for request in requests)))
    found = [prompt for script in scripts for prompt in _bundled()[script]["unrelated"]]
    subjects = [normalise(request.subject) for request in requests if request.subject]
    return [
        prompt
        for prompt in found
        if normalise(prompt) not in edited and not any(subject in normalise(prompt) for subject in subjects)
    ]


def script_of(text: str) -> str:
    """Which of the bundled lists reads naturally beside a text: Latin unless it has letters of another script."""
    names = (unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha())
    found = {_SCRIPTS[name] for name in names if name in _SCRIPTS}
    return next((script for script in ("kana", "han", "cyrillic", "arabic") if script in found), "latin")


def _given(request: EditRequest, kind: str) -> list[str]:
    return [probe.prompt for probe in request.probes if probe.kind.split(".")[0] == kind]


def _behind(request: EditRequest, template: str) -> str:
    return template.replace("{}", request.prompt)


def _substituted(model: EditableModel, requests: Sequence[EditRequest], count: int) -> list[list[str]]:
    """For each fact its prompt about the `count` other subjects that the model reads as most like its own."""
    pool = dict.fromkeys(request.subject for request in requests if request.subject)
    found: list[list[str]] = []
    for request in requests:
        if request.subject is None or not count:
            found.append([])
            continue
        known = {normalise(other.prompt) for other in requests}
        names = [*pool, *_bundled()[script_of(request.subject)]["names"]]
        others = [_about(request, name) for name in dict.fromkeys(names) if not _overlap(name, request.subject)]
        others = [other for other in others if normalise(other.prompt) not in known]
        found.append([other.prompt for other in _nearest(model, request, others, count)])
    return found


def _about(request: EditRequest, name: str) -> EditRequest:
    start, end = request.subject_span()
    return replace(request, prompt=request.prompt[:start] + name + request.prompt[end:], subject=name, probes=(), id="")


def _overlap(name: str, subject: str) -> bool:
    one, other = normalise(name), normalise(subject)
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


@cache
def _bundled() -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("names.toml").read_text(encoding="utf-8"))
