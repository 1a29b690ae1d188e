"""Worker processes on this machine: each does one unit after another; one that dies costs its unit a second try."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from palimpsest import processes
from palimpsest.benchmark.folder import UNITS, WORKERS, Finished, ResultsFolder
from palimpsest.benchmark.units import WorkUnit
from palimpsest.errors import OutputError

TRIES = 2
"""How often a unit is given to a worker that dies of it before it counts as failed."""
_LOOK_EVERY = 0.5

OnFinished = Callable[[WorkUnit, Finished], None]
OnProgress = Callable[[WorkUnit, str, int, int], None]


@dataclass
class _Worker:
    process: Any
    connection: Connection
    unit: WorkUnit | None = None


def run_locally(
    folder: ResultsFolder,
    units: Sequence[WorkUnit],
    *,
    workers: int,
    on_finished: OnFinished,
    on_progress: OnProgress,
) -> None:
    """Does all units with `workers` processes.

    A unit whose worker is killed, for want of memory for instance, is tried a second time from where it stopped.
    However this function ends, no worker is left behind.

    Raises `OutputError` when the disk refuses.
    """
    waiting, deaths = deque(units), Counter[str]()
    threads = max(1, processes.cores() // workers)
    pool = [_start(folder.path, threads) for _ in range(min(workers, len(units)))]
    try:
        for worker in pool:
            _give(worker, waiting)
        while any(worker.unit for worker in pool):
            ready = wait([worker.connection for worker in pool if worker.unit])
            for index, worker in enumerate(pool):
                if worker.unit is None or worker.connection not in ready:
                    continue
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    unit, worker.unit = worker.unit, None
                    deaths[unit.address] += 1
                    worker.process.join()
                    if deaths[unit.address] < TRIES:
                        waiting.appendleft(unit)
                    else:
                        how = f"its worker died {TRIES} times, the last time with exit code {worker.process.exitcode}"
                        on_finished(unit, Finished("failed", f"{how}; -9 is often want of memory"))
                    if waiting:
                        pool[index] = _start(folder.path, threads)
                        _give(pool[index], waiting)
                    continue
                if isinstance(message, Finished):
                    unit, worker.unit = worker.unit, None
                    on_finished(unit, message)
                    _give(worker, waiting)
                elif isinstance(message, BaseException):
                    raise message
                else:
                    on_progress(worker.unit, *message)
    finally:
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.join()
            worker.connection.close()


def _start(results: Path, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, results, threads, os.getpid()), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, waiting: deque[WorkUnit]) -> None:
    if waiting:
        worker.unit = waiting.popleft()
        worker.connection.send(worker.unit)


def _work(connection: Connection, results: Path, threads: int, parent: int) -> None:
    """Runs a worker process until its parent exits."""
    import signal

    # An interrupt from the keyboard reaches every process; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    import torch

    from palimpsest.benchmark.work import Desk

    # No more than OMP_NUM_THREADS allows: threads that wait for a core of others take many times as long.
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    desk = Desk(results)
    own = (results / WORKERS).open("a")
    fcntl.flock(own, fcntl.LOCK_SH)
    while True:
        try:
            unit: WorkUnit = connection.recv()
        except EOFError:
            return
        told = 0.0

        def tell(stage: str, done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told > _LOOK_EVERY:
                told = time.monotonic()
                connection.send((stage, done, total))

        try:
            connection.send(desk.do(unit, results / UNITS / unit.address, progress=tell))
        except OutputError as error:
            # With its cause it might not travel; what it says does.
            connection.send(OutputError(error.problem, found=error.found, where=error.where, remedy=error.remedy))
            return


def _leave_with(parent: int) -> None:
    """Ends this process when the one that started it is gone, however it went: nobody else writes into its folder."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)
