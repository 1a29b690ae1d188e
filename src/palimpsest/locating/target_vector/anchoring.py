"""Target vectors of one length: what keeps them from growing with the edits before (NAS, arXiv:2602.02543)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from palimpsest.locating.target_vector.search import TargetVectors


def anchored_vectors(
    found: TargetVectors, written: Tensor, length: float, *, limit: float
) -> tuple[TargetVectors, tuple[str, ...]]:
    """The vectors with |v* | brought to a length, up as well as down, where v* = v0 + delta:

        delta' = length v* / |v*| - v0,      and 0 where |v*| > limit * length: the fact is left out

    Arguments:
        found: with delta; at the MLP's own site, or at the residual stream behind it, which moves as much.
        written: v0, (facts, width), what the MLP writes there as the model is.
        length: the anchor, above 0.
        limit: see above.

    Returns the vectors, and the ids of the facts that are left out.
    """
    values = written.to(found.deltas) + found.deltas
    lengths = values.norm(dim=1)
    is_long = lengths > limit * length
    deltas = values * (length / lengths.clamp(min=torch.finfo(lengths.dtype).tiny))[:, None] - written.to(values)
    deltas = torch.where(is_long[:, None], 0.0, deltas)
    skipped = tuple(identity for identity, long in zip(found.ids, is_long.tolist(), strict=True) if long)
    return replace(found, deltas=deltas), skipped
