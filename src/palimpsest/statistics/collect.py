"""Second moments of the keys at several points, in one pass over a text that ends at the deepest point.

    moments = collect(model, [Point("mlp.down", layer, "input") for layer in (2, 3, 4)], open_text("wikipedia"))

Every point stops by itself, at the first check at which its own error is small enough. So what is found for one layer
does not depend on which others were asked for with it, and a layer that is there already is not computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.models.hooks import Point, captured
from palimpsest.models.linear import features
from palimpsest.models.tokens import Batch
from palimpsest.statistics import rows as reading
from palimpsest.statistics.cache import Cache, identity
from palimpsest.statistics.convergence import direction_error, is_due
from palimpsest.statistics.moments import SecondMoment
from palimpsest.statistics.published import PublishedMoments
from palimpsest.statistics.text import Text
from palimpsest.stopwatch import Progress, silent

if TYPE_CHECKING:
    from palimpsest.models.editable import EditableModel

TOLERANCE = 0.25
"""Error of the direction of C^-1 k at which a second moment counts as converged; see `convergence`."""

LONGEST_ROW = 1024
"""Tokens of a row, where the model's context allows that many."""

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
class _Running:
    """One point's sums while a pass goes on: those of the even and of the odd windows."""

    point: Point
    identity: dict[str, Any]
    halves: tuple[SecondMoment, SecondMoment]
    probes: Tensor
    windows_done: int = 0

    @property
    def count(self) -> int:
        return self.halves[0].count + self.halves[1].count

    def error(self) -> float | None:
        return direction_error(*self.halves, self.probes)


@dataclass
class _Checkpoints:
    """Sums of unfinished passes on disk, one file a point, written when enough time has gone by."""

    cache: Cache | None
    seconds: float
    saved_at: float = field(default_factory=time.monotonic)

    def restore(self, running: _Running) -> None:
        entry = self.cache.read(_partial(running.identity)) if self.cache else None
        if entry is not None:
            counts = entry.record["counts"]
            even, odd = (SecondMoment.from_sum(entry.tensors[name], counts[name]) for name in ("even", "odd"))
            running.halves, running.probes = (even, odd), entry.tensors["probes"]
            running.windows_done = entry.record["windows_done"]

    def save_in_time(self, active: Sequence[_Running]) -> None:
        if self.cache is None or time.monotonic() - self.saved_at < self.seconds:
            return
        for running in active:
            even, odd = running.halves
            tensors = {"even": even.sum(), "odd": odd.sum(), "probes": running.probes}
            counts = {"even": even.count, "odd": odd.count}
            self.cache.write(_partial(running.identity), tensors, counts=counts, windows_done=running.windows_done)
        self.saved_at = time.monotonic()

    def finish(self, running: _Running, error: float | None) -> KeyStatistics:
        even, odd = running.halves
        result = KeyStatistics(running.point, even.merge(odd), error, running.identity)
        if self.cache is not None:
            moment = result.moment
            self.cache.write(running.identity, {"sum": moment.sum()}, count=moment.count, error=error)
            self.cache.drop(_partial(running.identity))
        return result


@torch.no_grad()
def collect(
    model: EditableModel,
    points: Sequence[Point],
    text: Text | PublishedMoments,
    *,
    max_tokens: int | None = None,
    tolerance: float | None = TOLERANCE,
    row_length: int | None = None,
    cache: Cache | None = None,
    checkpoint_seconds: float = 60.0,
    progress: Progress = silent,
) -> dict[Point, KeyStatistics]:
    """Second moments at the points, of the base model: patches that are on it are set aside meanwhile.

    One pass reads the text once for all points that are not in the cache. A row ends at the context's end, padding is
    masked, and every token counts once, a start token included. An interrupted pass goes on from its last checkpoint
    and ends with the same bits.

    Arguments:
        points: inputs of linear sites, `Point("mlp.down", layer, "input")`.
        text: see `open_text`. Files published for ROME and MEMIT are read instead of computed.
        max_tokens: where to stop at the latest; left out, 64 for every dimension of the widest key.
        tolerance: the error at which a point is done (checked at 8, 12, 16, 24, ... tokens for every dimension of its
            key); `None` to read all `max_tokens` tokens, the same for every point.
        row_length: tokens of the longest row; left out, 1,024 or the model's context.
        cache: where results and checkpoints are kept; left out, nowhere.
        checkpoint_seconds: an interruption loses no more than this and the window under way.
        progress: told "statistics" with the tokens done and `max_tokens`.

    Raises `DataError` before anything is computed when the text cannot be read or is too short, and at once when a
    key is not finite, naming site, layer and token.
    """
    if isinstance(text, PublishedMoments):
        return {point: KeyStatistics(point, *text.read(model, point), is_cached=True) for point in points}
    widths = {point: _width(model, point) for point in points}
    max_tokens = max_tokens or reading.DEFAULT * max(widths.values())
    row_length = min(row_length or LONGEST_ROW, model.context_length or LONGEST_ROW)
    identities = {
        point: identity(model, point, text, max_tokens=max_tokens, tolerance=tolerance, row_length=row_length)
        for point in points
    }
    found = {point: _cached(cache, point, identities[point]) for point in points}
    missing = [point for point, known in found.items() if known is None]
    if missing:
        at_least = reading.MINIMUM * max(widths.values())
        rows = reading.read_rows(model, text, max_tokens=max_tokens, at_least=at_least, row_length=row_length)
        checkpoints = _Checkpoints(cache, checkpoint_seconds)
        active = [_start(point, identities[point], widths[point]) for point in missing]
        for running in active:
            checkpoints.restore(running)
        with model.weights.without_changes():
            done = _pass(model, active, reading.windows(rows, max_tokens), tolerance, checkpoints, progress)
        found |= {one.point: one for one in done}
    return {point: known for point, known in found.items() if known is not None}


def _pass(
    model: EditableModel,
    active: list[_Running],
    windows: Sequence[Sequence[tuple[int, ...]]],
    tolerance: float | None,
    checkpoints: _Checkpoints,
    progress: Progress,
) -> list[KeyStatistics]:
    """Reads window after window until every point is done; those restored from a checkpoint join in at their place."""
    done: list[KeyStatistics] = []
    total = sum(len(row) for window in windows for row in window)
    seen = 0
    for index, window in enumerate(windows):
        reached = [running for running in active if running.windows_done == index]
        before = {running.point: running.count for running in reached}
        if reached:
            _add_window(model, window, index, reached)
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
    model: EditableModel, window: Sequence[tuple[int, ...]], index: int, reached: Sequence[_Running]
) -> None:
    """Adds a window's keys to the even or the odd half of every point."""
    for rows in reading.batches(window):
        batch = model.batch(rows)
        with captured(model.sites, [running.point for running in reached], stops=True) as found:
            model.forward(batch)
        places = batch.attention_mask.nonzero()
        for running in reached:
            keys = found.pop(running.point)[places[:, 0], places[:, 1]]
            running.probes = _with_probes(running.probes, keys)
            running.halves[index % 2].add(keys, where=_namer(model, running.point, batch, places))
    for running in reached:
        running.windows_done = index + 1


def _with_probes(probes: Tensor, keys: Tensor) -> Tensor:
    """The keys that convergence is judged by: the first ones, spread evenly over their batch."""
    missing = _PROBES - len(probes)
    if missing <= 0:
        return probes
    chosen = keys[:: max(1, len(keys) // missing)][:missing]
    return torch.cat([probes, chosen.double().cpu()])


def _namer(model: EditableModel, point: Point, batch: Batch, places: Tensor) -> Callable[[int], str]:
    """From a row of keys to where it comes from, for a message."""

    def name(row: int) -> str:
        line, column = places[row].tolist()
        ids = batch.input_ids[line, max(0, column - 5) : column + 1].tolist()
        token, around = model.tokenizer.decode(ids[-1:]), model.tokenizer.decode(ids)
        return f"site {point.site}, layer {point.layer}, token {token!r} at the end of {around!r}"

    return name


def _start(point: Point, known: dict[str, Any], width: int) -> _Running:
    probes = torch.zeros(0, width, dtype=torch.float64)
    return _Running(point, known, (SecondMoment(width), SecondMoment(width)), probes)


def _cached(cache: Cache | None, point: Point, known: dict[str, Any]) -> KeyStatistics | None:
    entry = cache.read(known) if cache else None
    if entry is None:
        return None
    moment = SecondMoment.from_sum(entry.tensors["sum"], entry.record["count"])
    return KeyStatistics(point, moment, entry.record["error"], known, is_cached=True)


def _partial(known: dict[str, Any]) -> dict[str, Any]:
    return {"derived": "checkpoint", **known}


def _width(model: EditableModel, point: Point) -> int:
    """Length of the keys at a point. Raises `ConfigError` for a point that no linear site reads."""
    module = model.sites.module(point.site, point.layer)
    if point.side != "input" or not model.sites.is_linear(module):
        raise ConfigError(
            "There are no keys at this point.",
            expected="the input of a linear site: mlp.down, attn.out, ...",
            found=f"the {point.side} of {point.site}",
        )
    return features(module)[1]
