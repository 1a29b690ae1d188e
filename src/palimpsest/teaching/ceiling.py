"""The ceiling of an evaluation: how many of the true facts a model answers, before anything is edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from palimpsest.answers import gives, is_reply_to
from palimpsest.models import AnswerRoom, EditableModel, written_answers
from palimpsest.stopwatch import Progress
from palimpsest.teaching.bars import bar
from palimpsest.teaching.facts import FactQuestion

_QUESTIONS_AT_ONCE = 512


@dataclass(frozen=True)
class Known:
    """How much of `n` questions a model answers.

    Arguments:
        n: questions of one kind.
        generate: share of which the greedily generated text gives the true answer; see `palimpsest.answers`.
        teacher_forced: mean share of the true answer's tokens that are the most probable ones.
    """

    n: int
    generate: float
    teacher_forced: float


def ceiling(
    model: EditableModel, questions: Sequence[FactQuestion], *, progress: bool | Progress = False
) -> dict[str, Known]:
    """Measures a model's knowledge by kind of question, in the order of the kinds' first questions."""
    right: dict[str, list[bool]] = {}
    shares: dict[str, list[float]] = {}
    with bar(progress, "asking the model", len(questions)) as report:
        for start in range(0, len(questions), _QUESTIONS_AT_ONCE):
            some = questions[start : start + _QUESTIONS_AT_ONCE]
            prompts = [question.prompt for question in some]
            scores = model.score(prompts, [question.answer for question in some])
            room = AnswerRoom.of(model.tokenizer, (question.answer for question in some))
            for question, said, score in zip(some, written_answers(model, prompts, room), scores, strict=True):
                right.setdefault(question.kind, []).append(_is_right(model, question, said))
                shares.setdefault(question.kind, []).append(score.accuracy)
            report(start + len(some), "")
    return {kind: Known(len(found), fmean(found), fmean(shares[kind])) for kind, found in right.items()}


def _is_right(model: EditableModel, question: FactQuestion, said: str) -> bool:
    is_reply = is_reply_to(question.prompt, is_chat=model.chat is not None)
    return gives(said, [question.answer], prompt=question.prompt, is_reply=is_reply)
