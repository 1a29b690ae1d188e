"""AlphaEdit's solve: the change lives where the text's keys have next to no share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.files import shaped
from palimpsest.solve.blocks import apart, require_whole, together, width_of
from palimpsest.solve.least_squares import require_positive, root_weights
from palimpsest.solve.solution import VANISHING, Solution, as_rows, finished
from palimpsest.solve.systems import solve_symmetric

SAME_KEY = 0.9999
"""Cosine of two keys from which on they are one: two passes over the same prompt differ by rounding."""


@dataclass(frozen=True)
class EarlierKeys:
    """P k of every key of earlier edits; once they are more than dimensions, only what their products add up to.

    Arguments:
        rows: K_p P, (m, in), float64.
        moment: P K_p^T K_p P, (in, in), float64, of further keys, or None.
    """

    rows: Tensor
    moment: Tensor | None = None

    @classmethod
    def none(cls, width: int) -> EarlierKeys:
        """Those before the first edit."""
        return cls(torch.zeros(0, width, dtype=torch.float64))

    def joined(self, keys: Tensor, basis: Tensor) -> EarlierKeys:
        """These and the keys (n, in) of one edit more, projected past the basis U (in, r)."""
        rows = torch.cat([self.rows, _project(keys.to(self.rows), basis.to(self.rows))])
        if self.moment is None and len(rows) <= rows.shape[1]:
            return EarlierKeys(rows)
        moment = rows.T @ rows
        return EarlierKeys(rows[:0], moment if self.moment is None else self.moment + moment)

    def plus(self, moment: Tensor) -> EarlierKeys:
        """These and what further keys add up to, (in, in), projected already."""
        own = self.moment if self.moment is not None else torch.zeros_like(moment)
        return EarlierKeys(self.rows, own.to(moment) + moment)

    def without(self, keys: Tensor) -> EarlierKeys:
        """These but for rows along one of some keys (n, in): an edit made again takes the place of its former one.

        What has been added up to a moment stays in it.
        """
        if not len(self.rows):
            return self
        rows = torch.nn.functional.normalize(self.rows, dim=1)
        others = torch.nn.functional.normalize(keys.to(rows), dim=1)
        kept = (rows @ others.T).amax(dim=1) < SAME_KEY
        return EarlierKeys(self.rows[kept], self.moment)

    def sum(self) -> Tensor:
        """Their products added up, (in, in). Raises `ConfigError` where that is too large."""
        require_whole(self.rows.shape[1], "history")
        products = self.rows.T @ self.rows
        return products if self.moment is None else products + self.moment

    def past(self, basis: Tensor) -> EarlierKeys:
        """The same keys, projected past a basis U (in, r)."""
        basis, moment = basis.to(self.rows), self.moment
        if moment is not None:
            moment = _project(_project(moment, basis).T, basis)
        return EarlierKeys(_project(self.rows, basis), moment)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        return {"rows": self.rows} if self.moment is None else {"rows": self.rows, "moment": self.moment}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> EarlierKeys:
        """Those whose `tensors` these are. Raises `KeyError` or `ValueError` for what they are not."""
        unknown = set(tensors) - {"rows", "moment"}
        if unknown:
            raise ValueError(f"tensor {min(unknown)}, which no keys have")
        rows = shaped(tensors["rows"], None, None, name="rows").double()
        width, moment = int(rows.shape[1]), tensors.get("moment")
        return cls(rows, None if moment is None else shaped(moment, width, width, name="moment").double())


def null_space_projected(
    basis: Tensor,
    keys: Tensor,
    residuals: Tensor,
    *,
    strength: float,
    previous: EarlierKeys | None = None,
    weights: Tensor | None = None,
) -> Solution:
    """Delta = R^T K P ((K_p^T K_p + K^T K) P + strength)^-1 with P = I - U U^T; keys are rows.

    AlphaEdit (arXiv:2410.02355). Delta P = Delta, so no vector in the span of U is moved. What is solved is the
    smaller of two symmetric systems with the same solution: one row a key (of K and K_p together), or one a dimension.

    Arguments:
        basis: U, (in, r), orthonormal: what is to be preserved; see `statistics.subspaces`. With no column P is I and
            the solve plain ridge regression. Or its blocks, (blocks, width, r), whose columns are orthonormal or zero.
        keys: K, (n, in).
        residuals: R, (n, out).
        strength: AlphaEdit's L2 above 0.
        previous: K_p, keys of earlier edits, whose values are to stay, past the same U.
        weights: (n,), of the keys' errors, as in `least_squares.ridge`.

    A key that lies in the span of U is reported as vanishing. Raises `ConfigError` for a strength that is not positive.
    """
    require_positive(strength, "strength")
    device, width = basis.device, width_of(basis)
    basis = basis.double()
    keys = as_rows(keys, width, "key", device=device)
    residuals = as_rows(residuals, None, "residual", device=device)
    earlier = previous or EarlierKeys.none(width)
    projected = _project(keys, basis)
    leverages = projected.square().sum(dim=1)
    vanishing = leverages <= VANISHING * keys.square().sum(dim=1)
    roots = root_weights(weights, keys)[~vanishing, None]
    new = projected[~vanishing] * roots
    stacked = torch.cat([new, earlier.rows.to(device)])
    if earlier.moment is None and len(stacked) <= width:
        gram = stacked @ stacked.T
        gram.diagonal().add_(strength)
        # Earlier keys have residual 0, so only the new rows of the inverse are needed.
        chosen = torch.eye(len(stacked), len(new), dtype=torch.float64, device=device)
        solved, condition = solve_symmetric(gram, chosen)
        coefficients = solved.T @ stacked
    else:
        system = stacked.T @ stacked
        if earlier.moment is not None:
            system += earlier.moment.to(device)
        system.diagonal().add_(strength)
        solved, condition = solve_symmetric(system, new.T)
        coefficients = solved.T
    right = torch.zeros_like(keys)
    right[~vanishing] = coefficients * roots
    return finished(keys, residuals, right, leverages=leverages, condition=condition, vanishing=vanishing)


def past(rows: Tensor, basis: Tensor) -> Tensor:
    """(I - U U^T) k for every row, (n, in), of U or its blocks."""
    own = apart(rows, basis)
    return together(own - own @ basis @ basis.mT)


def _project(rows: Tensor, basis: Tensor) -> Tensor:
    """P k for every row, (n, in)."""
    # Twice is enough: the second pass takes away what rounding left along the basis.
    return past(past(rows, basis), basis)
