"""A plan from beginning to end: what is finished stays finished, the rest is handed to workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from palimpsest import processes
from palimpsest.benchmark.cluster import run_on_ray
from palimpsest.benchmark.folder import Finished, ResultsFolder, unit_counts
from palimpsest.benchmark.plan import Plan
from palimpsest.benchmark.summary import write_summary
from palimpsest.benchmark.units import WorkUnit
from palimpsest.benchmark.workers import OnFinished, run_locally
from palimpsest.errors import ConfigError

OnUnit = Callable[[WorkUnit, Finished, int, int], None]
"""Called with a unit, what became of it, how many are done and how many there are."""
OnStage = Callable[[WorkUnit, str, int, int], None]


@dataclass(frozen=True)
class PlanOutcome:
    """The outcome of running a plan.

    Arguments:
        counts: how many units stand where; see `folder.State`.
        failures: labels of failed units and why they failed.
    """

    counts: Mapping[str, int]
    failures: Sequence[tuple[WorkUnit, str]]


def run(
    plan: Plan,
    out: str | Path,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    workers: int | None = None,
    ray: str | None = None,
    on_unit: OnUnit | None = None,
    on_stage: OnStage | None = None,
) -> PlanOutcome:
    """Does every unit of a plan that is not done yet.

    Arguments:
        plan: what to do.
        out: a new folder; or with `resume` one that a run of this recipe has left.
        resume: go on with what is in `out`. A recipe that has changed meanwhile keeps the units it still has.
        retry_failed: try failed units again.
        workers: processes; one for every two processors when left out.
        ray: address of a Ray cluster instead of local processes, or `local`.
        on_unit, on_stage: told of finished units, and of what goes on inside of one.

    A unit that fails is recorded with its error and stops no other. Raises `OutputError` for a folder that cannot be
    used or a disk that refuses, `ConfigError` for a number of workers below one, and what `Plan.check_data` raises for
    data that are not there (where workers are elsewhere, their units fail); nothing is computed then.
    """
    if workers is not None and workers < 1:
        raise ConfigError("At least one worker is needed.", expected="1 or more", found=f"workers = {workers}")
    if ray is None:
        plan.check_data()
    folder = ResultsFolder(out, plan)
    if not resume and folder.path.exists():
        folder.prepare(resume=False)
    with folder.locked():
        folder.prepare(resume=True)
        folder.wait_for_orphans()
        if retry_failed:
            folder.forget_failures()
        done = sum(folder.finished(unit) is not None for unit in plan.units)

        def finished(unit: WorkUnit, what: Finished) -> None:
            nonlocal done
            folder.finish(unit, _with_account(folder, planned[unit.address], what))
            done += 1
            if on_unit:
                on_unit(unit, what, done, len(plan.units))

        planned = {unit.address: unit for unit in plan.units}
        try:
            # Units whose options are chosen among others come after these.
            while ready := _ready(folder, finished):
                if ray is not None:
                    run_on_ray(folder, ready, address=ray, workers=workers, on_finished=finished)
                else:
                    number = workers or max(1, processes.cores() // 2)
                    run_locally(folder, ready, workers=number, on_finished=finished, on_progress=on_stage or _silent)
        finally:
            write_summary(folder)
        ended = [(unit, folder.finished(unit)) for unit in plan.units]
        failures = [(unit, one.error or "") for unit, one in ended if one is not None and one.state == "failed"]
        return PlanOutcome(unit_counts(folder), failures)


def _ready(folder: ResultsFolder, finished: OnFinished) -> list[WorkUnit]:
    """Units that are not done and whose options are known; those for which nothing could be chosen are failed."""
    ready: list[WorkUnit] = []
    for unit in folder.plan.units:
        if folder.finished(unit) is None and all(folder.finished(other) for other in unit.waits_for()):
            try:
                ready.append(unit.resolved(folder.result_of))
            except ConfigError as error:
                finished(unit, Finished("failed", f"ConfigError: {error}"))
    return ready


def _with_account(folder: ResultsFolder, unit: WorkUnit, what: Finished) -> Finished:
    """Returns the outcome of a unit, with the grid of candidate options and the chosen ones."""
    account = None if unit.later is None else unit.later.account(folder.result_of)
    return what if account is None else replace(what, result={**what.result, "choice": account})


def _silent(_unit: WorkUnit, _stage: str, _done: int, _total: int) -> None:
    pass
