"""Every edit to read: the questions, what was wanted, and which run answered what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from palimpsest.report.definitions import label
from palimpsest.report.tables import ReportRun

if TYPE_CHECKING:
    from palimpsest.evaluation import ProbeResult

_ALL_RIGHT = 0.999


@dataclass
class ProbeAnswers:
    """One probe, and each run's answer to it."""

    kind: str
    prompt: str
    expected: str | None
    before: str | None
    answers: list[tuple[str, str, bool | None]] = field(default_factory=list)
    """(run, answer, whether it is right)."""
    has_text: bool = False
    """Whether any answer is a text that a model wrote."""


@dataclass
class EditView:
    """One edit with its questions, the edited prompt first."""

    prompt: str
    target_new: str
    target_old: str | None
    questions: dict[tuple[str, str], ProbeAnswers] = field(default_factory=dict)


def collect(runs: Sequence[ReportRun], scoring: str) -> list[EditView]:
    """All edits of the runs with everyone's answers; of a sequential run its last state."""
    views: dict[tuple[str, str, str], EditView] = {}
    for run in runs:
        final = [probe for probe in run.record.probes if probe.phase == "final"]
        last = max((probe.checkpoint or 0 for probe in final), default=0)
        for probe in final:
            if (probe.checkpoint or 0) != last:
                continue
            key = (run.record.specification.dataset, probe.edit_id, probe.target_new)
            view = views.setdefault(key, EditView(probe.prompt, probe.target_new, probe.target_old))
            if probe.kind == "reliability":
                view.prompt = probe.prompt
            question = view.questions.setdefault(
                (probe.kind, probe.prompt), ProbeAnswers(probe.kind, probe.prompt, probe.expected, probe.shown_before())
            )
            question.before = question.before or probe.shown_before()
            question.answers.append((run.label, _answer(probe), _is_right(probe, scoring)))
            question.has_text |= probe.after is not None and not probe.is_failed
    return list(views.values())


def render(views: Sequence[EditView], runs: Sequence[ReportRun], *, budget: int) -> tuple[str, int]:
    """The edits as HTML, and how many of them fitted into `budget` characters."""
    parts: list[str] = []
    used = 0
    for view in views:
        text = _edit(view, len(runs))
        if parts and used + len(text) > budget:
            break
        parts.append(text)
        used += len(text)
    return "\n".join(parts), len(parts)


def _edit(view: EditView, num_runs: int) -> str:
    questions = sorted(
        view.questions.values(), key=lambda question: (question.kind != "reliability", _order(question.kind))
    )
    first, rest = questions[:1], questions[1:]
    old = f' <span class="was">was <s>{escape(view.target_old)}</s></span>' if view.target_old else ""
    head = f'<h3>{escape(view.prompt)} <b class="new">{escape(view.target_new)}</b>{old}</h3>'
    body = "".join(_question(question, num_runs) for question in first)
    if rest:
        more = "".join(_question(question, num_runs) for question in rest)
        plural = "question" if len(rest) == 1 else "questions"
        body += f"<details><summary>{len(rest)} more {plural}</summary>{more}</details>"
    return f'<article class="edit">{head}{body}</article>'


def _question(question: ProbeAnswers, num_runs: int) -> str:
    is_locality = question.kind.startswith("locality")
    wanted = "as before" if is_locality else f"<b>{escape(question.expected or '–')}</b>"
    groups: dict[tuple[str, bool | None], list[str]] = {}
    for run, answer, is_right in question.answers:
        groups.setdefault((answer, is_right), []).append(run)
    ordered = sorted(groups.items(), key=lambda item: (item[0][1] is not True, -len(item[1])))
    answers = "".join(_group(answer, is_right, names, num_runs) for (answer, is_right), names in ordered)
    before = escape(question.before) if question.before else "–"
    chip = f'<span class="kind">{escape(label(question.kind))}</span>'
    # The edited prompt stands in the heading already.
    is_edited = question.kind == "reliability"
    ask = "" if is_edited else f'<p class="ask">{chip} {escape(question.prompt)}</p>'
    return (
        f'<div class="probe" data-kind="{escape(question.kind)}">'
        f"{ask}"
        f'<p class="facts">{chip if is_edited else ""} wanted {wanted} · before <q>{before}</q></p>'
        f"<ul>{answers}</ul></div>"
    )


def _group(answer: str, is_right: bool | None, names: list[str], num_runs: int) -> str:
    if len(names) == num_runs and num_runs > 3:
        chips = f'<span class="chip all">all {num_runs}</span>'
    else:
        chips = "".join(f'<span class="chip">{escape(name)}</span>' for name in names)
    runs = escape("\n".join(names))
    return (
        f'<li data-verdict="{_state(is_right)}" data-runs="{runs}">{sign(is_right)}'
        f'<span class="answer">{escape(answer) or "<i>nothing</i>"}</span><span class="chips">{chips}</span></li>'
    )


def sign(is_right: bool | None) -> str:
    """A tick, a cross, or a question mark where nothing was scored; said in words to who cannot see it."""
    state = _state(is_right)
    mark = {"yes": "✓", "no": "✗", "none": "?"}[state]
    spoken = {"yes": "right", "no": "wrong", "none": "not scored"}[state]
    return f'<span class="sign {state}" role="img" title="{spoken}" aria-label="{spoken}">{mark}</span>'


def _state(is_right: bool | None) -> str:
    return "none" if is_right is None else "yes" if is_right else "no"


def _answer(probe: ProbeResult) -> str:
    if probe.is_failed:
        return "(the edit failed)"
    return said if (said := probe.shown_after()) is not None else "(no text was generated)"


def _is_right(probe: ProbeResult, scoring: str) -> bool | None:
    value = probe.values.get(scoring)
    return None if value is None else value >= _ALL_RIGHT


def _order(kind: str) -> tuple[int, str]:
    heads = ("reliability", "generality", "portability", "locality")
    head = kind.split(".")[0]
    return (heads.index(head) if head in heads else len(heads), kind)
