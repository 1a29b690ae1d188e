"""Where proposals come from: a table of triples, or a chat model, local or behind an endpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from palimpsest.datasets.base import Record
from palimpsest.datasets.fields import text_field
from palimpsest.datasets.portability.asking import Message, NoProposal, complaint, messages_for, read_answer
from palimpsest.datasets.portability.cached_answers import CachedAnswers
from palimpsest.datasets.portability.items import Proposal
from palimpsest.errors import DataError, PalimpsestError
from palimpsest.models import render_chat
from palimpsest.provenance import digest
from palimpsest.requests import EditRequest, normalise

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "subject": ("subjectLabel", "itemLabel", "subject", "item"),
    "relation": ("relationLabel", "propertyLabel", "relation", "property"),
    "object": ("objectLabel", "valueLabel", "object", "value"),
}
"""The columns of a table of triples, by the names they go by; labels come before identifiers."""

# "The capital of France is", "What is the capital of France?", "The name of the mother of Ann is".
_NOUNS = (
    re.compile(r"The (?:names? of the )?(?P<noun>.+) (?:is|are|was)"),
    re.compile(r"(?:What|Who) (?:is|was|are) the (?:names? of the )?(?P<noun>.+?)\??"),
)


class Generator(Protocol):
    """Proposes consequences of an edit."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines what is proposed, JSON-ready, without secrets."""

    def propose(self, edit: EditRequest, num_items: int) -> list[Proposal]:
        """At most `num_items` proposals. Raises `NoProposal`, with the reason, when there are no proposals."""


class Completer(Protocol):
    """A chat model: messages in, text out."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines its answers, JSON-ready, without secrets."""

    def complete(self, messages: Sequence[Message]) -> str:
        """Its answer. Raises `NoProposal` when it refuses, `DataError` when it cannot be asked at all."""


class ChatGenerator:
    """Asks a chat model for proposals as JSON; once more, with what was wrong, when the answer cannot be read.

    Arguments:
        completer: the chat model.
        cache: a folder of answers: what is in it is not asked again. `None` keeps nothing.
    """

    def __init__(self, completer: Completer, cache: Path | None = None) -> None:
        self.completer = completer
        self.cache = cache
        self._answers = CachedAnswers(cache, completer.identity)
        self.asked = 0
        self.taken_from_cache = 0

    @property
    def identity(self) -> dict[str, Any]:
        return self.completer.identity

    def propose(self, edit: EditRequest, num_items: int) -> list[Proposal]:
        """At most `num_items` proposals. Raises `NoProposal` for a refusal and for two answers that cannot be read."""
        messages = messages_for(edit, num_items)
        answer = self._answer(messages)
        try:
            return read_answer(answer, num_items)
        except NoProposal as problem:
            again = [*messages, Message("assistant", answer), Message("user", complaint(str(problem)))]
        return read_answer(self._answer(again), num_items)

    def is_cached(self, edit: EditRequest, num_items: int) -> bool:
        """Whether the first question about an edit has been answered before."""
        return self._answers.read(messages_for(edit, num_items)) is not None

    def _answer(self, messages: Sequence[Message]) -> str:
        known = self._answers.read(messages)
        if known is not None:
            self.taken_from_cache += 1
            return known
        self.asked += 1
        answer = self.completer.complete(messages)
        self._answers.write(messages, answer)
        return answer


class LocalModel:
    """A chat model on this machine; greedy. One without a chat template reads the messages as plain paragraphs.

    Arguments:
        model: the model.
        max_new_tokens: the longest answer.
    """

    def __init__(self, model: EditableModel, *, max_new_tokens: int = 800) -> None:
        self.model = model
        self.max_new_tokens = max_new_tokens

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "local": self.model.name,
            "fingerprint": self.model.fingerprint(),
            "max_new_tokens": self.max_new_tokens,
        }

    def complete(self, messages: Sequence[Message]) -> str:
        """The answer. Raises `NoProposal` when the messages do not fit into the model's context."""
        from palimpsest.models import written_as_configured

        tokenizer: Any = self.model.tokenizer
        text = self._text(messages)
        rows = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
        ids, mask = (rows[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        room = self.model.room_after(ids.shape[1])
        if room < 1:
            raise NoProposal("the question does not fit into the generator's context")
        return written_as_configured(
            self.model, ids, mask, do_sample=False, max_new_tokens=min(self.max_new_tokens, room)
        )

    def _text(self, messages: Sequence[Message]) -> str:
        tokenizer: Any = self.model.tokenizer
        if not tokenizer.chat_template:
            return "\n\n".join(message.content for message in messages) + "\n\n"
        given = [message.to_dict() for message in messages]
        return render_chat(tokenizer, given, add_generation_prompt=True)


class TableGenerator:
    """Takes proposals from triples (subject, relation, object), as Wikidata has them.

    The question says the edit's prompt as a noun: "The capital of the country of Ann is". Several objects of one
    subject and relation are all right. Where the table has the same relation of the old answer, the question says
    what followed from that, too.

    Arguments:
        records: the triples; columns as in `COLUMNS`, perhaps `recall` ("{}" is the subject) and `aliases`, parted by
            "|".
        name: what to call the table.
    """

    def __init__(self, records: Sequence[Record], name: str) -> None:
        self._rows: dict[str, dict[str, Proposal]] = {}
        for record in records:
            try:
                self._add(record.fields)
            except PalimpsestError as error:
                raise DataError(
                    error.problem, expected=error.expected, found=error.found, where=record.where, remedy=error.remedy
                ) from error
        rows = {subject: [proposal.answers for proposal in found.values()] for subject, found in self._rows.items()}
        self.identity: dict[str, Any] = {"table": name, "fingerprint": digest(rows)}

    def propose(self, edit: EditRequest, num_items: int) -> list[Proposal]:
        """The first `num_items` triples of the new answer. Raises `NoProposal` when the table has no triple of it."""
        found = list(self._rows.get(normalise(edit.target_new), {}).values())
        if not found:
            raise NoProposal("the table has no triple about the new answer")
        noun = next((match["noun"] for pattern in _NOUNS if (match := pattern.fullmatch(edit.prompt))), None)
        if noun is None:
            raise NoProposal("the prompt cannot be said as a noun, such as 'the capital of France'")
        before = self._rows.get(normalise(edit.target_old or ""), {})
        return [
            Proposal(
                one.relation,
                one.answer,
                one.recall,
                f"The {one.relation} of the {noun} is",
                one.aliases,
                _others(before.get(normalise(one.relation)), one),
            )
            for one in found[:num_items]
        ]

    def _add(self, fields: Mapping[str, Any]) -> None:
        subject, relation, answer = (text_field(fields, _column(fields, name)).strip() for name in COLUMNS)
        aliases = [one.strip() for one in str(fields.get("aliases") or "").split("|") if one.strip()]
        recall = str(fields.get("recall") or f"The {relation} of {{}} is").replace("{}", subject)
        known = self._rows.setdefault(normalise(subject), {})
        earlier = known.get(normalise(relation))
        if earlier is None:
            known[normalise(relation)] = Proposal(relation, answer, recall, "", tuple(aliases))
        else:
            names = dict.fromkeys([*earlier.aliases, answer, *aliases])
            known[normalise(relation)] = Proposal(
                earlier.relation, earlier.answer, earlier.recall, "", tuple(n for n in names if n != earlier.answer)
            )


def _others(before: Proposal | None, now: Proposal) -> tuple[str, ...]:
    """What held of the old answer, as far as it does not hold of the new one."""
    right = {normalise(name) for name in now.answers}
    return tuple(name for name in (before.answers if before else ()) if normalise(name) not in right)


def _column(fields: Mapping[str, Any], name: str) -> str:
    return next((column for column in COLUMNS[name] if column in fields), name)
