"""Asks a model every probe of many edits, in a few batched calls, and scores the answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from palimpsest.errors import DataError
from palimpsest.evaluation.answers import BaseAnswers
from palimpsest.evaluation.overlap import EditedFacts
from palimpsest.evaluation.records import Phase, ProbeResult
from palimpsest.evaluation.scoring import Observation, Scoring, degenerate, leak, old_thought
from palimpsest.models import AnswerRoom, own_repetitions, written_answers
from palimpsest.requests import EditRequest, Probe

if TYPE_CHECKING:
    from palimpsest.models import EditableModel, TargetScore

ProbeOfEdit = tuple[EditRequest, Probe]


class Examiner:
    """Puts probes to a model, whatever patch is on it at the time.

    Arguments:
        model: the model.
        base: what it says without any patch; `prepare` asks.
        scorings: those to compute, by name. Text is generated only when one of them needs it.
        room: how much is generated.
        forward_batch_size: rows per forward pass; changes memory, not results.
    """

    def __init__(
        self,
        model: EditableModel,
        base: BaseAnswers,
        scorings: Mapping[str, Scoring],
        *,
        room: AnswerRoom,
        forward_batch_size: int,
    ) -> None:
        self.model = model
        self.base = base
        self.scorings = dict(scorings)
        self._room = room
        self._rows = forward_batch_size
        self._fitting: dict[tuple[str, str | None], str | None] = {}
        base.belong_to(model)

    def prepare(self, requests: Iterable[EditRequest]) -> None:
        """Asks the base model everything that any probe of these edits compares with. No patch may be on it."""
        questions = [(request, probe) for request in requests for probe in request.all_probes()]
        scorings = self.scorings.values()
        wanted = [probe.prompt for _, probe in questions if any(one.needs_base_text(probe) for one in scorings)]
        self.base.generate(self.model, self._fit(wanted), self._room, forward_batch_size=self._rows)
        pairs = []
        for _, probe in questions:
            texts = [text for one in scorings for text in one.base_targets(probe, self._base_text(probe))]
            pairs += [(probe.prompt, text) for text in texts if text and self._problem(probe.prompt, text) is None]
        self.base.score(self.model, pairs, forward_batch_size=self._rows)

    def ask(
        self,
        requests: Sequence[EditRequest],
        *,
        edited: EditedFacts | None = None,
        phase: Phase = "final",
        checkpoint: int | None = None,
    ) -> list[ProbeResult]:
        """One result for every probe of the edits, in order.

        Arguments:
            requests: the edits to test.
            edited: facts edited in the same run; probes about them are left out and say so.
            phase: `"immediate"` asks only about the edits themselves (reliability and generality).
            checkpoint: how many edits have been made.
        """
        questions = [
            (request, probe)
            for request in requests
            for probe in request.all_probes()
            if phase == "final" or probe.kind in ("reliability", "generality")
        ]
        excuses = [self._excuse(question, edited) for question in questions]
        open_questions = [one for one, excuse in zip(questions, excuses, strict=True) if excuse is None]
        answers = self._answers(open_questions)
        results = []
        for (request, probe), excuse in zip(questions, excuses, strict=True):
            result = self._blank(request, probe, phase, checkpoint)
            if excuse is None:
                self._fill(result, request, probe, answers[probe.prompt])
            else:
                reason, is_left_out = excuse
                result.is_left_out, result.is_failed = is_left_out, not is_left_out
                self._mark(result, reason)
            results.append(result)
        return results

    def failed(
        self,
        requests: Sequence[EditRequest],
        reason: str,
        *,
        edited: EditedFacts | None = None,
        phase: Phase = "final",
        checkpoint: int | None = None,
    ) -> list[ProbeResult]:
        """Results for edits that could not be made: nothing is asked, everything is counted."""
        results = []
        for request in requests:
            for probe in request.all_probes():
                if phase == "immediate" and probe.kind not in ("reliability", "generality"):
                    continue
                left_out = edited.reason_to_leave_out(request, probe) if edited else None
                result = self._blank(request, probe, phase, checkpoint)
                result.before = self._base_text(probe)
                result.is_left_out, result.is_failed = left_out is not None, left_out is None
                self._mark(result, left_out or reason)
                results.append(result)
        return results

    def _answers(self, questions: Sequence[ProbeOfEdit]) -> dict[str, Observation]:
        """Returns the present model's answer to each distinct prompt."""
        prompts = list(dict.fromkeys(probe.prompt for _, probe in questions))
        generated: dict[str, str] = {}
        if any(one.reads_text for one in self.scorings.values()) and prompts:
            texts = written_answers(self.model, prompts, self._room, forward_batch_size=self._rows)
            generated = dict(zip(prompts, texts, strict=True))
        anyway = own_repetitions(self.model, generated, self._room)
        pairs = list(dict.fromkeys((p.prompt, text) for r, p in questions for text in self._targets(r, p)))
        scores: dict[str, dict[str, TargetScore]] = {prompt: {} for prompt in prompts}
        found = self.model.score([p for p, _ in pairs], [text for _, text in pairs], forward_batch_size=self._rows)
        for (prompt, text), one in zip(pairs, found, strict=True):
            scores[prompt][text] = one
        return {
            prompt: Observation(generated.get(prompt), scores[prompt], self._is_chat, prompt in anyway)
            for prompt in prompts
        }

    def _fill(self, result: ProbeResult, request: EditRequest, probe: Probe, after: Observation) -> None:
        before = self.base.observation(probe.prompt, self._targets(request, probe), self._room, is_chat=self._is_chat)
        result.before, result.after = (None if one.is_unfinished else one.generated for one in (before, after))
        result.thought_before, result.thought = before.thought, after.thought
        result.old_thought = old_thought(request, probe, after)
        if "generate" in self.scorings:
            result.degenerate = degenerate(probe, before, after)
            result.leak = leak(request, probe, before, after)
        for name, scoring in self.scorings.items():
            value = scoring.score(request, probe, before, after)
            result.values[name] = value.value
            if value.reason is not None:
                result.reasons[name] = value.reason
            result.is_failed |= value.is_failed
            result.old_answer[name] = scoring.old_answer(request, probe, after)
            if scoring.reads_text:
                result.ceiling[name] = scoring.ceiling(request, probe, before)

    def _excuse(self, question: ProbeOfEdit, edited: EditedFacts | None) -> tuple[str, bool] | None:
        """Why a probe is not asked, and whether that is because it is left out."""
        request, probe = question
        left_out = edited.reason_to_leave_out(request, probe) if edited else None
        if left_out is not None:
            return left_out, True
        problems = [self._problem(probe.prompt, text) for text in (None, *self._targets(request, probe))]
        problem = next((one for one in problems if one is not None), None)
        return None if problem is None else (problem, False)

    def _targets(self, request: EditRequest, probe: Probe) -> list[str]:
        """The texts that must be scored after a probe's prompt, without repetitions."""
        before = self._base_text(probe)
        texts = [text for one in self.scorings.values() for text in one.targets(request, probe, before)]
        return list(dict.fromkeys(text for text in texts if text))

    def _fit(self, prompts: Iterable[str]) -> list[str]:
        return [prompt for prompt in dict.fromkeys(prompts) if self._problem(prompt, None) is None]

    def _problem(self, prompt: str, target: str | None) -> str | None:
        """Why a prompt cannot be put to the model, with room for its answer; `None` when it can."""
        key = (prompt, target)
        if key not in self._fitting:
            self._fitting[key] = self._misfit(prompt, target)
        return self._fitting[key]

    def _misfit(self, prompt: str, target: str | None) -> str | None:
        try:
            length = len(self.model.asked(prompt) if target is None else self.model.encode(prompt, target))
        except DataError as error:
            return error.problem
        if target is None and self.model.room_after(length) < self._room.tokens + self._thought_tokens:
            return "The prompt leaves no room for an answer in the model's context."
        return None

    @property
    def _thought_tokens(self) -> int:
        return self.model.chat.thought_tokens if self.model.chat is not None else 0

    def _blank(self, request: EditRequest, probe: Probe, phase: Phase, checkpoint: int | None) -> ProbeResult:
        return ProbeResult(
            edit_id=request.id,
            kind=probe.kind,
            prompt=probe.prompt,
            expected=probe.expected,
            expected_old=probe.expected_old,
            accepts=list(probe.accepts),
            target_new=request.target_new,
            target_old=request.target_old,
            phase=phase,
            checkpoint=checkpoint,
        )

    def _mark(self, result: ProbeResult, reason: str) -> None:
        result.values = dict.fromkeys(self.scorings)
        result.reasons = dict.fromkeys(self.scorings, reason)

    @property
    def _is_chat(self) -> bool:
        return self.model.chat is not None

    def _base_text(self, probe: Probe) -> str | None:
        return self.base.generated(probe.prompt, self._room)


def room_for(model: EditableModel, requests: Iterable[EditRequest], max_new_tokens: int | None) -> AnswerRoom:
    """How much has to be generated to read any answer that these edits' probes may get."""
    answers: list[str] = []
    for request in requests:
        answers += [request.target_new, *request.accepts, *request.accepts_old]
        answers += [request.target_old] if request.target_old else []
        answers += [answer for probe in request.probes for answer in (*probe.answers, *probe.old_answers)]
    return AnswerRoom.of(model.tokenizer, answers, max_new_tokens)
