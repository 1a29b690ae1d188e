"""Statistics prepared for methods: factorised second moments and spectra, one per layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import Field

from palimpsest.config import Config
from palimpsest.files import expanded
from palimpsest.models import Point
from palimpsest.provenance import digest
from palimpsest.solve import Factorised
from palimpsest.statistics.cache import Cache
from palimpsest.statistics.catalogue import open_text, reachable
from palimpsest.statistics.collecting import TOLERANCE, collect, identities
from palimpsest.statistics.hub_text import HubText
from palimpsest.statistics.passes import KeyStatistics
from palimpsest.statistics.published import PublishedMoments
from palimpsest.statistics.rows import MINIMUM, read_rows
from palimpsest.statistics.subspaces import Spectrum, spectrum_of
from palimpsest.statistics.text import ReadOnce, Text
from palimpsest.statistics.vectors import KEYS, Vectors
from palimpsest.statistics.writing import OwnWriting
from palimpsest.stopwatch import Progress, silent

if TYPE_CHECKING:
    from palimpsest.models import EditableModel


class StatisticsConfig(Config):
    """Which second moments a method solves with."""

    max_tokens: int | None = Field(default=None, gt=0)
    """Tokens to read at the most; left out, 64 for every dimension of a key, and of the model's own writing 16,384 or
    4 for every dimension."""
    tolerance: float | None = Field(default=TOLERANCE, gt=0)
    """Relative error of the direction of C^-1 k at which a layer has seen enough; none to read all of `max_tokens`, as
    is done with own writing."""
    row_length: int | None = Field(default=None, gt=0)
    """Tokens of the longest row; left out, 1,024 or the model's context. Own writing has its own."""
    damping: float = Field(default=0.0, ge=0)
    """A ridge on the second moment, as a share of its mean eigenvalue."""


def open_source(name: str) -> Text | PublishedMoments:
    """Opens the source that `text` names: published moments in a folder of .npz files, else as `open_text`."""
    folder = expanded(name)
    return PublishedMoments(folder) if folder.is_dir() and any(folder.glob("*.npz")) else open_text(name)


PreparedT = TypeVar("PreparedT", Factorised, Spectrum)


@dataclass(frozen=True)
class Prepared(Generic[PreparedT]):
    """One layer's share.

    Arguments:
        value: the factor or the spectrum.
        facts: for a method's diagnostics: tokens, error, whether they were found in the cache, and of a factor the
            condition.
        notes: what could not be kept in the cache, or was damaged there.
    """

    value: PreparedT
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


class KeyMetrics:
    """Factors and spectra of a model's keys, kept in memory while this object lives, so that edits share them.

    What is kept for a layer is used again only where everything that determined it is the same; else it is replaced.

    Arguments:
        text: of which text.
        config: which second moments.
        cache: where they are kept on disk; left out, the default folder.
        vectors: what they are second moments of; left out, of keys.
    """

    def __init__(
        self, text: str, config: StatisticsConfig, cache: Cache | None = None, *, vectors: Vectors = KEYS
    ) -> None:
        self.text = text
        self.config = config
        self.cache = cache or Cache()
        self.vectors = vectors
        self._kept: dict[tuple[str, Point], tuple[str, Prepared[Any]]] = {}

    def factors(
        self, model: EditableModel, layers: Sequence[int], *, site: str = "mlp.down", progress: Progress = silent
    ) -> dict[int, Prepared[Factorised]]:
        """Factorised second moments of the keys of a site, by layer. Raises as `collect` and `Factorised` do."""

        def factorise(found: KeyStatistics) -> Factorised:
            where = f"site {found.point.site}, layer {found.point.layer}, {found.moment.count:,} tokens"
            return Factorised(found.moment.mean(), where=where, damping=self.config.damping + found.moment.floor)

        return self._prepare("factor", factorise, model, layers, site, progress)

    def spectra(
        self, model: EditableModel, layers: Sequence[int], *, site: str = "mlp.down", progress: Progress = silent
    ) -> dict[int, Prepared[Spectrum]]:
        """Eigendecompositions of the second moments, by layer; each is computed once and kept in the cache."""
        return self._prepare("spectrum", lambda found: spectrum_of(found, self.cache), model, layers, site, progress)

    def _prepare(
        self,
        kind: str,
        make: Callable[[KeyStatistics], PreparedT],
        model: EditableModel,
        layers: Sequence[int],
        site: str,
        progress: Progress,
    ) -> dict[int, Prepared[PreparedT]]:
        points = {layer: Point(site, layer, self.vectors.side) for layer in layers}
        options = self.config.model_dump(include={"max_tokens", "tolerance", "row_length"})
        known = identities(model, list(points.values()), self.source, vectors=self.vectors, **options)
        keys = {point: digest(identity) for point, identity in known.items()}
        if any(self._kept.get((kind, point), ("",))[0] != key for point, key in keys.items()):
            found = collect(
                model, list(keys), self.source, cache=self.cache, progress=progress, vectors=self.vectors, **options
            )
            for point, key in keys.items():
                # Free each moment before the next: a wide model's take gigabytes.
                one = found.pop(point)
                facts = {"tokens": one.moment.count, "error": one.error, "is_cached": one.is_cached}
                value = make(one)
                if isinstance(value, Factorised):
                    facts["condition"] = value.condition
                self._kept[kind, point] = (key, Prepared(value, facts, tuple(self.cache.notes)))
        return {layer: self._kept[kind, point][1] for layer, point in points.items()}

    def check(
        self, model: EditableModel, layers: Sequence[int], *, site: str = "mlp.down", is_asked_for: bool = True
    ) -> list[str]:
        """Reads what is missing of the text, before anything is computed; raises as `collect` would.

        Arguments:
            is_asked_for: whether a text of the hub that cannot be reached is an error; otherwise the model's own
                writing stands for it, and a note says so.
        """
        notes: list[str] = []
        points = [Point(site, layer, self.vectors.side) for layer in layers]
        options = self.config.model_dump(include={"max_tokens", "tolerance", "row_length"})
        if not isinstance(self.source, Text):
            identities(model, points, self.source, vectors=self.vectors)
            return notes
        known = identities(model, points, self.source, vectors=self.vectors, **options)
        if all(self.cache.has(identity) for identity in known.values()):
            return notes
        if isinstance(self.source, HubText) and not is_asked_for:
            self.source = open_source(reachable(self.text, notes))
        if isinstance(self.source, Text) and not isinstance(self.source, OwnWriting):
            self.source = ReadOnce(self.source)
            limits = next(iter(known.values()))
            at_least = MINIMUM * max(self.vectors.dimensions(model, point) for point in points)
            read_rows(
                model,
                self.source,
                max_tokens=limits["max_tokens"],
                at_least=at_least,
                row_length=limits["row_length"],
            )
        return notes

    @cached_property
    def source(self) -> Text | PublishedMoments:
        """The text, or the published moments, opened once; raises as `open_text` does if there is none."""
        return open_source(self.text)
