"""Where the keys of a text lie, and where they do not: the projectors of AlphaEdit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from palimpsest.errors import ConfigError, DataError
from palimpsest.files import shaped
from palimpsest.solve import apart, past, together, width_of

if TYPE_CHECKING:
    from palimpsest.statistics.cache import Cache, CacheEntry
    from palimpsest.statistics.passes import KeyStatistics

NULL_SPACE_THRESHOLD = 2e-2
"""AlphaEdit's: eigenvalues of E[k k^T] below it count as zero, whatever the scale of the keys."""

NULL_SPACE_ENERGY = 0.05
"""Ours: the share of E|k|^2 that the null space may hold."""


@dataclass(frozen=True)
class Spectrum:
    """The eigendecomposition of a second moment: E[k k^T] = vectors diag(values) vectors^T.

    Arguments:
        values: (width,), ascending, none negative; of blocks, (blocks, width), ascending in each.
        vectors: (width, width), a column each; of blocks, (blocks, width, width). See `solve.blocks`.
    """

    values: Tensor
    vectors: Tensor

    def spread(self, rows: Tensor) -> Tensor:
        """Rows (n, width) times the square root of the moment, (n, width); see `Factorised.spread`."""
        own = apart(rows.to(self.vectors), self.vectors)
        return together(own @ self.vectors * self.values.sqrt()[..., None, :])

    def drawn(self, rows: Tensor) -> Tensor:
        """Rows (n, width) that become vectors with this second moment; see `Factorised.drawn`."""
        own = apart(rows.to(self.vectors), self.vectors)
        return together(own * self.values.sqrt()[..., None, :] @ self.vectors.mT)

    def lowest(self, count: int) -> Tensor:
        """Which of the directions are the `count` with the least values, the shape of `values`."""
        order = self.values.flatten().argsort(stable=True)
        chosen = torch.zeros(self.values.numel(), dtype=torch.bool, device=self.values.device)
        chosen[order[:count]] = True
        return chosen.view_as(self.values)


@dataclass(frozen=True)
class Projector:
    """P = I - U U^T, kept as U.

    Arguments:
        basis: U, (width, r), orthonormal: the directions that P takes away; of blocks, (blocks, width, width), with
            zeros instead of the others.
        energy: the share of E|k|^2 that P keeps.
    """

    basis: Tensor
    energy: float

    @property
    def null_dimension(self) -> int:
        """Dimension of the null space, in which changes may lie: the rank of P."""
        return self.width - int(self.basis.any(dim=-2).sum())

    @property
    def width(self) -> int:
        """Length of a key."""
        return width_of(self.basis)

    def apply(self, rows: Tensor) -> Tensor:
        """P k for every row, (n, width)."""
        return past(rows, self.basis.to(rows.dtype))


def decompose(moment: Tensor) -> Spectrum:
    """The spectrum of a second moment, (width, width) or blocks. Raises `DataError` when it is not finite."""
    if not torch.isfinite(moment).all():
        raise DataError("A second moment is not finite.", expected="finite numbers", found="NaN or infinity")
    values, vectors = torch.linalg.eigh(moment.double())
    return Spectrum(values.clamp(min=0), vectors)


def spectrum_of(statistics: KeyStatistics, cache: Cache | None = None) -> Spectrum:
    """The spectrum of what was collected at a point: read from the cache, or computed once and kept there."""
    identity = {"derived": "spectrum", **statistics.identity}
    shape = statistics.moment.shape

    def made(entry: CacheEntry) -> Spectrum:
        values, vectors = entry.tensors["values"], entry.tensors["vectors"]
        return Spectrum(shaped(values, *shape[:-1], name="values"), shaped(vectors, *shape, name="vectors"))

    found = cache.read(identity, made) if cache else None
    if found is not None:
        return found
    spectrum = decompose(statistics.moment.mean())
    if cache is not None:
        cache.write(identity, {"values": spectrum.values, "vectors": spectrum.vectors})
    return spectrum


def below_threshold(spectrum: Spectrum, threshold: float = NULL_SPACE_THRESHOLD) -> Projector:
    """The null space as AlphaEdit publishes it: eigenvectors whose eigenvalue is below a fixed number.

    How many these are depends on the scale of a model's activations; see `null_dimension`.
    """
    if not threshold > 0:
        raise ConfigError("A threshold is not positive.", expected="a number above 0", found=str(threshold))
    return _projector(spectrum, int((spectrum.values < threshold).sum()))


def lowest_energy(spectrum: Spectrum, share: float = NULL_SPACE_ENERGY) -> Projector:
    """The largest null space that holds at most a share of E|k|^2; it does not depend on the scale of the keys."""
    if not 0 <= share < 1:
        raise ConfigError("A share of energy is out of range.", expected="0 to below 1", found=str(share))
    held = spectrum.values.flatten().sort().values.cumsum(0)
    return _projector(spectrum, int((held <= share * held[-1]).sum()))


def _projector(spectrum: Spectrum, null_dimension: int) -> Projector:
    lowest = spectrum.lowest(null_dimension)
    total = float(spectrum.values.sum())
    kept = float(spectrum.values[lowest].sum())
    if spectrum.vectors.ndim == 2:
        basis = spectrum.vectors[:, null_dimension:].contiguous()
    else:
        basis = spectrum.vectors * ~lowest[:, None, :]
    return Projector(basis, kept / total if total else 1.0)
