"""The scorings: pure functions from what a model said, before and after, to a number.

`generate` is what a user sees, `teacher_forced` what most papers report, `log_prob` what CounterFact defines, `exact`
the strictest reading of a generated text. None of them knows which method made the edit. What counts as the answer
in a text is defined in `palimpsest.answers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from palimpsest.answers import first_sentence, gives, is_exact, is_reply_to, new_names, old_names, same_beginning
from palimpsest.requests import EditRequest, Probe, normalise
from palimpsest.wording import is_degenerate

if TYPE_CHECKING:
    from palimpsest.models import TargetScore

Scoring = Literal["generate", "teacher_forced", "log_prob", "exact"]
SCORINGS: tuple[str, ...] = get_args(Scoring)
OF_TEXT = ("generate", "exact")
"""Those that read a generated text."""


@dataclass(frozen=True)
class Observation:
    """What a model said at one prompt.

    Arguments:
        generated: its greedy continuation; `None` when it was not asked for.
        scores: target text to its teacher-forced score after the prompt.
        is_chat: whether the prompt was a turn of a chat.
    """

    generated: str | None = None
    scores: Mapping[str, TargetScore] = field(default_factory=dict)
    is_chat: bool = False

    def is_broken(self) -> bool:
        """Whether the model gave something that is not a number."""
        return any(math.isnan(value) for score in self.scores.values() for value in score.log_probs)


@dataclass(frozen=True)
class Value:
    """One probe under one scoring.

    Arguments:
        value: from 0 to 1; `None` when there is none.
        reason: why there is none.
        is_failed: the model or the edit broke, rather than the probe leaving the question open.
    """

    value: float | None
    reason: str | None = None
    is_failed: bool = False


def needed_targets(request: EditRequest, probe: Probe, scorings: Sequence[str], before: str | None) -> list[str]:
    """The texts that must be scored after a probe's prompt, without repetitions.

    Arguments:
        request: the edit.
        probe: what tests it.
        scorings: the chosen ones.
        before: the base model's own generation, for locality without an expected answer.
    """
    texts: list[str | None] = []
    if "teacher_forced" in scorings:
        texts.append(locality_text(probe, before) if probe.is_locality else probe.expected)
        if _is_about_edit(probe):
            texts.append(request.target_old)
    if "log_prob" in scorings:
        if _is_about_edit(probe) and request.target_old is not None:
            texts += [probe.expected, request.target_old]
        elif probe.is_locality and probe.expected and not _same(probe.expected, request.target_new):
            texts += [probe.expected, request.target_new]
    return list(dict.fromkeys(text for text in texts if text))


def needs_base_generation(probe: Probe, scorings: Sequence[str]) -> bool:
    """Whether the base model's own answer decides a probe's value."""
    return any(one in scorings for one in OF_TEXT) or (
        "teacher_forced" in scorings and probe.is_locality and not probe.expected
    )


def locality_text(probe: Probe, before: str | None) -> str | None:
    """The text whose tokens are compared before and after: the expected answer, else the base model's own."""
    return probe.expected or (first_sentence(before) if before else None) or None


def score(scoring: str, request: EditRequest, probe: Probe, before: Observation, after: Observation) -> Value:
    """One probe's value under a named scoring.

    Arguments:
        scoring: one of `SCORINGS`.
        request: the edit.
        probe: what tests it.
        before: what the base model said.
        after: what the edited model says.
    """
    if before.is_broken():
        return Value(None, "the base model gives numbers that are not finite", is_failed=True)
    if after.is_broken():
        return Value(None, "the edited model gives numbers that are not finite", is_failed=True)
    if scoring == "generate":
        return _generate(request, probe, before, after)
    if scoring == "exact":
        return _exact(probe, before, after)
    if scoring == "teacher_forced":
        return _teacher_forced(probe, before, after)
    return _log_prob(request, probe, after)


def old_answer(scoring: str, request: EditRequest, probe: Probe, after: Observation) -> float | None:
    """Whether the edited model still gives the old answer, 0 or 1, for probes about the edit itself.

    `None` for other probes, without an old answer, and under `log_prob`, whose comparison says the same as
    its reliability.
    """
    if not _is_about_edit(probe) or request.target_old is None or after.is_broken():
        return None
    if scoring == "generate" and after.generated is not None:
        return float(_says(after, probe, old_names(request), against=(*new_names(request), *probe.answers)))
    if scoring == "exact" and after.generated is not None:
        return float(any(is_exact(after.generated, name) for name in old_names(request)))
    if scoring == "teacher_forced":
        return float(all(after.scores[request.target_old].matches))
    return None


def ceiling(scoring: str, request: EditRequest, probe: Probe, before: Observation) -> float | None:
    """Whether the unedited model gives its own true answer at a probe, 0 or 1: what an edit can be expected to reach.

    The true answer is the old one for probes about the edit itself, the expected one for locality. `None` where it is
    not known, and for scorings that read no text.
    """
    names = old_names(request) if _is_about_edit(probe) else probe.answers if probe.is_locality else ()
    if before.generated is None or not names or scoring not in OF_TEXT:
        return None
    if scoring == "exact":
        return float(any(is_exact(before.generated, name) for name in names))
    return float(_says(before, probe, names, against=new_names(request)))


def degenerate(probe: Probe, before: Observation, after: Observation) -> float | None:
    """Whether the edited model babbles where the unedited one does not, 0 or 1.

    `None` where the unedited model babbles itself, or no text was generated.
    """
    if before.generated is None or after.generated is None or is_degenerate(before.generated):
        return None
    return float(is_degenerate(after.generated, probe.answers))


def leak(request: EditRequest, probe: Probe, before: Observation, after: Observation) -> float | None:
    """Whether the edited model gives the edit's new answer to a locality probe where the unedited one does not, 0 or 1.

    `None` for other probes, where the new answer is right there too, and where the unedited model gives it already.
    """
    new = new_names(request)
    if not probe.is_locality or before.generated is None or after.generated is None:
        return None
    if any(_same(one, other) for one in probe.answers for other in new):
        return None
    if _says(before, probe, new, against=probe.answers):
        return None
    return float(_says(after, probe, new, against=probe.answers))


def _generate(request: EditRequest, probe: Probe, before: Observation, after: Observation) -> Value:
    if after.generated is None:
        return Value(None, "no text was generated")
    if not probe.is_locality:
        against = old_names(request) if _is_about_edit(probe) else ()
        return Value(float(_says(after, probe, probe.answers, against=against)))
    if before.generated is None:
        return Value(None, "the base model's answer is not known")
    new = [name for name in new_names(request) if not any(_same(name, one) for one in probe.answers)]
    if probe.answers and _says(before, probe, probe.answers, against=new):
        return Value(float(_says(after, probe, probe.answers, against=new)))
    is_reply = is_reply_to(probe.prompt, is_chat=after.is_chat)
    alike = same_beginning(before.generated, after.generated, prompt=probe.prompt, is_reply=is_reply)
    return Value(float(alike))


def _exact(probe: Probe, before: Observation, after: Observation) -> Value:
    if after.generated is None:
        return Value(None, "no text was generated")
    if not probe.is_locality:
        return Value(float(any(is_exact(after.generated, answer) for answer in probe.answers)))
    if before.generated is None:
        return Value(None, "the base model's answer is not known")
    return Value(float(_same(first_sentence(after.generated), first_sentence(before.generated))))


def _says(said: Observation, probe: Probe, answers: Sequence[str], *, against: Sequence[str]) -> bool:
    """Whether what was said at a probe gives one of the answers."""
    is_reply = is_reply_to(probe.prompt, is_chat=said.is_chat)
    return gives(said.generated or "", answers, against=against, prompt=probe.prompt, is_reply=is_reply)


def _teacher_forced(probe: Probe, before: Observation, after: Observation) -> Value:
    if not probe.is_locality:
        return Value(after.scores[probe.expected or ""].accuracy)
    text = locality_text(probe, before.generated)
    if text is None:
        return Value(None, "the base model says nothing here, so there are no tokens to compare")
    pairs = list(zip(before.scores[text].predicted, after.scores[text].predicted, strict=True))
    return Value(sum(one == other for one, other in pairs) / len(pairs))


def _log_prob(request: EditRequest, probe: Probe, after: Observation) -> Value:
    if _is_about_edit(probe):
        if request.target_old is None:
            return Value(None, "the edit has no old answer to compare with")
        return _is_likelier(probe.expected, request.target_old, after)
    if not probe.is_locality:
        return Value(None, "no alternative answer is known to compare with")
    if not probe.expected:
        return Value(None, "the probe has no expected answer to compare with the new one")
    if _same(probe.expected, request.target_new):
        return Value(None, "the expected answer is the edit's new answer")
    return _is_likelier(probe.expected, request.target_new, after)


def _is_likelier(text: str | None, other: str, after: Observation) -> Value:
    return Value(float(after.scores[text or ""].mean_log_prob > after.scores[other].mean_log_prob))


def _is_about_edit(probe: Probe) -> bool:
    return probe.kind in ("reliability", "generality")


def _same(first: str, second: str) -> bool:
    return normalise(first) == normalise(second)
