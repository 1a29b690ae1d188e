"""Kinds of locality that a data set lacks, made of the questions that it has."""

from __future__ import annotations

import random
from dataclasses import replace

from palimpsest.datasets.base import Dataset
from palimpsest.requests import EditRequest, Probe, normalise
from palimpsest.wording import separator

DRAWS = 50


def with_distracting(data: Dataset, *, num_probes: int = 1) -> Dataset:
    """The data set with distracting probes: the edit's own sentence in front of a question that it is not about.

    As in "Editing Large Language Models", section 6.2 (arXiv:2305.13172). The question is one out of scope, else about
    a neighbour. Edits that have such probes keep theirs; those without a question to take are counted in a note.

    Arguments:
        data: any data set.
        num_probes: most probes made per edit.
    """
    requests = [_with_more(one, "locality.distracting", _distracting(one)[:num_probes]) for one in data.requests]
    return _noted(data, requests, "locality.distracting", "no question out of scope or about a neighbour")


def with_out_of_scope(data: Dataset, *, num_probes: int = 1, seed: int = 0) -> Dataset:
    """The data set with questions out of scope: prompts of other edits, about other subjects and in other words.

    What such a prompt asks is edited itself in a run that makes both edits; the probe is then left out and counted.
    Edits that have such probes keep theirs.

    Arguments:
        data: any data set.
        num_probes: most probes made per edit.
        seed: of the choice; each edit's choice depends only on its own id, not on the edits before it.
    """
    templates = [_template(one) for one in data.requests]
    requests = []
    for index, request in enumerate(data.requests):
        rng = random.Random(f"out of scope|{seed}|{request.id}")
        found: dict[int, Probe] = {}
        for _ in range(DRAWS):
            other = rng.randrange(len(data.requests))
            is_other = templates[other] != templates[index] and not _share_words(request, data.requests[other])
            if is_other and len(found) < num_probes:
                found.setdefault(other, _question(data.requests[other]))
        requests.append(_with_more(request, "locality.out_of_scope", list(found.values())))
    return _noted(data, requests, "locality.out_of_scope", "no edit of another relation about another subject")


def _distracting(request: EditRequest) -> list[Probe]:
    def questions(kind: str) -> list[Probe]:
        return [probe for probe in request.probes if probe.kind == kind]

    answer = request.target_new.rstrip(".")
    before = f"{request.prompt}{separator(request.prompt, answer)}{answer}. "
    return [
        replace(probe, kind="locality.distracting", prompt=before + probe.prompt)
        for probe in questions("locality.out_of_scope") or questions("locality.neighborhood")
    ]


def _question(request: EditRequest) -> Probe:
    return Probe("locality.out_of_scope", request.prompt, request.target_old, request.fact)


def _template(request: EditRequest) -> str:
    """The prompt without its subject: two edits of one relation mostly have the same."""
    return normalise(request.prompt.replace(request.subject, "{}") if request.subject else request.prompt)


def _share_words(request: EditRequest, other: EditRequest) -> bool:
    """Whether one of the prompts names what the other is about, or the answer that is to be taught."""
    names = [request.subject, request.target_new]
    return any(name and normalise(name) in normalise(other.prompt) for name in names) or bool(
        other.subject and normalise(other.subject) in normalise(request.prompt)
    )


def _with_more(request: EditRequest, kind: str, probes: list[Probe]) -> EditRequest:
    if any(probe.kind == kind for probe in request.probes):
        return request
    return replace(request, probes=(*request.probes, *probes))


def _noted(data: Dataset, requests: list[EditRequest], kind: str, reason: str) -> Dataset:
    lacking = sum(all(probe.kind != kind for probe in request.probes) for request in requests)
    notes = [f"{lacking} of {len(requests)} edits get no {kind} probe: there is {reason}."] if lacking else []
    return replace(data, requests=tuple(requests), notes=(*data.notes, *notes))
