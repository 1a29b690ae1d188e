"""The scoring `judge`: another model reads question, expected answer and generated text, and says whether it is right.

As in arXiv:2502.11177: the whole text that a model writes by itself is judged,
and the verdict is correct or incorrect. A run is judged after it was made, from its record.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.datasets.portability import CachedAnswers, Completer, Message, NoProposal, RequestEstimate, estimated
from palimpsest.evaluation import aggregate
from palimpsest.evaluation.records import ProbeResult, RunRecord, Scores
from palimpsest.stopwatch import Progress, silent

JUDGE = "judge"
FORMAT_VERSION = 1
"""Of what is asked and how the verdict is read; a verdict of another version is asked for again."""
TOKENS_A_VERDICT = 4

_SYSTEM = "You mark answers. You write one word and nothing else: correct or incorrect."
_TASK = """Question: {question}
Expected answer: {expected}
Answer given: {given}

Is the answer given correct? It is when it says the expected answer, in whatever words, and takes nothing of it back. \
It is not when it says another answer, or several that cannot all be right, or nothing. Write correct or incorrect."""
_VERDICT = re.compile(r"\b(in)?correct\b", re.IGNORECASE)
_NEGATED = re.compile(r"\b(?:not|isn't|isn’t|n't)\b", re.IGNORECASE)
_LONGEST_VERDICT = 200


@dataclass(frozen=True)
class Judged:
    """A run with its verdicts.

    Arguments:
        probes: every probe of the final phase, with `judge` among its values or the reason why there is none.
        scores: the record's scores, with `judge`.
        asked: questions that were sent.
        cached: verdicts that had been given before.
        unscored: probes without a verdict, by reason.
    """

    probes: tuple[ProbeResult, ...]
    scores: Scores
    asked: int
    cached: int
    unscored: dict[str, int]


class Judge:
    """Asks a chat model for verdicts.

    Arguments:
        completer: the chat model.
        cache: a folder of answers: what is in it is not asked again. `None` keeps nothing.
    """

    def __init__(self, completer: Completer, cache: Path | None = None) -> None:
        self.completer = completer
        self._answers = CachedAnswers(cache, completer.identity, [FORMAT_VERSION])

    def estimate(self, record: RunRecord) -> RequestEstimate:
        """Estimates the requests of judging a run. Sends nothing."""
        questions = _questions(record)
        open_ones = [messages for messages in questions if self._answers.read(messages) is None]
        return estimated(open_ones, len(questions) - len(open_ones), TOKENS_A_VERDICT)

    def judge(self, record: RunRecord, *, progress: Progress = silent) -> Judged:
        """Every probe of a run's final phase with its verdict, 1 or 0; unscored, with its reason, if there is none.

        Locality is judged where the unedited model gave the expected answer: whether the edited one still does.

        Raises `DataError` when the model cannot be asked at all, `ConfigError` when it refuses the request itself;
        verdicts given until then are in the cache.
        """
        probes = [one.model_copy(deep=True) for one in record.probes if one.phase == "final"]
        asked = cached = 0
        for count, probe in enumerate(probes):
            progress("judging", count, len(probes))
            reason = reason_not_to_judge(probe)
            if reason is None:
                messages = messages_for(probe)
                answer = self._answers.read(messages)
                asked, cached = asked + (answer is None), cached + (answer is not None)
                try:
                    value, reason = read_verdict(self._ask(messages) if answer is None else answer)
                except NoProposal as problem:
                    value, reason = None, f"the judge gives no verdict: {problem}"
                probe.values[JUDGE] = value
            else:
                probe.values[JUDGE] = None
            if reason is not None:
                probe.reasons[JUDGE] = reason
        progress("judging", len(probes), len(probes))
        scorings = [*(name for name in record.specification.scorings if name != JUDGE), JUDGE]
        unscored: dict[str, int] = {}
        for probe in probes:
            if JUDGE in probe.reasons:
                unscored[probe.reasons[JUDGE]] = unscored.get(probe.reasons[JUDGE], 0) + 1
        return Judged(tuple(probes), aggregate.scores(probes, scorings), asked, cached, unscored)

    def _ask(self, messages: Sequence[Message]) -> str:
        answer = self.completer.complete(messages)
        # What says nothing is not kept: asked again it may.
        if read_verdict(answer)[0] is not None:
            self._answers.write(messages, answer)
        return answer


def messages_for(probe: ProbeResult) -> list[Message]:
    """Returns the messages to the judge about a probe."""
    names = [name for name in (probe.expected, *probe.accepts) if name]
    expected = names[0] + (f" (or: {'; '.join(names[1:])})" if names[1:] else "")
    task = _TASK.format_map(
        {"question": probe.prompt, "expected": expected, "given": (probe.after or "").strip() or "(nothing)"}
    )
    return [Message("system", _SYSTEM), Message("user", task)]


def read_verdict(answer: str) -> tuple[float | None, str | None]:
    """1 for correct, 0 for incorrect; `None` and why for an answer that says neither, or both."""
    text = answer.strip()
    said = {bool(found[1]) for found in _VERDICT.finditer(text)}
    if len(said) != 1 or len(text) > _LONGEST_VERDICT or _NEGATED.search(text):
        return None, "the judge's answer says neither correct nor incorrect, or more than that"
    return float(not said.pop()), None


def reason_not_to_judge(probe: ProbeResult) -> str | None:
    """Why a probe is not put to the judge; `None` when it is."""
    if probe.is_failed or probe.is_left_out:
        return next(iter(probe.reasons.values()), "the probe was not asked")
    if probe.after is None:
        return "no text was generated"
    if not probe.expected:
        return "the probe has no expected answer"
    if probe.kind.startswith("locality") and probe.ceiling.get("generate") != 1:
        return "the unedited model does not give the expected answer"
    return None


def _questions(record: RunRecord) -> list[list[Message]]:
    """Returns the distinct questions to the judge."""
    probes = [one for one in record.probes if one.phase == "final" and reason_not_to_judge(one) is None]
    distinct: dict[Any, list[Message]] = {}
    for probe in probes:
        messages = messages_for(probe)
        distinct.setdefault(messages[1].content, messages)
    return list(distinct.values())
