"""Means, deviations and covariances of a stream of rows, whatever the pieces in which it comes.

With N rows before, b new ones, their mean m and e = m - mu (Chan, Golub and LeVeque's update):

    mu += b e / (N + b),      ss += sum (x - m)^2 + N b e^2 / (N + b),      S likewise with outer products
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.files import shaped

LEAST_DEVIATION = 0.01
"""Of the mean deviation: an entry that hardly moved so far must not be blown up when it moves for once."""

EPSILON = 1e-7
"""Added to a deviation, as published."""

FLOOR = 1e-6
"""Of the mean eigenvalue: a direction that holds less than this share of it is not blown up further."""


@dataclass(frozen=True, eq=False)
class RunningMoments:
    """Running moments of the rows seen so far, in float64.

    Arguments:
        count: how many, N.
        mean: (width,), mu.
        squares: (width,), ss, the sum of squared deviations from the mean.
        products: (width, width), S, the sum of their outer products; None where only deviations are asked for.
    """

    count: int
    mean: Tensor
    squares: Tensor
    products: Tensor | None = None

    @classmethod
    def none(cls, width: int, *, with_products: bool = False) -> RunningMoments:
        """Those of no row."""
        zero = torch.zeros(width, dtype=torch.float64)
        return cls(0, zero, zero, torch.zeros(width, width, dtype=torch.float64) if with_products else None)

    def to(self, device: torch.device) -> RunningMoments:
        """The same on another device."""
        products = None if self.products is None else self.products.to(device)
        return RunningMoments(self.count, self.mean.to(device), self.squares.to(device), products)

    def joined(self, rows: Tensor) -> RunningMoments:
        """These and some rows more, (n, width)."""
        if not len(rows):
            return self
        added = rows.to(self.mean)
        mean, count, total = added.mean(dim=0), len(rows), self.count + len(rows)
        apart, away = added - mean, mean - self.mean
        shift = self.count * count / total
        squares = self.squares + apart.square().sum(dim=0) + shift * away.square()
        products = self.products
        if products is not None:
            products = products + apart.T @ apart + shift * torch.outer(away, away)
        return RunningMoments(total, self.mean + away * count / total, squares, products)

    def deviations(self) -> Tensor:
        """(width,), sqrt(ss / (N - 1)), and none below a hundredth of their mean; ones before two rows were seen."""
        if self.count < 2:
            return torch.ones_like(self.mean)
        found = (self.squares / (self.count - 1)).sqrt()
        return found.clamp(min=float(LEAST_DEVIATION * found.mean() + EPSILON))

    def normalised(self, rows: Tensor) -> Tensor:
        """(x - mu) / deviation, entry by entry, float64, (n, width)."""
        return (rows.to(self.mean) - self.mean) / self.deviations()

    def whitened(self, rows: Tensor, *, shrinks: bool = True) -> Tensor:
        """Sigma^-1/2 (x - mu), float64, (n, width), with the symmetric root.

        Arguments:
            shrinks: Sigma is S / N, drawn to its diagonal by width / (N + width), so that there is one formula from
                the first rows on; otherwise S / (N - width - 1), as StableEdit publishes, and entry by entry where
                there are not more rows than that.
        """
        if self.products is None:
            raise ValueError("no products were kept")
        width = len(self.mean)
        if shrinks:
            share = width / (self.count + width)
            covariance = (1 - share) * self.products + share * self.products.diagonal().diag()
            covariance /= max(self.count, 1)
        elif self.count > width + 1:
            covariance = self.products / (self.count - width - 1)
        else:
            return self.normalised(rows)
        values, vectors = torch.linalg.eigh(covariance)
        root = values.clamp(min=float(FLOOR * values.mean()) or 1.0).rsqrt()
        white: Tensor = (((rows.to(self.mean) - self.mean) @ vectors) * root) @ vectors.T
        return white

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        found = {"count": torch.tensor(self.count), "mean": self.mean, "squares": self.squares}
        return found if self.products is None else {**found, "products": self.products}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> RunningMoments:
        """Those whose `tensors` these are. Raises `KeyError` or `ValueError` for what they are not."""
        mean = shaped(tensors["mean"], None, name="mean").double()
        width = len(mean)
        products = tensors.get("products")
        return cls(
            int(shaped(tensors["count"], name="count")),
            mean,
            shaped(tensors["squares"], width, name="squares").double(),
            None if products is None else shaped(products, width, width, name="products").double(),
        )
