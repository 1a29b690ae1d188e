"""Changes of whole matrices kept as their strongest directions, as few as the edits need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from palimpsest.models import EditableModel
from palimpsest.patches import Delta, Dense, LowRank, WeightPatch
from palimpsest.requests import EditRequest

_MORE_DIRECTIONS = 6


@torch.no_grad()
def compressed(
    model: EditableModel, requests: Sequence[EditRequest], deltas: Mapping[str, Delta], rank: int
) -> tuple[dict[str, Delta], int | None]:
    """Changes of low rank under which the edits hold that hold under the whole changes.

    Arguments:
        deltas: parameter name to its change.
        rank: the first to try; it is doubled while an edit is lost.

    Returns the changes, and their rank; `None` where nothing is gained over the whole ones.
    """
    whole = held(model, requests, deltas)
    while matrices := {name: one.dense() for name, one in deltas.items() if _is_smaller(one, rank)}:
        factored: dict[str, Delta] = {**deltas, **{n: strongest(one, rank) for n, one in matrices.items()}}
        if whole <= held(model, requests, factored):
            return factored, rank
        rank *= 2
    return dict(deltas), None


def strongest(delta: Tensor, rank: int) -> LowRank:
    """The part of a change, (rows, columns), along its strongest directions, by random projections from one seed.

    Of a change of experts, (experts, rows, columns), those of each.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = torch.randn(delta.shape[-1], min(rank + _MORE_DIRECTIONS, *delta.shape[-2:])).to(delta)
    # Two rounds of the power iteration; the change is that of the space of the columns, whatever its basis.
    space = torch.linalg.qr(delta @ start)[0]
    for _ in range(2):
        space = torch.linalg.qr(delta @ torch.linalg.qr(delta.mT @ space)[0])[0]
    left, sizes, right = torch.linalg.svd(space.mT @ delta, full_matrices=False)
    return LowRank((space @ left[..., :rank] * sizes[..., None, :rank]).contiguous(), right[..., :rank, :].contiguous())


def held(model: EditableModel, requests: Sequence[EditRequest], deltas: Mapping[str, Delta]) -> set[int]:
    """The requests, by their place, each token of whose answer is the most probable one."""
    with model.patched(WeightPatch(deltas)):
        scores = model.score([r.prompt for r in requests], [r.target_new for r in requests])
    return {index for index, score in enumerate(scores) if all(score.matches)}


def _is_smaller(delta: Delta, rank: int) -> bool:
    shape = delta.shape
    is_matrix = isinstance(delta, Dense) and len(shape) in (2, 3)
    return is_matrix and 2 * rank * sum(shape[-2:]) < shape[-2] * shape[-1]
