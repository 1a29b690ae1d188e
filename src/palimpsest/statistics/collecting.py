"""Second moments of the keys at several points, in one pass over a text that ends at the deepest point.

    moments = collect(model, [Point("mlp.down", layer, "input") for layer in (2, 3, 4)], open_text("wikipedia"))

Every point stops on its own, at the first check at which its error is small enough. So what is found for one layer
does not depend on which others were asked for with it, and a layer that is there already is not computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from palimpsest.errors import ConfigError
from palimpsest.files import shaped
from palimpsest.models import Point
from palimpsest.statistics import rows as reading
from palimpsest.statistics.blocks import empty_moment, moment_of
from palimpsest.statistics.cache import Cache, CacheEntry
from palimpsest.statistics.passes import Checkpoints, KeyStatistics, run_pass, start
from palimpsest.statistics.published import PublishedMoments
from palimpsest.statistics.text import Text
from palimpsest.statistics.vectors import KEYS, Vectors
from palimpsest.statistics.writing import WrittenText, computing_fast
from palimpsest.stopwatch import Progress, silent

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

TOLERANCE = 0.25
"""Error of the direction of C^-1 k at which a second moment counts as converged; see `convergence`."""

LONGEST_ROW = 1024
"""Tokens of a row, where the model's context allows that many."""


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
    vectors: Vectors = KEYS,
) -> dict[Point, KeyStatistics]:
    """Second moments at the points, of the base model: patches that are on it are set aside meanwhile.

    One pass reads the text once for all points that are not in the cache. A row ends at the context's end, padding is
    masked, and every token counts once, a start token included. An interrupted pass goes on from its last checkpoint
    and ends with the same bits.

    Arguments:
        points: inputs of linear sites, `Point("mlp.down", layer, "input")`.
        text: see `open_text`. Files published for ROME and MEMIT are read instead of computed.
        max_tokens: where to stop at the latest; left out, 64 for every dimension of the widest key. Of a model's own
            writing all of that is read, by default as much as `writing.tokens_for` says, in bfloat16 where that is
            fast, and `tolerance` and `row_length` have no say.
        tolerance: the error at which a point is done (checked at 8, 12, 16, 24, ... tokens for every dimension of its
            key); `None` to read all `max_tokens` tokens, the same for every point.
        row_length: tokens of the longest row; left out, 1,024 or the model's context.
        cache: where results and checkpoints are kept; left out, nowhere.
        checkpoint_seconds: an interruption loses no more than this and the window under way.
        progress: told "statistics" with the tokens done and `max_tokens`.
        vectors: what is taken at the points: the keys, or other vectors of linear layers there.

    Raises `DataError` before anything is computed when the text cannot be read or is too short, and at once when a
    key is not finite, naming site, layer and token.
    """
    if isinstance(text, PublishedMoments):
        _require_keys(vectors, text)
        return {point: KeyStatistics(point, *text.read(model, point), is_cached=True) for point in points}
    text = text.for_model(model, cache=cache, progress=progress)
    widths = {point: vectors.width(model, point) for point in points}
    empty = {point: empty_moment(widths[point], vectors.blocks(model, point)) for point in points}
    limits = {"max_tokens": max_tokens, "row_length": row_length}
    known = identities(model, points, text, tolerance=tolerance, vectors=vectors, **limits)
    found = {point: _cached(cache, point, known[point], empty[point].shape) for point in points}
    missing = [point for point, one in found.items() if one is None]
    if missing:
        most, longest = known[missing[0]]["max_tokens"], known[missing[0]]["row_length"]
        at_least = reading.MINIMUM * max(vectors.dimensions(model, point) for point in points)
        rows = reading.read_rows(model, text, max_tokens=most, at_least=at_least, row_length=longest)
        checkpoints = Checkpoints(cache, checkpoint_seconds)
        active = [
            checkpoints.restored(start(point, known[point], widths[point], vectors.blocks(model, point)))
            for point in missing
        ]
        is_own = isinstance(text, WrittenText)
        size = min(reading.TOKENS_PER_BATCH, -(-most // 4)) if is_own else reading.window_size(most)
        windows = reading.windows(rows, size)
        with model.weights.without_changes(), computing_fast(model, is_own):
            done = run_pass(model, active, windows, known[missing[0]]["tolerance"], checkpoints, progress, vectors)
        found |= {one.point: one for one in done}
    return {point: one for point, one in found.items() if one is not None}


def identities(
    model: EditableModel,
    points: Sequence[Point],
    text: Text | PublishedMoments,
    *,
    max_tokens: int | None = None,
    tolerance: float | None = TOLERANCE,
    row_length: int | None = None,
    vectors: Vectors = KEYS,
) -> Mapping[Point, dict[str, Any]]:
    """Everything that determines what `collect` finds with these arguments, by point; reads no text of the hub."""
    if isinstance(text, PublishedMoments):
        _require_keys(vectors, text)
        return {point: text.identity(model, point) for point in points}
    text = text.for_model(model)
    widest = max(vectors.dimensions(model, point) for point in points)
    if isinstance(text, WrittenText):
        limits = text.limits(max_tokens, widest)
    else:
        limits = {
            "max_tokens": max_tokens or reading.DEFAULT * widest,
            "tolerance": tolerance,
            "row_length": min(row_length or LONGEST_ROW, model.context_length or row_length or LONGEST_ROW),
        }
    return {point: {**vectors.determined_by(model, point), "text": text.identity(), **limits} for point in points}


def _require_keys(vectors: Vectors, text: PublishedMoments) -> None:
    """Raises `ConfigError` where something else is asked for than what published files hold."""
    if vectors.side != "input":
        raise ConfigError(
            "Published second moments are those of keys, not of gradients.",
            expected="a text to read: own, wikipedia, a file",
            found=f"a folder of published moments, {text.folder}",
            where="option text",
            remedy="leave text out, or name a text",
        )


def _cached(cache: Cache | None, point: Point, known: dict[str, Any], shape: tuple[int, ...]) -> KeyStatistics | None:
    def made(entry: CacheEntry) -> KeyStatistics:
        moment = moment_of(shaped(entry.tensors["sum"], *shape, name="sum"), entry.number("count"))
        error = entry.record["error"]
        return KeyStatistics(point, moment, None if error is None else float(error), known, is_cached=True)

    return cache.read(known, made) if cache else None
