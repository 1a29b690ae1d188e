"""A locate-then-edit result, looked at before it is handed over: what it does to its prompts and to ordinary text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from palimpsest.methods.problem import LocateThenEditConfig, Problem, Solutions
from palimpsest.models import EditableModel
from palimpsest.models.sites import MLP_DOWN, weight_as_out_in
from palimpsest.patches import WeightPatch
from palimpsest.solve import Factorised, Solution
from palimpsest.statistics import Spectrum

LARGEST_CHANGE = 0.3
"""Change of what a layer's MLP writes for ordinary text, against what it writes, above which an edit is said to damage
the model. A choice from a few edits, not measured over many."""

LARGEST_CONDITION = 1e10
"""Condition of a solved system above which the change has few right digits."""

_PROBES = 16


def inspect(problem: Problem[LocateThenEditConfig], patch: WeightPatch, change: Solutions) -> None:
    """Writes into the diagnostics what the patch does, and a note where that is not what an edit should do.

    Facts: `text_change`, by layer, how much what the MLP writes for ordinary text changes, root mean square, against
    what it writes.

    Arguments:
        problem: as it was solved.
        patch: the changes as one patch.
        change: by layer.
    """
    model, metrics = problem.model, problem.metrics
    facts, notes = problem.run.diagnostics.facts, problem.run.diagnostics.notes
    facts["text_change"] = {str(layer): text_change(model, layer, change[layer], metrics[layer]) for layer in change}
    worst = max(change, key=lambda layer: facts["text_change"][str(layer)])
    if facts["text_change"][str(worst)] > LARGEST_CHANGE:
        notes.append(
            f"The change of layer {worst} is large: what its MLP writes for ordinary text changes by"
            f" {facts['text_change'][str(worst)]:.0%}. Expect other answers to change; edit fewer facts at a time or"
            " raise the option strength."
        )
    condition = max(one.condition for parts in change.values() for one in parts)
    if condition > LARGEST_CONDITION:
        notes.append(
            f"The solved system is badly conditioned ({condition:.0e}): some facts have nearly one key. Leave out"
            " repetitions, or raise the option strength."
        )


@torch.no_grad()
def text_change(model: EditableModel, layer: int, parts: Sequence[Solution], metric: Factorised | Spectrum) -> float:
    """Root mean square of what the changes add for a text's keys, against what the matrix writes for them."""
    left, right = torch.cat([one.left for one in parts], dim=1), torch.cat([one.right for one in parts], dim=0)
    added = _product_norm(left, metric.spread(right))
    weight = weight_as_out_in(model.sites.module(MLP_DOWN, layer)).to(left)
    generator = torch.Generator().manual_seed(0)
    # |W L|, by its action on a few random vectors: the whole product would cost as much as the factor.
    width = weight.shape[1]
    signs = torch.randint(0, 2, (_PROBES, width), generator=generator).to(left) * 2 - 1
    written = float((weight @ metric.drawn(signs).T).square().sum().div(_PROBES).sqrt())
    return added / max(written, 1e-300)


def _product_norm(left: Tensor, right: Tensor) -> float:
    squared = ((left.T @ left) * (right @ right.T)).sum()
    return float(squared.clamp(min=0).sqrt())
