"""The top of the page: one edit, its question, and the model's answers before and after."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from palimpsest.report import reading, tables
from palimpsest.report.reading import EditView, ProbeAnswers
from palimpsest.report.tables import ReportRun

# What is shown of an edit, in this order: kinds by their beginning, and what they are for a reader.
_ROWS = (
    ("reliability", "asked"),
    ("generality", "asked differently"),
    ("portability", "what follows from it"),
    ("locality.neighborhood", "a neighbour, to stay"),
)
_OTHERWISE = ("locality", "something else, to stay")


def one_edit(runs: Sequence[ReportRun], scoring: str) -> str:
    """An edit of the run with the best score: the first that has a question of each kind. Nothing without answers."""
    for run in tables.ranked(runs, scoring):
        views = [view for view in reading.collect([run], scoring) if _rows(view)]
        if views:
            is_first = len(runs) > 1 and run.score(scoring) is not None
            return _shown(max(views, key=lambda view: len(_rows(view))), run, is_first=is_first)
    return ""


def _rows(view: EditView) -> list[tuple[str, ProbeAnswers]]:
    """The questions to show, each with what it is; none unless the edited prompt has an answer in words."""
    found = []
    for beginning, words in _ROWS:
        question = _first(view, beginning)
        if question is None and beginning.startswith("locality"):
            question, words = _first(view, _OTHERWISE[0]), _OTHERWISE[1]
        if question is not None:
            found.append((words, question))
    return found if found and found[0][1].kind == "reliability" else []


def _first(view: EditView, beginning: str) -> ProbeAnswers | None:
    for question in view.questions.values():
        if question.kind.startswith(beginning) and question.has_text:
            return question
    return None


def _shown(view: EditView, run: ReportRun, *, is_first: bool) -> str:
    lines = "".join(_line(words, question) for words, question in _rows(view))
    was = f" instead of <s>{escape(view.target_old)}</s>" if view.target_old else ""
    which = ", first in the table below" if is_first else ""
    return (
        f'<div class="lead"><ol class="told">{lines}</ol>'
        f'<p class="caption">The first edit with every kind of question: <b>{escape(view.target_new)}</b>{was}, '
        f"by {escape(run.label)}{which}.</p></div>"
    )


def _line(words: str, question: ProbeAnswers) -> str:
    [(_, answer, is_right)] = question.answers[:1]
    return (
        f'<li><p class="ask"><small>{words}</small> {escape(question.prompt)}</p>'
        f'<p class="before"><small>before</small> {escape(question.before or "–")}</p>'
        f'<p class="now"><small>now</small> {reading.sign(is_right)} {escape(answer) or "<i>nothing</i>"}</p></li>'
    )
