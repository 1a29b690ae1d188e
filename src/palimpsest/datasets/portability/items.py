"""A generator's proposal for an edit, and the objections to it that need no model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from palimpsest.provenance import digest
from palimpsest.requests import EditRequest, Probe, normalise

LONGEST = 300
"""Characters: what is longer is not a question or an answer."""


@dataclass(frozen=True)
class Proposal:
    """A fact about the new answer, and the question about the subject that it makes answerable.

    For an edit (s, r, o -> o*) it is the triple (o*, r*, o'*) and a question about s whose answer is o'*.

    Arguments:
        relation: r*, in words.
        answer: o'*.
        recall: asks for o'* with o* and r*; what the model must answer rightly to know the triple.
        question: asks for o'* about s, over the edited fact, without naming o*.
        aliases: other names of the answer.
        old: what the question was answered before the edit: o' of (o, r*, o'), and its other names; empty where it is
            not known.
    """

    relation: str
    answer: str
    recall: str
    question: str
    aliases: tuple[str, ...] = ()
    old: tuple[str, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.answer, *self.aliases)

    def probe(self) -> Probe:
        """The question as a probe of its edit: by reasoning where it is known what followed from the old fact."""
        if not self.old:
            return Probe("portability.one_hop", self.question, self.answer, accepts=self.aliases)
        return Probe(
            "portability.reasoning",
            self.question,
            self.answer,
            accepts=self.aliases,
            expected_old=self.old[0],
            accepts_old=self.old[1:],
        )


@dataclass(frozen=True)
class Item:
    """A proposal and what became of it.

    Arguments:
        edit: id of the edit.
        proposal: what was proposed.
        reason: why it was dropped; `None` when it was kept for review.
    """

    edit: str
    proposal: Proposal
    reason: str | None = None

    @property
    def id(self) -> str:
        """A name made of the edit, the question and its answer."""
        return digest([self.edit, self.proposal.question, self.proposal.answer])[:12]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary that `from_dict` reads back."""
        return {"id": self.id, "edit": self.edit, **asdict(self.proposal), "reason": self.reason}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Item:
        """Reads what `to_dict` wrote. Raises `KeyError` or `ValueError` for anything else."""
        texts = {name: record[name] for name in ("relation", "answer", "recall", "question", "aliases")}
        proposal = TypeAdapter(Proposal).validate_python({**texts, "old": record.get("old", ())})
        return TypeAdapter(cls).validate_python(
            {"edit": record["edit"], "proposal": proposal, "reason": record["reason"]}
        )


def objection(edit: EditRequest, proposal: Proposal) -> str | None:
    """Why a proposal cannot test the edit, whatever the model knows; `None` when it may."""
    texts = {name: getattr(proposal, name) for name in ("relation", "answer", "recall", "question")}
    blank = [name for name, text in texts.items() if not text.strip()]
    long = [name for name, text in texts.items() if len(text) > LONGEST]
    same = [name for name in (edit.target_new, edit.subject) if name and normalise(name) == normalise(proposal.answer)]
    if blank or long:
        return f"its {(blank or long)[0]} is {'blank' if blank else 'too long'}"
    if same:
        return "its answer is the edit's own subject or new answer"
    if not names(proposal.recall, edit.target_new):
        return "the recall does not name the new answer"
    if edit.subject and not names(proposal.question, edit.subject):
        return "the question does not name the subject"
    if names(proposal.question, edit.target_new):
        return "the question names the new answer, so that it does not need the edit"
    for name in ("recall", "question"):
        if any(names(texts[name], answer) for answer in proposal.answers):
            return f"the {name} gives its answer away"
    return None


def names(text: str, name: str) -> bool:
    """Whether a text has a name in it as whole words; case does not count."""
    return re.search(rf"(?<!\w){re.escape(normalise(name))}(?!\w)", normalise(text)) is not None
