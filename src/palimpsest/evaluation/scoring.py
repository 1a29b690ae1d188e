"""Scorings: pure functions from a model's answers, before and after an edit, to a number.

The built-in ones are in `evaluation.scorings`. None of them knows which method made the edit. What counts as the answer
in a text is defined in `palimpsest.answers`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, final

from palimpsest.answers import gives, is_reply_to, new_names, old_names, states
from palimpsest.requests import EditRequest, Probe, normalise
from palimpsest.wording import is_degenerate, is_unfinished, thought_of

if TYPE_CHECKING:
    from palimpsest.models import TargetScore


UNFINISHED = "the thought did not end within its tokens (--thinking-tokens)"
"""Why there is no answer to judge."""


@dataclass(frozen=True)
class Observation:
    """A model's answers at one prompt.

    Arguments:
        generated: its greedy continuation, a `wording.Reply` where it thought first; `None` when it was not asked for.
        scores: target text to its teacher-forced score after the prompt.
        is_chat: whether the prompt was a turn of a chat.
        repeats_anyway: whether the continuation repeats itself as the base model does after the same beginning.
    """

    generated: str | None = None
    scores: Mapping[str, TargetScore] = field(default_factory=dict)
    is_chat: bool = False
    repeats_anyway: bool = False

    def is_broken(self) -> bool:
        """Whether the model gave something that is not a number."""
        return any(math.isnan(value) for score in self.scores.values() for value in score.log_probs)

    @property
    def is_unfinished(self) -> bool:
        """Whether its thought did not end, so that there is no answer."""
        return is_unfinished(self.generated)

    @property
    def thought(self) -> str | None:
        """What it thought before it answered; `None` where it answered at once."""
        return thought_of(self.generated)

    def says(self, probe: Probe, answers: Sequence[str], *, against: Sequence[str]) -> bool:
        """Whether what was said at a probe gives one of the answers.

        Arguments:
            probe: what was asked.
            answers: the names that count.
            against: answers that must not be stated in their place.
        """
        is_reply = is_reply_to(probe.prompt, is_chat=self.is_chat)
        return gives(self.generated or "", answers, against=against, prompt=probe.prompt, is_reply=is_reply)


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


class Scoring(ABC):
    """How the answers to a probe become a number. It says what the models must be asked, and reads what they said."""

    reads_text: ClassVar[bool] = False
    """Whether it reads a generated text; text is generated only where a chosen scoring does."""

    @abstractmethod
    def value(self, request: EditRequest, probe: Probe, before: Observation, after: Observation) -> Value:
        """The number.

        Arguments:
            request: the edit.
            probe: what tests it.
            before: what the base model said.
            after: what the edited model says.
        """

    def targets(self, request: EditRequest, probe: Probe, before: str | None) -> Sequence[str | None]:
        """The texts whose probabilities after the probe's prompt it compares; `None` and empty texts do not count.

        Arguments:
            request: the edit.
            probe: what tests it.
            before: the base model's own generation, where it is known.
        """
        del request, probe, before
        return ()

    def base_targets(self, probe: Probe, before: str | None) -> Sequence[str | None]:
        """Those of them that the base model must be asked for too."""
        del probe, before
        return ()

    def needs_base_text(self, probe: Probe) -> bool:
        """Whether the base model's own text decides a probe's value."""
        del probe
        return self.reads_text

    def gives_old(self, request: EditRequest, probe: Probe, after: Observation) -> bool | None:
        """Whether the edited model still gives the old answer (see `old_answers`); `None` where it cannot say."""
        del request, probe, after
        return None

    def gives(self, said: Observation, probe: Probe, answers: Sequence[str], *, against: Sequence[str]) -> bool:
        """Whether a text gives one of the answers; see `Observation.says`."""
        return said.says(probe, answers, against=against)

    @final
    def score(self, request: EditRequest, probe: Probe, before: Observation, after: Observation) -> Value:
        """The value, or that one of the models is broken."""
        if before.is_broken():
            return Value(None, "the base model gives numbers that are not finite", is_failed=True)
        if after.is_broken():
            return Value(None, "the edited model gives numbers that are not finite", is_failed=True)
        if self.reads_text and after.is_unfinished:
            return Value(None, UNFINISHED)
        if self.needs_base_text(probe) and probe.is_locality and before.is_unfinished:
            return Value(None, f"of the unedited model {UNFINISHED}")
        return self.value(request, probe, before, after)

    @final
    def old_answer(self, request: EditRequest, probe: Probe, after: Observation) -> float | None:
        """Whether the edited model still gives the old answer, 0 or 1; `None` for probes that have none."""
        if not old_answers(request, probe) or after.is_broken() or (self.reads_text and after.is_unfinished):
            return None
        still = self.gives_old(request, probe, after)
        return None if still is None else float(still)

    @final
    def ceiling(self, request: EditRequest, probe: Probe, before: Observation) -> float | None:
        """Whether the unedited model gives its own true answer, 0 or 1: what an edit can be expected to reach.

        The true answer is the old one for probes about the edit itself, the expected one for locality. `None` where it
        is not known, and for scorings that read no text.
        """
        names = old_names(request) if is_about_edit(probe) else probe.answers if probe.is_locality else ()
        if before.generated is None or before.is_unfinished or not names or not self.reads_text:
            return None
        return float(self.gives(before, probe, names, against=new_names(request)))


def is_about_edit(probe: Probe) -> bool:
    """Whether a probe asks for the edit itself, in its own words or in others."""
    return probe.kind in ("reliability", "generality")


def old_answers(request: EditRequest, probe: Probe) -> tuple[str, ...]:
    """The names of what was right at a probe before the edit: the old answer, or what followed from it, if known."""
    if is_about_edit(probe):
        return old_names(request) if request.target_old is not None else ()
    return probe.old_answers


def old_thought(request: EditRequest, probe: Probe, after: Observation) -> float | None:
    """Whether the thought before the answer names the old answer, 0 or 1, whatever the answer says.

    `None` without a thought, and for probes that have no old answer. What the prompt itself says does not count.
    """
    names = old_answers(request, probe)
    if after.thought is None or not names:
        return None
    return float(states(after.thought, names, against=(*new_names(request), *probe.answers), prompt=probe.prompt))


def is_same(first: str, second: str) -> bool:
    """Whether two answers are one, whatever their case and spaces."""
    return normalise(first) == normalise(second)


def degenerate(probe: Probe, before: Observation, after: Observation) -> float | None:
    """Whether the edited model babbles where the unedited one does not, 0 or 1.

    `None` where the unedited model babbles itself, at the prompt or after the same beginning, or there is no answer.
    """
    if not _are_answers(before, after) or is_degenerate(before.generated or "") or after.repeats_anyway:
        return None
    return float(is_degenerate(after.generated or "", probe.answers))


def leak(request: EditRequest, probe: Probe, before: Observation, after: Observation) -> float | None:
    """Whether the edited model gives the edit's new answer to a locality probe where the unedited one does not, 0 or 1.

    `None` for other probes, where the new answer is right there too, and where the unedited model gives it already.
    """
    new = new_names(request)
    if not probe.is_locality or not _are_answers(before, after):
        return None
    if any(is_same(one, other) for one in probe.answers for other in new):
        return None
    if before.says(probe, new, against=probe.answers):
        return None
    return float(after.says(probe, new, against=probe.answers))


def _are_answers(*said: Observation) -> bool:
    return all(one.generated is not None and not one.is_unfinished for one in said)
