"""The three protocols: single, batch, sequential. The only loops over edits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from palimpsest.errors import ConfigError
from palimpsest.evaluation.journal import Journal, Unit
from palimpsest.evaluation.overlap import EditedFacts
from palimpsest.evaluation.records import FailedEdit, ProbeResult
from palimpsest.evaluation.running import RunningPatch
from palimpsest.evaluation.work import AttemptedEdit, Work, attempted
from palimpsest.provenance import peak_memory_bytes
from palimpsest.stopwatch import Stopwatch, silent

if TYPE_CHECKING:
    from palimpsest.requests import EditRequest

SAVE_EVERY = 10


class EditingProtocol(ABC):
    """A way to make and test many edits: a frozen dataclass whose fields are its options."""

    name: ClassVar[str]

    def options(self) -> dict[str, Any]:
        """Its options, JSON-ready: the fields of the dataclass."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @abstractmethod
    def groups(self, requests: Sequence[EditRequest]) -> list[Sequence[EditRequest]]:
        """The edits as they go into one call each."""

    @abstractmethod
    def unfinished(self, requests: Sequence[EditRequest], journal: Journal) -> list[EditRequest]:
        """The edits that some unit of work still has to test."""

    @abstractmethod
    def run(self, work: Work) -> None:
        """Does every unit of work that is not in the journal yet, and puts it there."""


@dataclass(frozen=True)
class Single(EditingProtocol):
    """Edit one fact, test it, undo it; then the next."""

    name: ClassVar[str] = "single"

    def groups(self, requests: Sequence[EditRequest]) -> list[Sequence[EditRequest]]:
        """See `EditingProtocol.groups`."""
        return _split(requests, 1)

    def unfinished(self, requests: Sequence[EditRequest], journal: Journal) -> list[EditRequest]:
        """See `EditingProtocol.unfinished`."""
        return [request for index, request in enumerate(requests) if f"edit-{index}" not in journal.units]

    def run(self, work: Work) -> None:
        """See `EditingProtocol.run`."""
        for index, request in enumerate(work.requests):
            if f"edit-{index}" not in work.journal.units:
                edit_and_undo(work, f"edit-{index}", [request])
            work.progress("edits", index + 1, len(work.requests))


@dataclass(frozen=True)
class Batch(EditingProtocol):
    """Edit several facts in one call, test them all, undo them; then the next batch.

    Arguments:
        batch_size: edits per call; `None` puts all of them into one.
    """

    batch_size: int | None = None
    name: ClassVar[str] = "batch"

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            _require_positive(self.batch_size, "batch_size", self.name)

    def groups(self, requests: Sequence[EditRequest]) -> list[Sequence[EditRequest]]:
        """See `EditingProtocol.groups`."""
        return _split(requests, self.batch_size)

    def unfinished(self, requests: Sequence[EditRequest], journal: Journal) -> list[EditRequest]:
        """See `EditingProtocol.unfinished`."""
        groups = enumerate(self.groups(requests))
        return [request for index, group in groups if f"batch-{index}" not in journal.units for request in group]

    def run(self, work: Work) -> None:
        """See `EditingProtocol.run`."""
        done = 0
        for index, group in enumerate(self.groups(work.requests)):
            if f"batch-{index}" not in work.journal.units:
                edit_and_undo(work, f"batch-{index}", group, EditedFacts(group))
            done += len(group)
            work.progress("edits", done, len(work.requests))


@dataclass(frozen=True)
class Sequential(EditingProtocol):
    """One edit after another on the same model, each on top of all before.

    Right after each edit its own reliability and generality are tested (`immediate`); at each checkpoint, and
    at the end, everything about all edits so far (`final`: retention).

    With a folder, the running patch is saved at checkpoints and at least every ten edits, and a resumed run
    goes on from the last one, and from the state that the method had then: edits after it are computed again.
    A state that cannot be saved, and patches that do not add up to one, cannot be kept midway: then a resumed
    run makes the edits again from the first one, but tests nothing twice.

    Arguments:
        checkpoints: numbers of edits; those beyond the end are not reached. With a `batch_size`, a checkpoint
            is the end of the batch that reaches it.
        batch_size: edits per call.
    """

    checkpoints: tuple[int, ...] = (1, 10, 100, 1000)
    batch_size: int = 1
    name: ClassVar[str] = "sequential"

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoints", tuple(sorted(set(self.checkpoints))))
        if not self.checkpoints:
            raise ConfigError(
                "The sequential protocol has no checkpoints.",
                expected="at least one number of edits, such as (1, 10, 100)",
                found="none",
                where="option checkpoints",
                remedy="leave the option out for its default",
            )
        for point in self.checkpoints:
            _require_positive(point, "checkpoints", self.name)
        _require_positive(self.batch_size, "batch_size", self.name)

    def groups(self, requests: Sequence[EditRequest]) -> list[Sequence[EditRequest]]:
        """See `EditingProtocol.groups`."""
        return _split(requests, self.batch_size)

    def unfinished(self, requests: Sequence[EditRequest], journal: Journal) -> list[EditRequest]:
        """See `EditingProtocol.unfinished`."""
        return [] if f"checkpoint-{len(requests)}" in journal.units else list(requests)

    def run(self, work: Work) -> None:
        """See `EditingProtocol.run`."""
        journal, total = work.journal, len(work.requests)
        if not self.unfinished(work.requests, journal):
            return
        segments = [unit for name, unit in journal.units.items() if name.startswith("edits-")]
        recorded = max((unit.num_edits for unit in segments), default=0)
        stored = max((unit for unit in segments if unit.is_stored), key=lambda unit: unit.num_edits, default=None)
        done = stored.num_edits if stored else 0
        state: Any = None
        with RunningPatch(work.model, work.editor.name) as running:
            if stored:
                running.restore(journal.recall_patch(stored))
                state = journal.recall_state(stored, work.editor.State)
                self._test(work, running, done)
            segment = _Segment(done)
            for group in self.groups(work.requests[done:]):
                attempt = attempted(work, group, state, segment.clock)
                if attempt.outcome is not None:
                    attempt.error = running.add(attempt.outcome.patch)
                if attempt.outcome is not None and attempt.error is None:
                    state = attempt.outcome.state
                done += len(group)
                # Edits that are only made again, because they could not be stored, were tested before.
                if done > recorded:
                    segment.take(work, group, attempt, done)
                    if self._is_checkpoint(done, len(group), total) or done - segment.start >= SAVE_EVERY:
                        segment.close(work, running, done, state)
                        segment = _Segment(done)
                else:
                    segment = _Segment(done)
                if self._is_checkpoint(done, len(group), total):
                    self._test(work, running, done)
                work.progress("edits", done, total)

    def _is_checkpoint(self, done: int, step: int, total: int) -> bool:
        return done == total or any(done - step < point <= done for point in self.checkpoints)

    def _test(self, work: Work, running: RunningPatch, done: int) -> None:
        """Tests all edits so far, unless that is done or no checkpoint is due."""
        name = f"checkpoint-{done}"
        step = (done - 1) % self.batch_size + 1
        if name in work.journal.units or not self._is_checkpoint(done, step, len(work.requests)):
            return
        clock = Stopwatch()
        so_far = work.requests[:done]
        lost = {
            edit: failure.error
            for unit in work.journal.units.values()
            for failure in unit.failed_edits
            for edit in failure.edit_ids
        }
        facts = EditedFacts(request for request in so_far if request.id not in lost)
        with clock.stage("evaluation"):
            made = [request for request in so_far if request.id not in lost]
            asked = work.examiner.ask(made, edited=facts, checkpoint=done)
            for request in so_far:
                if request.id in lost:
                    asked += work.examiner.failed([request], lost[request.id], edited=facts, checkpoint=done)
        with clock.stage("perplexity"):
            after = work.perplexity()
        with clock.stage("measures"):
            measures = work.measured(running.patch(), so_far)
        unit = Unit(
            unit=name,
            seconds=clock.seconds,
            num_edits=done,
            perplexity=after,
            measures=measures,
            patch_bytes=running.num_bytes,
            patch_norm=running.norm,
            peak_memory_bytes=peak_memory_bytes(),
        )
        work.journal.add(unit, asked)


@dataclass
class _Segment:
    """Sequential edits since the last save: they become one unit."""

    start: int
    clock: Stopwatch = field(default_factory=Stopwatch)
    edit_seconds: float = 0.0
    results: list[ProbeResult] = field(default_factory=list)
    failed: list[FailedEdit] = field(default_factory=list)

    def take(self, work: Work, group: Sequence[EditRequest], attempt: AttemptedEdit, done: int) -> None:
        """Tests edits right after they were made."""
        self.edit_seconds += attempt.seconds
        if attempt.error is None:
            with self.clock.stage("evaluation"):
                self.results += work.examiner.ask(group, phase="immediate", checkpoint=done)
        else:
            self.failed.append(FailedEdit(edit_ids=[request.id for request in group], error=attempt.error))
            self.results += work.examiner.failed(group, attempt.error, phase="immediate", checkpoint=done)

    def close(self, work: Work, running: RunningPatch, done: int, state: Any) -> None:
        """Saves the running patch, then the unit that refers to it, then drops the patch before."""
        is_stored = running.is_storable() and (state is None or hasattr(state, "save"))
        sum_so_far = running.patch() if is_stored else None
        with self.clock.stage("saving"):
            name = work.journal.keep_patch(sum_so_far, done, state) if sum_so_far is not None else None
        unit = Unit(
            unit=f"edits-{self.start + 1}-{done}",
            seconds=self.clock.seconds,
            edit_seconds=self.edit_seconds,
            num_edits=done,
            peak_memory_bytes=peak_memory_bytes(),
            failed_edits=self.failed,
            patch=name,
            is_stored=is_stored,
        )
        work.journal.add(unit, self.results)
        work.journal.drop_patches(but=name)


def edit_and_undo(work: Work, name: str, requests: Sequence[EditRequest], edited: EditedFacts | None = None) -> None:
    """One unit of work: makes edits in one call, tests them, undoes them, and keeps what came of it in the journal.

    Arguments:
        work: what the protocol works with.
        name: what the journal calls the unit; a unit that stands there is not made again.
        requests: the edits.
        edited: facts whose probes are left out, since this unit edits them too.
    """
    clock = Stopwatch()
    attempt = attempted(work, requests, None, clock, work.progress if len(requests) > 1 else silent)
    unit = Unit(unit=name, num_edits=len(requests), edit_seconds=attempt.seconds)
    if attempt.outcome is None:
        reason = attempt.error or ""
        results = work.examiner.failed(requests, reason, edited=edited)
        unit.failed_edits = [FailedEdit(edit_ids=[request.id for request in requests], error=reason)]
    else:
        with work.model.patched(attempt.outcome.patch):
            with clock.stage("evaluation"):
                results = work.examiner.ask(requests, edited=edited)
            with clock.stage("perplexity"):
                unit.perplexity = work.perplexity()
            with clock.stage("measures"):
                unit.measures = work.measured(attempt.outcome.patch, requests)
        unit.patch_bytes = attempt.outcome.patch.num_bytes
    unit.seconds, unit.peak_memory_bytes = clock.seconds, peak_memory_bytes()
    work.journal.add(unit, results)


def _split(requests: Sequence[EditRequest], size: int | None) -> list[Sequence[EditRequest]]:
    step = size or max(1, len(requests))
    return [requests[start : start + step] for start in range(0, len(requests), step)]


def _require_positive(value: object, option: str, protocol: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(
            f"The option {option!r} of the {protocol} protocol has an unusable value.",
            expected="whole numbers from 1 on",
            found=repr(value),
            where=f"option {option}",
        )
