"""Which locality probes ask about facts that were themselves edited."""

from __future__ import annotations

import re
from collections.abc import Iterable

from palimpsest.requests import EditRequest, Probe, normalise

_ABOUT_OTHERS = ("locality.neighborhood", "locality.namesake")
_WORDS = re.compile(r"\w+")


class EditedFacts:
    """The facts that a set of edits changes, indexed so that thousands of probes are checked in no time."""

    def __init__(self, requests: Iterable[EditRequest]) -> None:
        self._by_fact: dict[str, set[str]] = {}
        self._prompts: set[str] = set()
        self._subjects: dict[str, set[tuple[str, ...]]] = {}
        for request in requests:
            if request.fact is not None:
                self._by_fact.setdefault(request.fact, set()).add(request.id)
            rephrasings = (probe.prompt for probe in request.probes if probe.kind == "generality")
            self._prompts.update(normalise(prompt) for prompt in (request.prompt, *rephrasings))
            subject = _words(request.subject or "")
            if subject:
                self._subjects.setdefault(subject[0], set()).add(subject)

    def reason_to_leave_out(self, request: EditRequest, probe: Probe) -> str | None:
        """Why a probe of a request says nothing about locality in this run; `None` when it does.

        It does not when its fact is one that another request edits, when its prompt is an edited prompt or
        rephrasing, or when, without naming its fact, it is a neighbour or namesake and mentions another
        edited subject.
        """
        if not probe.is_locality:
            return None
        if probe.fact is not None and self._by_fact.get(probe.fact, set()) - {request.id}:
            return "left out: its fact is edited in the same run"
        if normalise(probe.prompt) in self._prompts:
            return "left out: its prompt is edited in the same run"
        if probe.fact is None and probe.kind in _ABOUT_OTHERS and self._mentions_other(request, probe):
            return "left out: it mentions a subject that is edited in the same run"
        return None

    def _mentions_other(self, request: EditRequest, probe: Probe) -> bool:
        own, words = _words(request.subject or ""), _words(probe.prompt)
        return any(
            words[start : start + len(subject)] == subject
            for start, word in enumerate(words)
            for subject in self._subjects.get(word, ())
            if subject != own
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORDS.findall(normalise(text)))
