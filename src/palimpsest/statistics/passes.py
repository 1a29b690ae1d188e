"""One pass over a text: keys of several points at once, window by window, with checkpoints between the windows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palimpsest.files import shaped
from palimpsest.models import Point
from palimpsest.statistics import rows as reading
from palimpsest.statistics.blocks import empty_moment, moment_of
from palimpsest.statistics.cache import Cache, CacheEntry
from palimpsest.statistics.convergence import direction_error, is_due
from palimpsest.statistics.moments import SecondMoment
from palimpsest.statistics.vectors import KEYS, Vectors
from palimpsest.stopwatch import Progress

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

_PROBES = 32


@dataclass(frozen=True)
class KeyStatistics:
    """The second moment of what flows through a point.

    Arguments:
        point: where.
        moment: the sum and the number of tokens.
        error: estimated relative error of the direction of C^-1 k for keys k of the text; `None` where it is unknown
            (too few tokens to compare halves, a singular half, or a published file).
        identity: everything that determined it.
        is_cached: whether it was found and not computed.
    """

    point: Point
    moment: SecondMoment
    error: float | None
    identity: dict[str, Any]
    is_cached: bool = False


@dataclass
class Running:
    """One point's sums while a pass goes on: those of the even and of the odd windows."""

    point: Point
    identity: dict[str, Any]
    halves: tuple[SecondMoment, SecondMoment]
    probes: Tensor
    windows_done: int = 0

    @property
    def count(self) -> int:
        """Tokens so far."""
        return self.halves[0].count + self.halves[1].count

    def error(self) -> float | None:
        """How far the halves disagree; see `convergence`."""
        return direction_error(*self.halves, self.probes)


@dataclass
class Checkpoints:
    """Sums of unfinished passes on disk, one file a point, written when enough time has gone by."""

    cache: Cache | None
    seconds: float
    saved_at: float = field(default_factory=time.monotonic)

    def restored(self, running: Running) -> Running:
        """A point as its checkpoint has it, if there is one."""
        width, shape = running.halves[0].width, running.halves[0].shape

        def moment(entry: CacheEntry, name: str) -> SecondMoment:
            total = shaped(entry.tensors[name], *shape, name=name)
            return moment_of(total, entry.number("counts", name))

        def made(entry: CacheEntry) -> Running:
            probes = shaped(entry.tensors["probes"], None, width, name="probes").double()
            halves = moment(entry, "even"), moment(entry, "odd")
            return replace(running, halves=halves, probes=probes, windows_done=entry.number("windows_done"))

        found = self.cache.read(_partial(running.identity), made) if self.cache else None
        return found or running

    def save_in_time(self, active: Sequence[Running]) -> None:
        """Writes the sums, when it is time to."""
        if self.cache is None or time.monotonic() - self.saved_at < self.seconds:
            return
        for running in active:
            even, odd = running.halves
            tensors = {"even": even.sum(), "odd": odd.sum(), "probes": running.probes}
            counts = {"even": even.count, "odd": odd.count}
            self.cache.write(_partial(running.identity), tensors, counts=counts, windows_done=running.windows_done)
        self.saved_at = time.monotonic()

    def finish(self, running: Running, error: float | None) -> KeyStatistics:
        """Keeps a point's result instead of its checkpoint."""
        even, odd = running.halves
        result = KeyStatistics(running.point, even.merge(odd), error, running.identity)
        if self.cache is not None:
            moment = result.moment
            self.cache.write(running.identity, {"sum": moment.sum()}, count=moment.count, error=error)
            self.cache.drop(_partial(running.identity))
        return result


def run_pass(
    model: EditableModel,
    active: list[Running],
    windows: Sequence[Sequence[tuple[int, ...]]],
    tolerance: float | None,
    checkpoints: Checkpoints,
    progress: Progress,
    vectors: Vectors = KEYS,
) -> list[KeyStatistics]:
    """Reads window after window until every point is done; those restored from a checkpoint join in at their place."""
    done: list[KeyStatistics] = []
    total = sum(len(row) for window in windows for row in window)
    seen = 0
    for index, window in enumerate(windows):
        reached = [running for running in active if running.windows_done == index]
        before = {running.point: running.count for running in reached}
        if reached:
            _add_window(model, window, index, reached, vectors)
        seen += sum(map(len, window))
        is_last = index + 1 == len(windows)
        for running in reached:
            is_check = tolerance is not None and is_due(before[running.point], running.count, running.halves[0].width)
            error = running.error() if is_check or is_last else None
            if is_last or (tolerance is not None and error is not None and error <= tolerance):
                done.append(checkpoints.finish(running, error))
                active.remove(running)
        progress("statistics", seen if active else total, total)
        if not active:
            break
        checkpoints.save_in_time([running for running in active if running.windows_done == index + 1])
    return done


def _add_window(
    model: EditableModel, window: Sequence[tuple[int, ...]], index: int, reached: Sequence[Running], vectors: Vectors
) -> None:
    """Adds a window's keys to the even or the odd half of every point."""
    for rows in reading.batches(window, vectors.tokens_per_batch(model, reading.TOKENS_PER_BATCH)):
        found = dict(vectors.read(model, rows, [running.point for running in reached]))
        for running in reached:
            keys, where = found.pop(running.point)
            running.probes = _with_probes(running.probes, keys)
            running.halves[index % 2].add(keys, where=where)
    for running in reached:
        running.windows_done = index + 1


def _with_probes(probes: Tensor, keys: Tensor) -> Tensor:
    """The keys that convergence is judged by: the first ones, spread evenly over their batch."""
    missing = _PROBES - len(probes)
    if missing <= 0:
        return probes
    chosen = keys[:: max(1, len(keys) // missing)][:missing]
    return torch.cat([probes, chosen.double().cpu()])


def start(point: Point, known: dict[str, Any], width: int, blocks: int = 1) -> Running:
    """A point of which nothing has been read yet."""
    probes = torch.zeros(0, width, dtype=torch.float64)
    return Running(point, known, (empty_moment(width, blocks), empty_moment(width, blocks)), probes)


def _partial(known: dict[str, Any]) -> dict[str, Any]:
    return {"derived": "checkpoint", **known}
