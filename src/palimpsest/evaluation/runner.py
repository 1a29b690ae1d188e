"""One evaluation from beginning to end: what is run, in which folder, and what comes out."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from palimpsest.answers import VERSION
from palimpsest.datasets import Dataset
from palimpsest.errors import ConfigError, DataError, OutputError, PalimpsestError
from palimpsest.evaluation import aggregate, drift
from palimpsest.evaluation.answers import BaseAnswers
from palimpsest.evaluation.catalogue import DEFAULT_SCORINGS, SCORINGS, find_measure, find_scoring
from palimpsest.evaluation.editor import Editor
from palimpsest.evaluation.examiner import Examiner, room_for
from palimpsest.evaluation.former import renamed
from palimpsest.evaluation.journal import Journal, Unit, read_run, write_last_status
from palimpsest.evaluation.ordinary import neutral_text_for
from palimpsest.evaluation.protocols import EditingProtocol, Single
from palimpsest.evaluation.records import ProbeResult, RunRecord, SequenceCheckpoint, Specification, Status
from palimpsest.evaluation.scoring import Scoring
from palimpsest.evaluation.work import Work
from palimpsest.files import expanded
from palimpsest.provenance import digest, hardware, now, peak_memory_bytes, versions
from palimpsest.requests import EditRequest
from palimpsest.stopwatch import Progress, Stopwatch, silent

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

# Present in every record, so that scripts can rely on them.
_STAGES = ("statistics", "targets", "solve", "evaluation", "base_answers", "perplexity")
_FACTS_AT_ONCE = 64


def evaluate(
    model: EditableModel,
    editor: Editor,
    dataset: Dataset | Sequence[EditRequest],
    *,
    protocol: EditingProtocol | None = None,
    num_edits: int | None = None,
    seed: int = 0,
    scorings: Sequence[str] = DEFAULT_SCORINGS,
    out: str | Path | None = None,
    resume: bool = False,
    neutral_text: Sequence[str] | None = None,
    forward_batch_size: int = 64,
    max_new_tokens: int | None = None,
    base: BaseAnswers | None = None,
    measures: Sequence[str] = (),
    progress: Progress = silent,
) -> RunRecord:
    """Edits facts and measures what became of them and of everything else.

    Arguments:
        model: the model; it is afterwards what it was before. Patches that are on it already belong to the
            base.
        editor: a method, or anything else with `name`, `resolve` and `edit`.
        dataset: the edits with their probes.
        protocol: `Single()` (the default), `Batch(...)` or `Sequential(...)`.
        num_edits: how many edits to draw, with `seed`; `None` takes all of them in their order.
        seed: of the draw.
        scorings: names of `SCORINGS`.
        out: a new folder that holds the run at every moment; without it the run lives in memory.
        resume: go on with the run in `out`, if there is one; nothing that is finished is computed again.
        neutral_text: sentences for perplexity; an empty list for none. `None` takes the data set's own; where it has
            none, and edits are not made one at a time, `ordinary.ORDINARY` for a decoder.
        forward_batch_size: rows per forward pass; changes memory, not results.
        max_new_tokens: tokens that are generated at most; `None` takes what the longest answer of any probe needs, and
            `models.generation.MARGIN` more.
        base: answers of the base model, to be shared between several evaluations of one model.
        measures: what else to measure, before and after; see `evaluation.measures`.
        progress: called as `progress(stage, done, total)`.

    An edit that fails with one of this package's errors is recorded and the run goes on; when all fail, the
    record's status is `failed`. Other exceptions propagate, with the status on disk.

    Raises what the editor's `check`, if it has one, raises when none of the edits passes it; `DataError` for more
    edits than there are, `ConfigError` for an unknown scoring or measure, or base answers
    of another model, `OutputError` for a folder that exists (without `resume`) or is another run's; all before
    any computing.
    """
    chosen = protocol or Single()
    edits = _sample(dataset, num_edits, seed)
    score_by = _chosen(scorings)
    further = {name: find_measure(name) for name in measures}
    for option, number in (("forward_batch_size", forward_batch_size), ("max_new_tokens", max_new_tokens)):
        if number is not None and number < 1:
            raise ConfigError(f"The option {option!r} is too small.", expected="1 or more", found=repr(number))
    sentences = drift.neutral_sentences(
        neutral_text_for(model, edits, chosen) if neutral_text is None else neutral_text
    )
    answers = base or BaseAnswers()
    answers.belong_to(model)
    room = room_for(model, edits.requests, max_new_tokens)
    config, preset = editor.resolve(model)
    _refuse_hopeless(editor, chosen, edits.requests)
    specification = Specification(
        method=editor.name,
        preset=None if preset is None else preset.name,
        config=_options(config),
        model=model.name,
        model_fingerprint=model.fingerprint(),
        stacked_on=model.weights.labels,
        chat=model.chat.to_dict() if model.chat is not None else None,
        dataset=edits.name,
        dataset_fingerprint=edits.fingerprint,
        protocol=chosen.name,
        protocol_options=chosen.options(),
        num_edits=len(edits),
        seed=seed,
        scorings=list(scorings),
        scoring_version=VERSION,
        max_new_tokens=room.tokens,
        neutral_text_fingerprint=digest(sentences) if sentences else None,
        perplexity_of="second halves" if model.is_encoder_decoder else "whole texts",
        measures=list(further),
        training=editor.training_cost(model),
        versions=versions(),
        hardware=hardware(),
        created=now(),
    )
    journal = Journal.start(None if out is None else expanded(out), specification, resume=resume)
    try:
        examiner = Examiner(model, answers, score_by, room=room, forward_batch_size=forward_batch_size)
        work = Work(model, editor, edits.requests, examiner, journal, sentences, forward_batch_size, progress, further)
        _ask_base(work, chosen)
        chosen.run(work)
        journal.put_in_order()
        status, failure = _final_status(journal, len(edits))
        record = _record(specification, journal, status, failure, len(sentences))
        journal.write_status(specification, status, error=failure, result=record.to_json())
    except KeyboardInterrupt:
        write_last_status(journal, specification, "cancelled", "interrupted")
        raise
    except BaseException as error:
        write_last_status(journal, specification, "failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        journal.close()
    return record


def load_run(folder: str | Path) -> RunRecord:
    """The record of a run from its folder, as far as it got.

    A run that was killed has the status `cancelled`. Raises `OutputError` for an invalid folder.
    """
    path = expanded(folder)
    specification, status, error = read_run(path)
    if status not in ("ok", "failed", "cancelled", "running"):
        raise OutputError("The run's status is invalid.", found=repr(status), where=str(path))
    journal = Journal(path)
    journal.read()
    specification = renamed(specification, (one for results in journal.results.values() for one in results))
    if status == "running":
        status, error = "cancelled", "the run did not come to its end; evaluate with resume to finish it"
    known: Status = "ok" if status == "ok" else "failed" if status == "failed" else "cancelled"
    sentences = journal.units["base"].num_edits if "base" in journal.units else 0
    return _record(specification, journal, known, error, sentences)


def _ask_base(work: Work, protocol: EditingProtocol) -> None:
    """The base model's answers and perplexity, before any edit; from the folder when it has them."""
    clock = Stopwatch()
    with clock.stage("base_answers"):
        work.journal.recall_base(work.examiner.base)
        waiting = protocol.unfinished(work.requests, work.journal)
        # In parts, each of which is kept: of a thousand facts all together take minutes.
        for start in range(0, max(1, len(waiting)), _FACTS_AT_ONCE):
            work.progress("base answers", start, len(waiting))
            work.examiner.prepare(waiting[start : start + _FACTS_AT_ONCE])
            if "base" not in work.journal.units:
                work.journal.keep_base(work.examiner.base)
        work.progress("base answers", len(waiting), len(waiting))
    if "base" not in work.journal.units:
        with clock.stage("perplexity"):
            before = work.perplexity()
        with clock.stage("measures"):
            measures = work.measured(None, work.requests)
        unit = Unit(
            unit="base", seconds=clock.seconds, num_edits=len(work.neutral_text), perplexity=before, measures=measures,
            peak_memory_bytes=peak_memory_bytes(),
        )  # fmt: skip
        work.journal.add(unit, [])


def _final_status(journal: Journal, num_edits: int) -> tuple[Status, str | None]:
    failures = [failure for unit in journal.units.values() for failure in unit.failed_edits]
    if sum(len(failure.edit_ids) for failure in failures) < num_edits:
        return "ok", None
    return "failed", f"No edit could be made. The first error: {failures[0].error}"


def _record(
    specification: Specification, journal: Journal, status: Status, error: str | None, sentences: int
) -> RunRecord:
    units = list(journal.units.values())
    probes = [result for name in journal.units for result in journal.results[name]]
    points = [unit for unit in units if unit.unit.startswith("checkpoint-")]
    final = _final(probes)
    scorings = specification.scorings
    made = [unit for unit in units if unit.edit_seconds or unit.failed_edits]
    seconds = _seconds(units)
    failures = [failure for unit in units for failure in unit.failed_edits]
    perplexity, notes = _perplexity(units, sentences)
    notes += [f"A damaged line: {one}; its unit is missing, or was computed again." for one in journal.damaged]
    notes += journal.notes
    if perplexity["before"] is not None and specification.perplexity_of == "second halves":
        notes.append("Perplexity is that of each neutral text's second half, with the first half given to the encoder.")
    if failures:
        count = sum(len(failure.edit_ids) for failure in failures)
        notes.append(f"{count} edit(s) could not be made; their probes count as failed and are in no mean.")
    sizes = [unit.patch_bytes for unit in (points[-1:] or units) if unit.patch_bytes is not None]
    is_sequential = specification.protocol == "sequential"
    tried = max((u.num_edits for u in made), default=0) if is_sequential else sum(u.num_edits for u in made)
    return RunRecord(
        specification=specification,
        status=status,
        error=error,
        probes=probes,
        scores=aggregate.scores(final, scorings),
        ceilings=aggregate.ceilings(final, scorings),
        immediate=_immediate(probes, scorings) if is_sequential else {},
        checkpoints=[_checkpoint(unit, journal.results[unit.unit], scorings) for unit in points],
        perplexity=perplexity,
        seconds=seconds,
        seconds_per_edit=sum(unit.edit_seconds for unit in made) / tried if tried else None,
        peak_memory_bytes=max((unit.peak_memory_bytes for unit in units), default=0),
        patch_bytes=round(sum(sizes) / len(sizes)) if sizes else None,
        measures=_measures(units),
        counts=aggregate.counts(final, scorings),
        unscored=aggregate.reasons(final, scorings),
        failed_edits=failures,
        notes=notes,
    )


def _final(probes: Iterable[ProbeResult]) -> list[ProbeResult]:
    """The results of the final phase; in a sequential run those of its last checkpoint."""
    final = [result for result in probes if result.phase == "final"]
    last = max((result.checkpoint or 0 for result in final), default=0)
    return [result for result in final if (result.checkpoint or 0) == last]


def _immediate(probes: Iterable[ProbeResult], scorings: Sequence[str]) -> Any:
    return aggregate.scores([result for result in probes if result.phase == "immediate"], scorings)


def _checkpoint(unit: Unit, results: list[ProbeResult], scorings: Sequence[str]) -> SequenceCheckpoint:
    return SequenceCheckpoint(
        num_edits=unit.num_edits,
        scores=aggregate.scores(results, scorings),
        perplexity=unit.perplexity,
        patch_norm=unit.patch_norm,
        counts=aggregate.counts(results, scorings),
    )


def _tested(units: Sequence[Unit]) -> list[Unit]:
    """The last checkpoint, or every patch that was undone after its test."""
    points = [unit for unit in units if unit.unit.startswith("checkpoint-")]
    return points[-1:] or [unit for unit in units if unit.unit != "base" and unit.patch_bytes is not None]


def _measures(units: Sequence[Unit]) -> dict[str, dict[str, float | None]]:
    before = next((unit.measures for unit in units if unit.unit == "base"), {})
    tested = [unit.measures for unit in _tested(units)]
    names = dict.fromkeys(name for measured in (before, *tested) for name in measured)
    after = {name: [one[name] for one in tested if name in one] for name in names}
    return {
        name: {"before": before.get(name), "after": statistics.mean(after[name]) if after[name] else None}
        for name in names
    }


def _perplexity(units: Sequence[Unit], sentences: int) -> tuple[dict[str, float | int | None], list[str]]:
    """Before, and after: under the last checkpoint's patch, or the mean over patches that were undone.

    The mean is what a collapse shows in, the median what a patch does as a rule.
    """
    before = next((unit.perplexity for unit in units if unit.unit == "base"), None)
    tested = _tested(units)
    after: float | None = None
    median: float | None = None
    notes = []
    if before is not None and tested:
        finite = [unit.perplexity for unit in tested if unit.perplexity is not None]
        if len(finite) == len(tested):
            after, median = statistics.mean(finite), statistics.median(finite)
        else:
            # A mean over those that survived would hide the collapse.
            notes.append(f"Perplexity is not finite after {len(tested) - len(finite)} of {len(tested)} patches.")
    return {"before": before, "after": after, "median": median, "n": sentences}, notes


def _seconds(units: Iterable[Unit]) -> dict[str, float]:
    stages = dict.fromkeys(_STAGES, 0.0)
    for unit in units:
        for name, spent in unit.seconds.items():
            stages[name] = stages.get(name, 0.0) + spent
    return {**stages, "total": sum(stages.values())}


def _sample(dataset: Dataset | Sequence[EditRequest], num_edits: int | None, seed: int) -> Dataset:
    whole = dataset if isinstance(dataset, Dataset) else Dataset("edits", tuple(dataset))
    if not whole.requests:
        raise DataError("There is nothing to evaluate.", expected="at least one edit", found="none")
    ids = [request.id for request in whole.requests]
    if len(set(ids)) < len(ids):
        repeated = next(one for one in ids if ids.count(one) > 1)
        raise DataError(
            "Two edits have the same id.", expected="a different id for every edit", found=repr(repeated),
            remedy="remove one of them; identical edits without ids of their own get the same one",
        )  # fmt: skip
    return whole if num_edits is None else whole.sample(num_edits, seed)


def _refuse_hopeless(editor: Editor, protocol: EditingProtocol, requests: Sequence[EditRequest]) -> None:
    """Raises when the editor already knows that it can do none of it; some that fail are recorded as they come."""
    first: PalimpsestError | None = None
    for group in protocol.groups(requests):
        try:
            editor.check(group)
        except PalimpsestError as error:
            first = first or error
        else:
            return
    if first is not None:
        raise first


def _chosen(scorings: Sequence[str]) -> dict[str, Scoring]:
    if not scorings:
        raise ConfigError("No scoring is chosen.", expected=f"some of {', '.join(SCORINGS)}", found="none")
    return {name: find_scoring(name) for name in scorings}


def _options(config: Any) -> dict[str, Any]:
    options = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config or {})
    return {str(name): value for name, value in options.items()}
