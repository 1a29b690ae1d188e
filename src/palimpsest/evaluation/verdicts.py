"""What became of edits, in words: for people who want to know whether theirs hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from palimpsest.answers import first_sentence, gives, gives_new, gives_old, new_names, old_names, shown
from palimpsest.wording import is_degenerate

if TYPE_CHECKING:
    from palimpsest.requests import EditRequest

EditVerdict = Literal["holds", "in other words", "babbles", "old answer", "other answer"]
VERDICT_WORDS: dict[str, str] = {
    "holds": "yes",
    "in other words": "in other words",
    "babbles": "no: repeats itself",
    "old answer": "no: old answer",
    "other answer": "no",
}


@dataclass(frozen=True)
class VerifiedEdit:
    """What became of one edit.

    Arguments:
        before: what the model answered before it.
        after: what it answers now.
        verdict: `holds`: the new answer is given; `in other words`: it is stated, but not where the answer begins;
            `babbles`: the model repeats itself where it did not before; `old answer`: that is still given.
    """

    before: str
    after: str
    verdict: EditVerdict

    @property
    def holds(self) -> bool:
        """Whether the new answer is given."""
        return self.verdict == "holds"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def verified(request: EditRequest, before: str, after: str, *, is_chat: bool) -> VerifiedEdit:
    """What became of an edit, from the texts written before and after it."""
    names = [*new_names(request), *old_names(request)]
    verdict = verdict_on(request, before, after, is_chat=is_chat)
    return VerifiedEdit(shown(before, names), after.strip() if verdict == "babbles" else shown(after, names), verdict)


def verdict_on(request: EditRequest, before: str, after: str, *, is_chat: bool) -> EditVerdict:
    """The word for what became of an edit."""
    if is_degenerate(after, new_names(request)) and not is_degenerate(before):
        return "babbles"
    if gives_new(request, after, is_chat=is_chat):
        return "holds"
    if gives_old(request, after, is_chat=is_chat):
        return "old answer"
    sentence = first_sentence(after, [*new_names(request), *old_names(request)])
    is_stated = gives(sentence, new_names(request), against=old_names(request), prompt=request.prompt, is_reply=True)
    return "in other words" if is_stated else "other answer"
