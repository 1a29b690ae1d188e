"""Writing target vectors into several layers: each takes its share of what is still missing, measured anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.locating.subject_vectors import KeyPooling, SubjectRows, key_columns, subject_vectors
from palimpsest.locating.target_vector import TargetVectors
from palimpsest.models import EditableModel, Point
from palimpsest.models.sites import MLP_DOWN, factors_to_storage
from palimpsest.patches import Delta, Dense, LowRank, WeightPatch
from palimpsest.solve import Solution
from palimpsest.stopwatch import Progress, silent

Solve = Callable[[int, Tensor, Tensor, Tensor], Solution]
"""From a layer, keys (n, in), residuals (n, out) and weights (n,) to a change of the layer's matrix."""


@dataclass(frozen=True)
class Spreading:
    """How target vectors are spread over layers.

    Arguments:
        layers: layers to change, ascending; the vectors are those wanted at the last one.
        site: where they were searched, and where what is missing is measured.
        pooling: see `subject_vectors.pooled`.
        share: from the number of layers left, this one included, to the divisor of what is missing.
        rounds: how often all layers are gone through.
    """

    layers: Sequence[int]
    site: str
    pooling: KeyPooling
    share: Callable[[int], float] = float
    rounds: int = 1


def spread(
    model: EditableModel,
    subjects: SubjectRows,
    wanted: TargetVectors,
    spreading: Spreading,
    solve: Solve,
    *,
    kept: SubjectRows | None = None,
    progress: Progress = silent,
) -> dict[int, list[Solution]]:
    """The changes of each layer, one per round (MEMIT, algorithm 1); the model is as it was afterwards.

    At every layer, with those before it changed, the keys of the facts are read, and what is missing at the last layer
    is measured at the prompts alone.

    Arguments:
        kept: rows, (n, 1), whose values are asked to stay; together they weigh as one fact.
    """
    layers, last = spreading.layers, Point(spreading.site, spreading.layers[-1])
    solutions: dict[int, list[Solution]] = {layer: [] for layer in layers}
    steps = spreading.rounds * len(layers)
    with ExitStack() as changed:
        for step in range(steps):
            progress("solving", step, steps)
            index = step % len(layers)
            layer, point = layers[index], Point(MLP_DOWN, layers[index], "input")
            missing = wanted.deltas
            if step:
                missing = wanted.targets - subject_vectors(model, subjects.clean(), [last])[last][:, 0]
            keys, weights = key_columns(subject_vectors(model, subjects, [point])[point], spreading.pooling)
            residuals = missing / spreading.share(len(layers) - index)
            residuals = residuals.repeat_interleave(len(keys) // len(residuals), dim=0)
            if kept is not None:
                others = subject_vectors(model, kept, [point])[point][:, 0]
                keys, weights = (
                    torch.cat([keys, others]),
                    torch.cat([weights, weights.new_full((len(others),), 1 / len(others))]),
                )
                residuals = torch.cat([residuals, residuals.new_zeros(len(others), residuals.shape[1])])
            solution = solve(layer, keys, residuals, weights)
            solutions[layer].append(solution)
            changed.enter_context(model.patched(as_patch(model, {layer: [solution]})))
    progress("solving", steps, steps)
    return solutions


def as_patch(model: EditableModel, solutions: Mapping[int, Sequence[Solution]]) -> WeightPatch:
    """Solutions of each layer as one patch in float32, in factors while these are smaller than their product.

    What vanishing keys left empty is dropped.
    """
    deltas: dict[str, Delta] = {}
    for layer, parts in solutions.items():
        left = torch.cat([part.left for part in parts], dim=1)
        right = torch.cat([part.right for part in parts], dim=0)
        used = right.abs().amax(dim=1) > 0
        factors = LowRank(*factors_to_storage(model.sites.module(MLP_DOWN, layer), left[:, used], right[used]))
        is_small = factors.numel < math.prod(factors.shape)
        delta = (
            LowRank(factors.left.float(), factors.right.float())
            if is_small
            else Dense((factors.left @ factors.right).float())
        )
        deltas[model.sites.parameter_name(MLP_DOWN, layer, takes_experts=True)] = delta
    return WeightPatch(deltas)
