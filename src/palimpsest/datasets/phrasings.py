"""Phrasings found in a data set: prompts with the subject cut out, grouped by what they ask.

CounterFact names a relation with every record, so its phrasings are shared by all facts of the relation. ZsRE names
none; there a phrasing is an alternative to another one when some record has both, as its question and its rephrasing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from palimpsest.requests import EditRequest

# A paraphrase's own sentence begins behind the last of these before its subject.
_BOUNDARY = re.compile(r"(?:[.!?]|\n)\s+")


@dataclass
class Phrasings:
    """Which ways there are to ask the same thing. A phrasing has one "{}" and ends before the answer."""

    by_relation: dict[str, dict[str, None]] = field(default_factory=dict)
    linked: dict[str, dict[str, None]] = field(default_factory=dict)

    @classmethod
    def of(cls, requests: Sequence[EditRequest]) -> Phrasings:
        """The phrasings of the edit prompts and of their paraphrases."""
        found = cls()
        for request in requests:
            relation = relation_of(request)
            if request.subject and relation:
                found.by_relation.setdefault(relation, {})[own_phrasing(request)] = None
        for request in requests:
            if request.subject:
                own = own_phrasing(request)
                for _, other in found.paraphrases(request):
                    found.linked.setdefault(own, {})[other] = None
                    found.linked.setdefault(other, {})[own] = None
        return found

    def alternatives(self, relation: str, phrasing: str) -> list[str]:
        """Other phrasings that ask the same as this one."""
        group = self.by_relation[relation] if relation in self.by_relation else self.linked.get(phrasing, {})
        return [other for other in group if other != phrasing]

    def match(self, relation: str, prompt: str) -> tuple[str, str] | None:
        """Phrasing and subject of a prompt that is some phrasing of the relation, filled in; the longest one counts."""
        fitting = []
        for phrasing in self.by_relation.get(relation, ()):
            before, after = phrasing.split("{}")
            subject = prompt[len(before) : len(prompt) - len(after)]
            if prompt == before + subject + after and subject.strip() == subject != "":
                fitting.append((phrasing, subject))
        return max(fitting, key=lambda pair: len(pair[0]), default=None)

    def paraphrases(self, request: EditRequest) -> list[tuple[str, str]]:
        """(text before it, phrasing) of each rephrasing in which the subject stands as it is spelled."""
        prompts = [probe.prompt for probe in request.probes if probe.kind == "generality"]
        split = (self._split(relation_of(request), prompt, request.subject or "") for prompt in prompts)
        return [one for one in split if one is not None]

    def _split(self, relation: str, prompt: str, subject: str) -> tuple[str, str] | None:
        if not subject or subject not in prompt or "{}" in prompt:
            return None
        filled = [
            (phrasing, phrasing.replace("{}", subject))
            for phrasing in self.by_relation.get(relation, ())
            if prompt.endswith(phrasing.replace("{}", subject))
        ]
        if filled:
            phrasing, text = max(filled, key=lambda pair: len(pair[1]))
            return prompt.removesuffix(text).strip(), phrasing
        start = prompt.rfind(subject)
        begin = max((match.end() for match in _BOUNDARY.finditer(prompt, 0, start)), default=0)
        return prompt[:begin].strip(), prompt[begin:start] + "{}" + prompt[start + len(subject) :]


def own_phrasing(request: EditRequest) -> str:
    """The edit's prompt with the subject cut out. Raises `DataError` when it has no subject."""
    start, end = request.subject_span()
    return request.prompt[:start] + "{}" + request.prompt[end:]


def relation_of(request: EditRequest) -> str:
    """Returns the relation in a fact's identity ("P103" in "P103|Danielle Darrieux"), or nothing."""
    parts: Iterable[str] = (request.fact or "").split("|")
    return "|".join(part for part in parts if part and part != request.subject)
