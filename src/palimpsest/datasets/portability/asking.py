"""The request to a chat model, and the parser of its answer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from palimpsest.datasets.portability.items import Proposal
from palimpsest.files import json_decoder, require_encodable, texts_of
from palimpsest.requests import EditRequest

LONGEST_ANSWER = 100_000
"""Characters of an answer that are read."""


class NoProposal(Exception):
    """There is no proposal for one edit; the text says why. The others go on."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat: `role` is "system", "user" or "assistant"."""

    role: str
    content: str

    def to_dict(self) -> dict[str, str]:
        """As chat templates and endpoints take it."""
        return asdict(self)


_SYSTEM = (
    "You write questions that test whether a change of one fact reaches the facts that follow from it. "
    "You answer with one JSON object and nothing else."
)
_TASK = """Suppose that this is true: {statement}
Subject: {subject}
New answer: {new}

Give up to {num_items} well-known, undisputed facts about "{new}" with exactly one short answer each. For each give:
- "relation": the relation, in a few words.
- "answer": the answer, as short as it is usually said.
- "aliases": a list of other usual names of the answer; it may be empty.
- "recall": a sentence about "{new}" that breaks off right before the answer. It names "{new}".
- "question": a sentence about "{subject}" that breaks off right before the same answer, true only because of \
what is supposed above. It names "{subject}" and does not name "{new}".
Neither "recall" nor "question" may contain the answer.

For "The capital of France is Lyon.", with the subject "France" and the new answer "Lyon", an answer is:
{example}"""
_EXAMPLE = {
    "items": [
        {
            "relation": "river",
            "answer": "Rhône",
            "aliases": ["the Rhône", "Rhone"],
            "recall": "The largest river that flows through Lyon is the",
            "question": "The largest river that flows through the capital of France is the",
        }
    ]
}


def messages_for(edit: EditRequest, num_items: int) -> list[Message]:
    """The chat that asks for the consequences of an edit."""
    task = _TASK.format(
        statement=f"{edit.prompt} {edit.target_new.rstrip('.')}.",
        subject=edit.subject or edit.prompt,
        new=edit.target_new,
        num_items=num_items,
        example=json.dumps(_EXAMPLE, ensure_ascii=False),
    )
    return [Message("system", _SYSTEM), Message("user", task)]


def complaint(problem: str) -> str:
    """Returns the reply to an answer that cannot be parsed."""
    return f"That cannot be read: {problem}. Answer with the JSON object alone, as in the example."


def read_answer(text: str, num_items: int) -> list[Proposal]:
    """The proposals in an answer: in its first JSON object, whatever stands around it.

    Raises `NoProposal` that says what is missing.
    """
    found = _first_object(text[:LONGEST_ANSWER])
    items = found.get("items") if isinstance(found, dict) else None
    if not isinstance(items, list):
        raise NoProposal("the answer is no JSON object with a list `items`" if text.strip() else "the answer is empty")
    if not items:
        raise NoProposal("the generator knows no fact about the new answer")
    return [_proposal(item) for item in items[:num_items]]


def _proposal(item: Any) -> Proposal:
    if not isinstance(item, dict):
        raise NoProposal("an item is not an object")
    texts = {}
    for name in ("relation", "answer", "recall", "question"):
        value = item.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise NoProposal(f"an item has no text `{name}`")
        texts[name] = str(value).strip()
    aliases = item.get("aliases") or []
    if not isinstance(aliases, list) or not all(isinstance(one, str) for one in aliases):
        raise NoProposal("the `aliases` of an item are not a list of texts")
    known = tuple(one.strip() for one in aliases if one.strip())
    return Proposal(texts["relation"], texts["answer"], texts["recall"], texts["question"], known)


def _first_object(text: str) -> Any:
    decoder = json_decoder()
    start = text.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(text, start)
            for one in texts_of(found):
                require_encodable(one)
            return found
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
    return None
