"""The inputs of a protocol, and one attempt at an edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from palimpsest.errors import PalimpsestError
from palimpsest.evaluation import drift
from palimpsest.evaluation.editor import Editor, EditorOutcome
from palimpsest.evaluation.examiner import Examiner
from palimpsest.evaluation.journal import Journal
from palimpsest.evaluation.measures import Measure
from palimpsest.stopwatch import Progress, Stopwatch, silent

if TYPE_CHECKING:
    from palimpsest.models import EditableModel
    from palimpsest.patches import Patch
    from palimpsest.requests import EditRequest


@dataclass
class Work:
    """The inputs of a protocol."""

    model: EditableModel
    editor: Editor
    requests: Sequence[EditRequest]
    examiner: Examiner
    journal: Journal
    neutral_text: Sequence[str]
    forward_batch_size: int
    progress: Progress
    measures: Mapping[str, Measure] = field(default_factory=dict)

    def perplexity(self) -> float | None:
        """On the neutral text, under whatever patch is on the model."""
        if not self.neutral_text:
            return None
        return drift.perplexity(self.model, self.neutral_text, forward_batch_size=self.forward_batch_size)

    def measured(self, patch: Patch | None, requests: Sequence[EditRequest]) -> dict[str, float]:
        """Computes the further measures under that patch, which is on the model; `None` for the unedited model."""
        found: dict[str, float] = {}
        for measure in self.measures.values():
            found |= measure(self.model, patch, [request.prompt for request in requests])
        return found


@dataclass
class AttemptedEdit:
    """The result of an attempt: the edit's outcome, or the reason why it failed."""

    outcome: EditorOutcome | None
    error: str | None
    seconds: float


def attempted(
    work: Work, requests: Sequence[EditRequest], state: Any, clock: Stopwatch, progress: Progress = silent
) -> AttemptedEdit:
    """Makes an edit. What goes wrong with it is recorded; a mistake in a program is not caught.

    The editor does not see the probes, which are what it is tested by.
    """
    start = perf_counter()
    try:
        blind = [replace(request, probes=()) for request in requests]
        outcome = work.editor.edit(work.model, blind, state, progress=progress)
    except PalimpsestError as error:
        spent = perf_counter() - start
        clock.add({"other": spent})
        return AttemptedEdit(None, f"{type(error).__name__}: {error}", spent)
    spent = perf_counter() - start
    stages = {name: seconds for name, seconds in outcome.diagnostics.seconds.items() if name != "total"}
    # What the editor did outside its own stages took time as well.
    clock.add(stages)
    clock.add({"other": max(0.0, spent - sum(stages.values()))})
    return AttemptedEdit(outcome, None, spent)
