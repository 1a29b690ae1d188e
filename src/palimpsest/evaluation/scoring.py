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

from palimpsest.answers import gives, is_reply_to, new_names, old_names
from palimpsest.requests import EditRequest, Probe, normalise
from palimpsest.wording import is_degenerate

if TYPE_CHECKING:
    from palimpsest.models import TargetScore


@dataclass(frozen=True)
class Observation:
    """A model's answers at one prompt.

    Arguments:
        generated: its greedy continuation; `None` when it was not asked for.
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
        """Whether the edited model still gives the old answer to a probe about the edit; `None` where it cannot say."""
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
        return self.value(request, probe, before, after)

    @final
    def old_answer(self, request: EditRequest, probe: Probe, after: Observation) -> float | None:
        """Whether the edited model still gives the old answer, 0 or 1; `None` for other probes than the edit's own."""
        if not is_about_edit(probe) or request.target_old is None or after.is_broken():
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
        if before.generated is None or not names or not self.reads_text:
            return None
        return float(self.gives(before, probe, names, against=new_names(request)))


def is_about_edit(probe: Probe) -> bool:
    """Whether a probe asks for the edit itself, in its own words or in others."""
    return probe.kind in ("reliability", "generality")


def is_same(first: str, second: str) -> bool:
    """Whether two answers are one, whatever their case and spaces."""
    return normalise(first) == normalise(second)


def degenerate(probe: Probe, before: Observation, after: Observation) -> float | None:
    """Whether the edited model babbles where the unedited one does not, 0 or 1.

    `None` where the unedited model babbles itself, at the prompt or after the same beginning, or no text was generated.
    """
    if before.generated is None or after.generated is None or is_degenerate(before.generated) or after.repeats_anyway:
        return None
    return float(is_degenerate(after.generated, probe.answers))


def leak(request: EditRequest, probe: Probe, before: Observation, after: Observation) -> float | None:
    """Whether the edited model gives the edit's new answer to a locality probe where the unedited one does not, 0 or 1.

    `None` for other probes, where the new answer is right there too, and where the unedited model gives it already.
    """
    new = new_names(request)
    if not probe.is_locality or before.generated is None or after.generated is None:
        return None
    if any(is_same(one, other) for one in probe.answers for other in new):
        return None
    if before.says(probe, new, against=probe.answers):
        return None
    return float(after.says(probe, new, against=probe.answers))
