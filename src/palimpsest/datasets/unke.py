"""UnKEBench: a question whose new answer is a whole passage, and questions about what the passage says
(arXiv:2405.15349).

The question in other words tests generality. What the passage says of a detail follows from the new answer in one step,
so its questions are portability.one_hop, and generality stays a number about the whole passage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from palimpsest.datasets.base import Partial
from palimpsest.datasets.criteria import partial
from palimpsest.datasets.fields import as_text, optional_text, text_field
from palimpsest.errors import DataError
from palimpsest.requests import EditRequest, Probe

# Either name is no other layout's, so that a first record without `answer` is still known for what it is.
MARKS = (frozenset({"para_question"}), frozenset({"sub_question"}))
_QUESTIONS, _ANSWERS = "sub_question", "sub_answer"


def request(fields: Mapping[str, Any]) -> Partial:
    """One record: `question`, `answer` (the passage), `para_question`, and lists `sub_question` and `sub_answer`.

    Raises `DataError` naming the field; a question about the passage that cannot be used is left out with its reason.
    """
    passage = text_field(fields, "answer")
    edit = EditRequest(
        text_field(fields, "question"),
        passage,
        subject=optional_text(fields, "subject"),
        id=optional_text(fields, "id") or "",
    )
    paraphrase = Probe("generality", text_field(fields, "para_question"), passage)
    return partial(edit, [paraphrase, *_details(fields)])


def _details(fields: Mapping[str, Any]) -> Iterator[Probe | DataError]:
    """The questions about the passage; what is wrong with those that cannot be used."""
    questions, answers = _listed(fields, _QUESTIONS), _listed(fields, _ANSWERS)
    if len(questions) != len(answers):
        # Nobody knows which answer belongs to which question.
        yield DataError(
            f"The lists `{_QUESTIONS}` and `{_ANSWERS}` are not equally long.",
            expected="one answer for each question",
            found=f"{len(questions)} questions, {len(answers)} answers",
            where=f"field `{_ANSWERS}`",
        )
        return
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
        pair = {_QUESTIONS: question, _ANSWERS: answer}
        unusable = [name for name, value in pair.items() if not (as_text(value) or "").strip()]
        if unusable:
            yield DataError(
                f"An entry of `{unusable[0]}` is blank or not text.",
                expected=f"text in entry {number}",
                found=repr(pair[unusable[0]])[:80],
                where=f"field `{unusable[0]}`",
            )
        else:
            yield Probe("portability.one_hop", text_field(pair, _QUESTIONS), text_field(pair, _ANSWERS))


def _listed(fields: Mapping[str, Any], name: str) -> list[Any]:
    """A field that holds a list, or nothing. Raises `DataError` for anything else."""
    value = fields.get(name)
    if value is None or isinstance(value, list):
        return value or []
    raise DataError(
        f"The field `{name}` is not a list.",
        expected="a list of texts",
        found=repr(value)[:80],
        where=f"field `{name}`",
    )
