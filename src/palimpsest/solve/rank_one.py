"""ROME's solve: one key gets one new value, everything that C has seen changes as little as possible."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.solve.factorised import Factorised
from palimpsest.solve.solution import RELATIVE_STRENGTH, VANISHING, Solution, as_rows, finished

SMALLEST_COSINE = 1e-5
"""Cosine, in C's metric, of two keys below which an update along one cannot reach the other."""


LEAST_LEFT = 0.2
"""Share of the divisor that keys to be kept may not take: an update is never more than five times as long for them."""


def _past(others: Tensor, key: Tensor, target: Tensor, weight: float) -> Tensor:
    """(I + w S^T S)^-1 k, by Woodbury's identity, in the metric that C whitens: S (n, in), k and target (1, in)."""
    while True:
        gram = weight * others @ others.T + torch.eye(len(others), dtype=others.dtype, device=others.device)
        along: Tensor = key - weight * torch.linalg.solve(gram, others @ key.T).T @ others
        if float((along * target).sum().abs()) >= LEAST_LEFT * float((key * target).sum().abs()):
            return along
        weight /= 4


def cosine(factor: Factorised, first: Tensor, second: Tensor) -> float:
    """Cosine of two keys, (in,), in the metric of C^-1."""
    white = factor.whiten(torch.stack([first, second]))
    return float(torch.nn.functional.cosine_similarity(white[0], white[1], dim=0))


def rank_one(
    factor: Factorised,
    key: Tensor,
    residual: Tensor,
    *,
    applied_to: Tensor | None = None,
    kept: Tensor | None = None,
) -> Solution:
    """Delta = r (C^-1 k)^T / (k'^T C^-1 k), so that Delta k' = r (ROME, eq. 2).

    Where k' is k, Delta is the smallest change in the metric of C that has Delta k = r: R-ROME and p-ROME. ROME itself
    takes k as the mean over prefixed contexts and k' as the key of the prompt alone; then the divisor can come close
    to zero or turn negative, the collapse that R-ROME describes. Scaling C changes nothing.

    Arguments:
        factor: of C, (in, in).
        key: k, (in,).
        residual: r, (out,), what the value at k' is to change by.
        applied_to: k', (in,); left out, k.
        kept: (n, in), keys that are to change less: the metric is C + w sum k k^T instead of C. Together they weigh as
            one fact does in a ridge of `RELATIVE_STRENGTH`, or less, so that `LEAST_LEFT` of the divisor is left.

    The solution's leverage is the divisor k'^T C^-1 k. Where that is next to nothing the change is zero and the key is
    reported as vanishing.
    """
    device = factor.lower.device
    keys = as_rows(key[None], factor.width, "key", device=device)
    values = as_rows(residual[None], None, "residual", device=device)
    targets = keys if applied_to is None else as_rows(applied_to[None], factor.width, "key", device=device)
    white_key, white_target = factor.whiten(keys), factor.whiten(targets)
    along = white_key
    if kept is not None:
        along = _past(factor.whiten(kept), white_key, white_target, 1 / (RELATIVE_STRENGTH * factor.width * len(kept)))
    divisor = (along * white_target).sum(dim=1)
    norms = along.norm(dim=1) * white_target.norm(dim=1)
    vanishing = (norms <= VANISHING * factor.width) | (divisor.abs() <= SMALLEST_COSINE * norms)
    right = factor.unwhiten(along) / torch.where(vanishing, 1.0, divisor)[:, None]
    return finished(targets, values, right, leverages=divisor, condition=1.0, vanishing=vanishing)
