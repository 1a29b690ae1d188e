"""The page's output as HTML. Every text of a visitor or a model is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from palimpsest.answers import shown
from palimpsest.evaluation import VERDICT_WORDS
from palimpsest.web.workbench import Asked, Check, Edited
from palimpsest.wording import is_degenerate, is_unfinished, thought_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = {"reliability": "the prompt itself", "generality": "rephrased", "locality.neighborhood": "must stay"}
_YES, _NO = "\u2713", "\u2717"


def answers(rows: Sequence[Asked], *, is_edited: bool) -> str:
    """Prompts with the answers of both models; one column where nothing is edited."""
    if not is_edited:
        return _table(("prompt", "answer"), ((_text(row.prompt), _reply(row.before)) for row in rows))
    return _table(
        ("prompt", "before", "after"),
        (
            (_text(row.prompt), _reply(row.before), _thought(row.after) + _changed(row.before, row.after))
            for row in rows
        ),
    )


def edited(entry: Edited) -> str:
    """How one edit went: what became of the prompt, its tests as ticks by kind, time and size."""
    verdict = entry.verdict
    holds = "holds" if verdict.holds else "fails"
    head = (
        f'<p class="verdict {holds}"><strong>{_YES if verdict.holds else _NO} {escape(_said(verdict.verdict))}</strong>'
        f" <span>{escape(entry.title)}</span></p>"
    )
    facts, patch = entry.diagnostics.facts, entry.patch
    cost = (
        f'<p class="cost">{escape(patch.manifest.method or patch.manifest.label)}:'
        f" {entry.diagnostics.seconds.get('total', 0):.1f} s, {patch.num_parameters:,} numbers in"
        f" {len(patch.touched())} tensors</p>"
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in entry.diagnostics.notes)
    return head + checks(entry.checks) + _own_tests(facts) + cost + (f"<ul>{notes}</ul>" if notes else "")


def checks(found: Iterable[Check]) -> str:
    """Tests with their ticks: what was written before and after."""
    return _table(
        ("", "test", "prompt", "before", "after"),
        (
            (
                _tick(check.passes),
                escape(_KINDS.get(check.probe.kind, check.probe.kind)),
                _text(check.probe.prompt),
                _text(_answer(check, check.before)),
                _changed(_answer(check, check.before), _answer(check, check.after)),
            )
            for check in found
        ),
    )


def verification(found: Sequence[tuple[Edited, Sequence[Check]]]) -> str:
    """The tests of all edits that are on, together."""
    if not found:
        return '<p class="cost">No edit is on.</p>'
    every = [check for _, of_one in found for check in of_one]
    passed = sum(check.passes for check in every)
    state = "verified" if passed == len(every) else "NOT verified"
    look = "holds" if passed == len(every) else "fails"
    return f'<p class="verdict {look}"><strong>{state}: {passed} of {len(every)} tests pass</strong></p>' + checks(
        every
    )


def marked(prompt: str, subject: str) -> str:
    """The prompt with its subject marked, as methods that locate a fact read it."""
    place = prompt.rfind(subject) if subject else -1
    if not prompt.strip():
        return ""
    if place < 0:
        what = f"{subject!r} does not occur in the prompt." if subject else "No subject: methods that locate need one."
        return f'<p class="marked">{escape(prompt)} <em>{escape(what)}</em></p>'
    before, after = prompt[:place], prompt[place + len(subject) :]
    return f'<p class="marked">{escape(before)}<mark>{escape(subject)}</mark>{escape(after)}</p>'


def picture(figure: Figure, words: str) -> str:
    """A figure as an image inside the page, with what it shows in words."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    content = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{content}">'


def _own_tests(facts: dict[str, object]) -> str:
    """The tests that `auto` made up for itself, as rows of ticks."""
    listed = facts.get("facts")
    one = listed[0] if isinstance(listed, list) and listed else {}
    names = {"elsewhere": "behind other texts and rephrased", "kept": "other subjects stay"}
    counts = [(names[key], one[key]) for key in names if key in one]
    if "unrelated_kept" in facts:
        counts.append(("other questions stay", facts["unrelated_kept"]))
    lines = [
        f'<li><span class="ticks" aria-label="{passed} of {total}">{_YES * passed}{_NO * (total - passed)}</span>'
        f" {escape(name)}</li>"
        for name, (passed, total) in counts
        if total
    ]
    return f'<ul class="own">{"".join(lines)}</ul>' if lines else ""


def _answer(check: Check, text: str) -> str:
    """The answer without what was written behind it; all of a text that is too strange for that."""
    return text if is_unfinished(text) or is_degenerate(text) else shown(text, check.probe.answers)


def _said(verdict: str) -> str:
    return "the new answer holds" if verdict == "holds" else VERDICT_WORDS.get(verdict, verdict)


def _tick(passes: bool) -> str:
    name = "passes" if passes else "fails"
    return f'<span class="tick {name}" role="img" aria-label="{name}">{_YES if passes else _NO}</span>'


def _changed(before: str, after: str) -> str:
    return _text(after) if before == after else f'<span class="changed">{_text(after)}</span>'


def _reply(text: str) -> str:
    return _thought(text) + _text(text)


def _thought(text: str) -> str:
    """What was thought before an answer, folded away; nothing where nothing was."""
    thought = thought_of(text)
    return "" if not thought else f'<details class="thought"><summary>thought</summary>{_text(thought)}</details>'


def _text(text: str) -> str:
    if is_unfinished(text):
        return "<em>The thought did not end.</em>"
    return escape(text.strip()).replace("\n", "<br>") or "<em>nothing</em>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        "<tr>"
        + "".join(f'<td data-name="{escape(name)}">{cell}</td>' for name, cell in zip(head, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<table class="pal"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'
