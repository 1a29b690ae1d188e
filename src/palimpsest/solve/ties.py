"""TIES merging (Yadav et al., arXiv:2306.01708): several changes of one matrix as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def ties(changes: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """One change that takes from each what the others do not contradict.

    Of every change the largest entries are kept (trim); an entry's sign is that of the weighted sum (elect); its value
    is the weighted mean of those that have this sign and are not zero (merge). Where the sum is zero, so is the value.

    Arguments:
        changes: tensors of one shape.
        weights: one a change, positive.
        density: share of entries to keep, by magnitude.
    """
    total, mass = torch.zeros_like(changes[0]), torch.zeros_like(changes[0])
    trimmed = [_largest(change, density) for change in changes]
    for change, weight in zip(trimmed, weights, strict=True):
        total += weight * change
    elected, merged = total.sign(), torch.zeros_like(total)
    for change, weight in zip(trimmed, weights, strict=True):
        agrees = (change.sign() == elected) & (change != 0)
        merged += weight * change * agrees
        mass += weight * agrees
    return merged / mass.clamp(min=torch.finfo(mass.dtype).tiny)


def _largest(change: Tensor, density: float) -> Tensor:
    """The same with all but a share of the entries set to zero."""
    count = math.ceil(density * change.numel())
    if count >= change.numel():
        return change
    magnitudes = change.abs()
    smallest_kept = magnitudes.flatten().kthvalue(change.numel() - count + 1).values
    return change * (magnitudes >= smallest_kept)
