"""Every method on the same facts, several methods at a time where there are cores for it."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest import processes
from palimpsest.cli import inputs
from palimpsest.errors import ModelError, PalimpsestError

if TYPE_CHECKING:
    from palimpsest.evaluation import BaseAnswers, RunRecord
    from palimpsest.models import EditableModel
    from palimpsest.requests import EditRequest
    from palimpsest.stopwatch import Progress

# One is a building set, which its variants already show; the other trains slots for many facts at once, for minutes.
NOT_FOR_ONE_FACT = ("f-learning", "calinet")
MOST_WORKERS = 4
# Starting another process costs what some twenty edits cost.
WORTH_A_PROCESS = 20
_PATIENCE = 1.0


@dataclass(frozen=True)
class Job:
    """The input that every method gets.

    Arguments:
        model: the model's name, as it was typed.
        dataset: what to call the facts in the records.
        requests: the facts.
        neutral_text: sentences for perplexity.
        seed: of the methods.
        max_new_tokens: length of an answer; what the longest one needs if left out.
        out: the folder with one run a method.
        placement: how every process loads the model.
    """

    model: str
    dataset: str
    requests: tuple[EditRequest, ...]
    neutral_text: tuple[str, ...]
    seed: int
    max_new_tokens: int | None
    out: Path
    placement: inputs.Placement = inputs.Placement()


@dataclass
class Comparison:
    """Records in the methods' order, the methods that could not run with the reason, and how many ran at a time."""

    records: list[RunRecord]
    left_out: dict[str, str]
    num_workers: int


def compare(model: EditableModel, job: Job, progress: Progress, *, num_workers: int | None = None) -> Comparison:
    """Edits the facts with every registered method, one fact at a time.

    Arguments:
        num_workers: how many processes; left out, one a core when a small model and enough work make it worth it.
    """
    from palimpsest.evaluation import load_run
    from palimpsest.methods import METHODS

    names = [name for name in METHODS if name not in NOT_FOR_ONE_FACT]
    workers = num_workers or _num_workers(model, len(names) * len(job.requests))
    done = dict.fromkeys(names, 0)

    def report(name: str, count: int) -> None:
        done[name] = count
        progress(name, sum(done.values()), len(names) * len(job.requests))

    reasons = _one_by_one(model, job, names, report) if workers == 1 else _at_once(job, names, workers, report)
    records = [load_run(job.out / name) for name in names if name not in reasons]
    if workers > 1:
        for record in records:
            record.notes.append(f"Timed with {workers} methods at work at a time, on one thread each.")
    return Comparison(records, {name: reasons[name] for name in names if name in reasons}, workers)


def _num_workers(model: EditableModel, num_edits: int) -> int:
    if not inputs.is_small(model):
        return 1
    cores = processes.cores()
    return max(1, min(cores, MOST_WORKERS, num_edits // WORTH_A_PROCESS))


def _one_by_one(
    model: EditableModel, job: Job, names: Sequence[str], report: Callable[[str, int], None]
) -> dict[str, str]:
    from palimpsest.evaluation import BaseAnswers

    base = BaseAnswers()
    reasons = {name: _run(model, job, name, base, report) for name in names}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _at_once(job: Job, names: Sequence[str], workers: int, report: Callable[[str, int], None]) -> dict[str, str]:
    context = multiprocessing.get_context("spawn")
    waiting: Any = context.Queue()
    news: Any = context.Queue()
    for name in [*names, *[None] * workers]:
        waiting.put(name)
    processes = [context.Process(target=_work, args=(job, waiting, news), daemon=True) for _ in range(workers)]
    reasons: dict[str, str] = {}
    left = set(names)
    try:
        for process in processes:
            process.start()
        while left:
            try:
                name, count, reason = news.get(timeout=_PATIENCE)
            except queue.Empty:
                if not any(process.is_alive() for process in processes):
                    raise ModelError(
                        "A process that compared methods ended early.",
                        expected="enough memory for several copies of the model",
                        found=f"exit codes {[process.exitcode for process in processes]}",
                        remedy="close other programs and run it again",
                    ) from None
                continue
            if count is not None:
                report(name, count)
                continue
            left.discard(name)
            if reason is not None:
                reasons[name] = reason
    finally:
        for process in processes:
            if left:
                process.terminate()
            if process.pid is not None:
                process.join()
    return reasons


def _work(job: Job, waiting: Any, news: Any) -> None:
    """Runs one process, which takes names until none are left. The parent ends it on an interrupt."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from palimpsest.evaluation import BaseAnswers

    model, base = inputs.load_model(job.model, job.placement), BaseAnswers()

    def report(name: str, count: int) -> None:
        news.put((name, count, None))

    while (name := waiting.get()) is not None:
        news.put((name, None, _run(model, job, name, base, report)))


def _run(
    model: EditableModel, job: Job, name: str, base: BaseAnswers, report: Callable[[str, int], None]
) -> str | None:
    """One method on all facts; its record goes to disk. Returns why it could not run, if so."""
    from palimpsest.datasets import Dataset
    from palimpsest.evaluation import Single, evaluate
    from palimpsest.methods import method

    def advance(_stage: str, done: int, total: int) -> None:
        report(name, done if total == len(job.requests) else 0)

    try:
        editor = method(name, seed=job.seed)
        editor.check(job.requests[:1])
        evaluate(
            model,
            editor,
            Dataset(job.dataset, job.requests),
            protocol=Single(),
            seed=job.seed,
            out=job.out / name,
            neutral_text=job.neutral_text,
            max_new_tokens=job.max_new_tokens,
            base=base,
            progress=advance,
        )
    except (PalimpsestError, ImportError, AttributeError) as error:
        # A method that must be trained first, or is not part of this installation, is named and passed over.
        report(name, len(job.requests))
        return error.problem if isinstance(error, PalimpsestError) else str(error)
    return None
