"""The built-in scorings: what a user sees, what papers report, what CounterFact defines, the strictest reading, and how
much of a passage is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

from palimpsest.answers import first_sentence, is_exact, is_reply_to, new_names, same_beginning
from palimpsest.evaluation.rouge import Rouge, rouge_l
from palimpsest.evaluation.scoring import Observation, Scoring, Value, is_about_edit, is_same, old_answers
from palimpsest.requests import EditRequest, Probe


@final
class Generate(Scoring):
    """Whether free greedy generation gives the expected answer, or, for locality, the same as before."""

    reads_text: ClassVar[bool] = True

    def value(self, request: EditRequest, probe: Probe, before: Observation, after: Observation) -> Value:
        """See `Scoring.value`."""
        if after.generated is None:
            return Value(None, "no text was generated")
        if not probe.is_locality:
            return Value(float(after.says(probe, probe.answers, against=old_answers(request, probe))))
        if before.generated is None:
            return Value(None, "the base model's answer is not known")
        new = [name for name in new_names(request) if not any(is_same(name, one) for one in probe.answers)]
        if probe.answers and before.says(probe, probe.answers, against=new):
            return Value(float(after.says(probe, probe.answers, against=new)))
        is_reply = is_reply_to(probe.prompt, is_chat=after.is_chat)
        alike = same_beginning(before.generated, after.generated, prompt=probe.prompt, is_reply=is_reply)
        return Value(float(alike))

    def gives_old(self, request: EditRequest, probe: Probe, after: Observation) -> bool | None:
        """See `Scoring.gives_old`."""
        if after.generated is None:
            return None
        new = new_names(request) if is_about_edit(probe) else ()
        return after.says(probe, old_answers(request, probe), against=(*new, *probe.answers))


@final
class Exact(Scoring):
    """Whether the text up to the stop is the answer and nothing else."""

    reads_text: ClassVar[bool] = True

    def value(self, request: EditRequest, probe: Probe, before: Observation, after: Observation) -> Value:
        """See `Scoring.value`."""
        if after.generated is None:
            return Value(None, "no text was generated")
        if not probe.is_locality:
            return Value(float(any(is_exact(after.generated, answer) for answer in probe.answers)))
        if before.generated is None:
            return Value(None, "the base model's answer is not known")
        return Value(float(is_same(first_sentence(after.generated), first_sentence(before.generated))))

    def gives_old(self, request: EditRequest, probe: Probe, after: Observation) -> bool | None:
        """See `Scoring.gives_old`."""
        return None if after.generated is None else self.gives(after, probe, old_answers(request, probe), against=())

    def gives(self, said: Observation, probe: Probe, answers: Sequence[str], *, against: Sequence[str]) -> bool:
        """See `Scoring.gives`."""
        return any(is_exact(said.generated or "", name) for name in answers)


@final
class TeacherForced(Scoring):
    """The share of the expected answer's tokens that are each the most probable one, given the right ones before."""

    def value(self, request: EditRequest, probe: Probe, before: Observation, after: Observation) -> Value:
        """See `Scoring.value`."""
        if not probe.is_locality:
            return Value(after.scores[probe.expected or ""].accuracy)
        [text] = self.base_targets(probe, before.generated)
        if text is None:
            return Value(None, "the base model says nothing here, so there are no tokens to compare")
        pairs = list(zip(before.scores[text].predicted, after.scores[text].predicted, strict=True))
        return Value(sum(one == other for one, other in pairs) / len(pairs))

    def targets(self, request: EditRequest, probe: Probe, before: str | None) -> Sequence[str | None]:
        """See `Scoring.targets`."""
        compared = self.base_targets(probe, before) if probe.is_locality else (probe.expected,)
        return (*compared, *old_answers(request, probe)[:1])

    def base_targets(self, probe: Probe, before: str | None) -> Sequence[str | None]:
        """For locality, the text whose tokens are compared: the expected answer, else the base model's own."""
        if not probe.is_locality:
            return ()
        return (probe.expected or (first_sentence(before) if before else None) or None,)

    def needs_base_text(self, probe: Probe) -> bool:
        """See `Scoring.needs_base_text`."""
        return probe.is_locality and not probe.expected

    def gives_old(self, request: EditRequest, probe: Probe, after: Observation) -> bool | None:
        """See `Scoring.gives_old`."""
        return all(after.scores[old_answers(request, probe)[0]].matches)


@final
class LogProb(Scoring):
    """Whether one answer is more probable than the other, per token.

    The old answer's rate would say the same as reliability, so there is none.
    """

    def value(self, request: EditRequest, probe: Probe, before: Observation, after: Observation) -> Value:
        """See `Scoring.value`."""
        if is_about_edit(probe) and request.target_old is None:
            return Value(None, "the edit has no old answer to compare with")
        if not is_about_edit(probe) and not probe.is_locality and probe.expected_old is None:
            return Value(None, "no alternative answer is known to compare with")
        if probe.is_locality and not probe.expected:
            return Value(None, "the probe has no expected answer to compare with the new one")
        if probe.is_locality and is_same(probe.expected or "", request.target_new):
            return Value(None, "the expected answer is the edit's new answer")
        likelier, other = (after.scores[text or ""].mean_log_prob for text in self.targets(request, probe, None))
        return Value(float(likelier > other))

    def targets(self, request: EditRequest, probe: Probe, before: str | None) -> Sequence[str | None]:
        """See `Scoring.targets`."""
        if old := old_answers(request, probe):
            return (probe.expected, old[0])
        if probe.is_locality and probe.expected and not is_same(probe.expected, request.target_new):
            return (probe.expected, request.target_new)
        return ()


@final
class RougeL(Scoring):
    """ROUGE-L between the generated text, the whole of it, and the answer; the best of the names of the answer.

    Arguments:
        part: `f1`, which counts what is written beyond the answer; `recall`, which does not; or `precision`.
    """

    reads_text: ClassVar[bool] = True

    def __init__(self, part: Literal["f1", "recall", "precision"] = "f1") -> None:
        self._part = part

    def value(self, request: EditRequest, probe: Probe, before: Observation, after: Observation) -> Value:
        """See `Scoring.value`."""
        if after.generated is None:
            return Value(None, "no text was generated")
        if not probe.is_locality:
            return Value(max(self._of(rouge_l(after.generated, answer)) for answer in probe.answers))
        if before.generated is None:
            return Value(None, "the base model's answer is not known")
        return Value(self._of(rouge_l(after.generated, before.generated)))

    def _of(self, found: Rouge) -> float:
        return float(getattr(found, self._part))
