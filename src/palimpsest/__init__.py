"""Palimpsest: update what a language model knows, as small, reversible, verified patches.

    import palimpsest as ps

    model = ps.load("world")
    edit = ps.EditRequest("The capital of France is", subject="France", target_old="Paris", target_new="Lyon")
    outcome = ps.method("ft").edit(model, [edit])
    with model.patched(outcome.patch):
        print(model.generate("The capital of France is"))

Names are resolved when they are first used, so importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.datasets import Dataset, dataset
    from palimpsest.errors import ConfigError, DataError, ModelError, OutputError, PalimpsestError, PatchError
    from palimpsest.evaluation import Batch, RunRecord, Sequential, Single, assess, evaluate
    from palimpsest.loading import load
    from palimpsest.methods.base import EditOutcome, Method, MethodState
    from palimpsest.methods.catalogue import method
    from palimpsest.methods.editors import TrainedEditor
    from palimpsest.models.editable import EditableModel
    from palimpsest.models.sites.families import Architecture, Part
    from palimpsest.patches.base import Patch
    from palimpsest.patches.storage import load_patch
    from palimpsest.patches.weights import WeightPatch
    from palimpsest.requests import EditRequest, Probe

_HOMES = {
    "palimpsest.datasets": ("Dataset", "dataset"),
    "palimpsest.errors": (
        "ConfigError",
        "DataError",
        "ModelError",
        "OutputError",
        "PalimpsestError",
        "PatchError",
    ),
    "palimpsest.evaluation": ("Batch", "RunRecord", "Sequential", "Single", "assess", "evaluate"),
    "palimpsest.methods.base": ("EditOutcome", "Method", "MethodState"),
    "palimpsest.methods.catalogue": ("method",),
    "palimpsest.methods.editors": ("TrainedEditor",),
    "palimpsest.models.editable": ("EditableModel",),
    "palimpsest.models.sites.families": ("Architecture", "Part"),
    "palimpsest.loading": ("load",),
    "palimpsest.patches.base": ("Patch",),
    "palimpsest.patches.storage": ("load_patch",),
    "palimpsest.patches.weights": ("WeightPatch",),
    "palimpsest.requests": ("EditRequest", "Probe"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Architecture", "Batch", "ConfigError", "DataError", "Dataset", "EditOutcome", "EditRequest", "EditableModel",
    "Method", "MethodState", "ModelError", "OutputError", "PalimpsestError", "Part", "Patch", "PatchError", "Probe",
    "RunRecord", "Sequential", "Single", "TrainedEditor", "WeightPatch", "assess", "dataset", "evaluate", "load",
    "load_patch", "method",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'palimpsest' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
