"""The weights in which two models differ, and what their changes are like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.errors import ConfigError, ModelError
from palimpsest.models import EditableModel
from palimpsest.patches import Delta, Dense, LowRank, Manifest, WeightPatch

_WHOLE = 2048
_STRONGEST = 64
_SHOWN_VALUES = 8
_SHOWN_NAMES = 5
_EXACT = 1e-5
"""Share of the largest singular value below which those of a change that is known exactly are rounding."""


@dataclass(frozen=True)
class WeightChange:
    """The change of one tensor.

    Arguments:
        name: the parameter.
        site: the projection it belongs to, such as `mlp.down`; None for another kind of parameter.
        layer: of that site.
        shape: as it is stored.
        norm: Frobenius norm of the change.
        share: the same as a share of the weight's own norm.
        entries: how many entries differ.
        rank: singular values above the level of rounding; None for a vector.
        is_at_least: whether there may be more than `rank` of them, for only the strongest were computed.
        singular_values: the strongest ones.
    """

    name: str
    site: str | None
    layer: int | None
    shape: tuple[int, ...]
    norm: float
    share: float
    entries: int
    rank: int | None
    is_at_least: bool
    singular_values: tuple[float, ...]


def places_of(model: EditableModel) -> dict[str, tuple[str, int]]:
    """Parameter name to the site and layer whose weight it is."""
    found = {}
    for site in model.sites.names():
        for layer in range(model.sites.layers_of(site)):
            try:
                name = model.sites.parameter_name(site, layer, takes_experts=True)
            except (ConfigError, ModelError):
                # Whole blocks have no weight, and packed experts none to be told of.
                continue
            found[model.weights.canonical(name)] = (site, layer)
    return found


def patch_between(base: EditableModel, edited: EditableModel) -> WeightPatch:
    """The changes that lead from one model's weights to another's, patches that lie on them included.

    Where the two are stored in different dtypes, what the coarser one cannot tell apart is no change.

    Raises `ModelError` for models of different parameters.
    """
    ours, theirs = base.weights.names(), edited.weights.names()
    if set(ours) != set(theirs):
        _refuse(sorted(set(ours) ^ set(theirs)), "parameters of the same names", "parameters of one model alone")
    shapes = [name for name in ours if base.weights.shape(name) != edited.weights.shape(name)]
    if shapes:
        _refuse(shapes, "parameters of the same shapes", "other shapes of")
    base.weights.require_plain()
    edited.weights.require_plain()
    deltas: dict[str, Delta] = {}
    for name in ours:
        before, after = base.weights.current(name).detach(), edited.weights.current(name).detach().to(base.device)
        coarse = before.dtype if torch.finfo(before.dtype).eps >= torch.finfo(after.dtype).eps else after.dtype
        delta = after.to(coarse).float() - before.to(coarse).float()
        if delta.any():
            deltas[name] = Dense(delta)
    return WeightPatch(deltas, Manifest(label=f"from {base.name} to {edited.name}", model=base.name))


def described(base: EditableModel, deltas: Mapping[str, Delta], *, is_rounded: bool) -> list[WeightChange]:
    """Describes the changes, the largest share of its weight first.

    Arguments:
        is_rounded: whether the changes were read off stored weights, which holds them to the dtype's rounding; those of
            a patch are known as they are.
    """
    places = places_of(base)
    found = []
    for name, delta in deltas.items():
        weight = base.weights.base(base.weights.canonical(name)).float()
        site, layer = places.get(base.weights.canonical(name), (None, None))
        norm = math.sqrt(delta.squared_norm())
        rank, is_at_least, values = _rank(base, delta, weight, is_rounded=is_rounded)
        size = float(weight.norm())
        entries = int(delta.dense().count_nonzero())
        share = norm / size if size else math.inf
        found.append(WeightChange(name, site, layer, delta.shape, norm, share, entries, rank, is_at_least, values))
    return sorted(found, key=lambda one: one.share, reverse=True)


def _rank(
    base: EditableModel, delta: Delta, weight: Tensor, *, is_rounded: bool
) -> tuple[int | None, bool, tuple[float, ...]]:
    if len(delta.shape) != 2:
        return None, False, ()
    values = singular_values(delta)
    # An entry that is rounded errs by up to half a unit: eps |w| / sqrt(12) root mean square, and such a matrix has no
    # singular value above the sum of its sides' roots times that. Twice, for the difference of two such weights.
    eps = torch.finfo(base.weights.base(base.weights.names()[0]).dtype).eps
    size = math.sqrt((float(weight.square().sum()) + delta.squared_norm()) / weight.numel())
    noise = 2 * eps * size / math.sqrt(12) * sum(math.sqrt(side) for side in delta.shape)
    least = max(_EXACT * float(values[0]), noise if is_rounded else 0.0)
    rank = int((values > least).sum())
    is_at_least = rank == len(values) < min(delta.shape) and not isinstance(delta, LowRank)
    return rank, is_at_least, tuple(values[:_SHOWN_VALUES].tolist())


def singular_values(delta: Delta) -> Tensor:
    """Of a matrix; of a large one that is not factored the 64 strongest."""
    if isinstance(delta, LowRank):
        # Those of R_left R_right^T, which is as small as the rank.
        left, right = (torch.linalg.qr(one.double(), mode="r")[1] for one in (delta.left, delta.right.T))
        own: Tensor = torch.linalg.svdvals(left @ right.T)
        return own
    matrix = delta.dense()
    values: Tensor = torch.linalg.svdvals(matrix) if min(matrix.shape) <= _WHOLE else leading(matrix, _STRONGEST)[1]
    return values


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The strongest directions, (rows, r), (r,), (columns, r), the same at every call."""
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= _WHOLE // 4:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank].T
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, q=min(rank + 8, *matrix.shape), niter=4)
    return left[:, :rank], values[:rank], right[:, :rank]


def _refuse(names: list[str], expected: str, found: str) -> None:
    shown = ", ".join(names[:_SHOWN_NAMES]) + (" ..." if len(names) > _SHOWN_NAMES else "")
    raise ModelError(
        "These are not two states of one model.",
        expected=expected,
        found=f"{found} {shown}",
        where="option --base",
        remedy="name the model that the edited one was made from",
    )
