"""The way back from an edited model's weights to the base model's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from palimpsest.models import EditableModel
from palimpsest.patches import Manifest, WeightPatch


@dataclass(frozen=True)
class Reversal:
    """A patch that, on the edited model, gives the base model's weights.

    Arguments:
        patch: the changes with their signs turned.
        entries_off: how many entries of the weights are not the base model's bit for bit with it, for a sum of two
            numbers can round.
        largest: the largest difference.
    """

    patch: WeightPatch
    entries_off: int
    largest: float


@torch.no_grad()
def reversal_of(base: EditableModel, edited: EditableModel, change: WeightPatch) -> Reversal:
    """The reversal of what leads from one model to the other, put on and compared with the base model.

    Arguments:
        change: from the base model to the edited one; see `patch_between`.
    """
    patch = WeightPatch((-change).deltas, Manifest(label=f"back to {base.name}", model=edited.name))
    off, largest = 0, 0.0
    with edited.patched(patch):
        for name in patch.deltas:
            back, wanted = edited.weights.current(name), base.weights.current(name)
            apart = (back.to(wanted.device).float() - wanted.float()).abs()
            off += int(apart.count_nonzero())
            largest = max(largest, float(apart.max()))
    patch.manifest.base = edited.fingerprint(patch.touched())
    return Reversal(patch, off, largest)
