"""Verdicts on edits in words, for people who want to know whether their edits hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from palimpsest.answers import first_sentence, gives, gives_new, gives_old, new_names, old_names, shown, states
from palimpsest.models import AnswerRoom, own_repetitions
from palimpsest.wording import before_repetition, is_degenerate, is_unfinished, thought_of

if TYPE_CHECKING:
    from palimpsest.models import EditableModel
    from palimpsest.requests import EditRequest

EditVerdict = Literal["holds", "in other words", "babbles", "old answer", "other answer", "still thinking"]
VERDICT_WORDS: dict[str, str] = {
    "holds": "yes",
    "in other words": "in other words",
    "babbles": "no: repeats itself",
    "old answer": "no: old answer",
    "other answer": "no",
    "still thinking": "no: thought has no end",
}


@dataclass(frozen=True)
class VerifiedEdit:
    """The verdict on one edit.

    Arguments:
        before: what the model answered before it.
        after: what it answers now.
        verdict: `holds`: the new answer is given; `in other words`: it is stated, but not where the answer begins;
            `babbles`: the model repeats itself where it did not before; `old answer`: that is still given;
            `still thinking`: the thought did not end within its tokens, so there is no answer.
        repeats_anyway: whether the base model too repeats itself after what it answers now; `after` ends before that.
        thought: what the model thought before it answered; `None` where it answered at once.
        names_old: whether that thought names the old answer; `None` without one of the two.
    """

    before: str
    after: str
    verdict: EditVerdict
    repeats_anyway: bool = False
    thought: str | None = None
    names_old: bool | None = None

    @property
    def holds(self) -> bool:
        """Whether the new answer is given."""
        return self.verdict == "holds"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; of a thought only where there was one."""
        found = asdict(self)
        if self.thought is None:
            del found["thought"], found["names_old"]
        return found


def verified(
    model: EditableModel, requests: Sequence[EditRequest], before: Sequence[str], after: Sequence[str]
) -> list[VerifiedEdit]:
    """Judges each edit of a model by the texts written after its prompt before and after the edits.

    The base model, without any patch, is asked about texts that repeat themselves only.
    """
    replies = {request.prompt: text for request, text in zip(requests, after, strict=True)}
    anyway = own_repetitions(model, replies, AnswerRoom.for_edits(model.tokenizer, requests))
    return [
        _became(request, old, new, is_chat=model.chat is not None, repeats_anyway=request.prompt in anyway)
        for request, old, new in zip(requests, before, after, strict=True)
    ]


def _became(request: EditRequest, before: str, after: str, *, is_chat: bool, repeats_anyway: bool) -> VerifiedEdit:
    """Judges an edit by the texts written before and after it; see `verdict_on`."""
    names = [*new_names(request), *old_names(request)]
    verdict = verdict_on(request, before, after, is_chat=is_chat, repeats_anyway=repeats_anyway)
    said = before_repetition(after) if repeats_anyway else after
    seen = said.strip() if verdict == "babbles" else shown(said, names)
    thought, old, names_old = thought_of(after), old_names(request), None
    if thought is not None and old:
        names_old = states(thought, old, against=new_names(request), prompt=request.prompt)
    return VerifiedEdit(shown(before, names), seen, verdict, repeats_anyway, thought, names_old)


def verdict_on(
    request: EditRequest, before: str, after: str, *, is_chat: bool, repeats_anyway: bool = False
) -> EditVerdict:
    """The word for what became of an edit.

    Arguments:
        repeats_anyway: whether a repetition in `after` is the base model's own; see `models.own_repetitions`.
    """
    if is_unfinished(after):
        return "still thinking"
    if is_degenerate(after, new_names(request)) and not repeats_anyway and not is_degenerate(before):
        return "babbles"
    if gives_new(request, after, is_chat=is_chat):
        return "holds"
    if gives_old(request, after, is_chat=is_chat):
        return "old answer"
    sentence = first_sentence(after, [*new_names(request), *old_names(request)])
    is_stated = gives(sentence, new_names(request), against=old_names(request), prompt=request.prompt, is_reply=True)
    return "in other words" if is_stated else "other answer"
