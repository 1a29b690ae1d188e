"""MEMIT's and EMMET's solves. They are one: with G = K C^-1 K^T (keys are rows), Delta = R^T (G + ridge)^-1 K C^-1.

For one fact and no ridge it is R-ROME's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.solve.factorised import Factorised
from palimpsest.solve.solution import VANISHING, Solution, as_rows, finished
from palimpsest.solve.systems import solve_symmetric


def ridge(
    factor: Factorised, keys: Tensor, residuals: Tensor, *, strength: float, weights: Tensor | None = None
) -> Solution:
    """Delta = R^T K (strength C + K^T K)^-1: old knowledge against new, by least squares (MEMIT, eq. 14).

    It minimises sum_i w_i |Delta k_i - r_i|^2 + strength tr(Delta C Delta^T). By Woodbury's identity it costs n solves
    with C's factor; the (in, in) system is only solved if there are more keys than dimensions.

    Arguments:
        factor: of C, (in, in).
        keys: K, (n, in). Several keys of one fact are several rows with the same residual.
        residuals: R, (n, out).
        strength: lambda above 0, the weight of C against one key.
        weights: w, (n,), not negative; left out, 1.

    Raises `ConfigError` for a strength that is not positive.
    """
    require_positive(strength, "strength")
    return _least_squares(factor, keys, residuals, strength, weights)


def equality_constrained(factor: Factorised, keys: Tensor, residuals: Tensor, *, ridge: float = 0.0) -> Solution:
    """Delta = R^T (K C^-1 K^T + ridge)^-1 K C^-1: every Delta k_i = r_i, with the least tr(Delta C Delta^T).

    EMMET (arXiv:2403.14236). Without a ridge the values are exact and C's scale does not matter. With one it is MEMIT
    with that strength.

    Arguments:
        factor: of C, (in, in).
        keys: K, (n, in).
        residuals: R, (n, out).
        ridge: EMMET's numerical ridge, 0 or more.

    Raises `DataError` that names two facts where their keys are so alike that not both values can be inserted.
    """
    return _least_squares(factor, keys, residuals, ridge, None)


def require_positive(value: float, name: str) -> None:
    """Raises `ConfigError` unless a number is above 0."""
    if not value > 0:
        raise ConfigError(f"The {name} of a ridge is not positive.", expected="a number above 0", found=str(value))


def _least_squares(
    factor: Factorised, keys: Tensor, residuals: Tensor, strength: float, weights: Tensor | None
) -> Solution:
    device = factor.lower.device
    keys = as_rows(keys, factor.width, "key", device=device)
    residuals = as_rows(residuals, None, "residual", device=device)
    white = factor.whiten(keys)
    leverages = white.square().sum(dim=1)
    vanishing = leverages <= VANISHING * factor.width
    # A weight w is the same as a key and a residual both times sqrt(w).
    roots = root_weights(weights, keys)
    kept = (white * roots[:, None])[~vanishing]
    if len(kept) > factor.width and strength > 0:
        system = kept.T @ kept + strength * torch.eye(factor.width, dtype=torch.float64, device=device)
        solved, condition = solve_symmetric(system, kept.T, where=factor.where)
        coefficients = solved.T
    else:
        gram = kept @ kept.T
        gram.diagonal().add_(strength)
        coefficients, condition = solve_symmetric(gram, kept, where=factor.where)
    right = torch.zeros_like(keys)
    right[~vanishing] = factor.unwhiten(coefficients) * roots[~vanishing, None]
    return finished(keys, residuals, right, leverages=leverages, condition=condition, vanishing=vanishing)


def root_weights(weights: Tensor | None, keys: Tensor) -> Tensor:
    """Square roots of the weights, (n,), float64; ones if there are none."""
    if weights is None:
        return torch.ones(len(keys), dtype=torch.float64, device=keys.device)
    if weights.shape != (len(keys),) or not bool((weights >= 0).all()):
        raise ValueError(f"expected {len(keys)} weights that are not negative, found {weights}")
    return weights.to(keys.device, torch.float64).sqrt()
