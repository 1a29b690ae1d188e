"""Estimates the cost of a plan from the finished units and the sizes of checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from palimpsest.benchmark.folder import ResultsFolder
from palimpsest.benchmark.units import WorkUnit


@dataclass(frozen=True)
class UnitEstimate:
    """The estimated cost of a unit.

    Arguments:
        seconds: wall-clock time of one worker; `None` where nothing like it has been done.
        checkpoint_bytes: of the model's weights on disk, the least that a worker holds; `None` for a model that is not
            on this machine.
    """

    seconds: float | None
    checkpoint_bytes: int | None


def estimates(folder: ResultsFolder) -> list[UnitEstimate]:
    """Of every unit of a plan: its own time where it is done, else that of the most similar ones that are.

    Similar are units of one method on one model: under the same protocol with another seed or data set; else under any,
    by the number of edits.
    """
    alike: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    per_edit: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    own: dict[str, float] = {}
    for unit in folder.plan.units:
        finished = folder.finished(unit)
        if finished is None or finished.state == "failed":
            continue
        own[unit.address] = finished.seconds
        alike[_kind(unit)].append(finished.seconds)
        if finished.result.get("num_edits"):
            per_edit[_pair(unit)].append(finished.seconds / finished.result["num_edits"])
    sizes: dict[str, int | None] = {}
    found = []
    for unit in folder.plan.units:
        name = unit.located(unit.model.name)
        if name not in sizes:
            sizes[name] = _checkpoint_bytes(name)
        found.append(UnitEstimate(own.get(unit.address, _seconds(unit, alike, per_edit)), sizes[name]))
    return found


def time_to_go(folder: ResultsFolder, *, workers: int = 1) -> float | None:
    """Seconds until all units are done; those like none that is done are taken to be average. `None` at first."""
    known = estimates(folder)
    left = [one for unit, one in zip(folder.plan.units, known, strict=True) if folder.finished(unit) is None]
    done = [one.seconds for one in known if one.seconds is not None]
    if not left:
        return 0.0
    if not done:
        return None
    return sum(mean(done) if one.seconds is None else one.seconds for one in left) / workers


def _kind(unit: WorkUnit) -> tuple[Any, ...]:
    return (*_pair(unit), unit.protocol.name, unit.protocol.batch_size, unit.num_edits)


def _pair(unit: WorkUnit) -> tuple[Any, ...]:
    return (unit.model.name, unit.method.name, unit.method.label)


def _seconds(
    unit: WorkUnit, alike: Mapping[tuple[Any, ...], list[float]], per_edit: Mapping[tuple[Any, ...], list[float]]
) -> float | None:
    if alike.get(_kind(unit)):
        return mean(alike[_kind(unit)])
    if per_edit.get(_pair(unit)) and unit.num_edits is not None:
        return mean(per_edit[_pair(unit)]) * unit.num_edits
    return None


def _checkpoint_bytes(name: str) -> int | None:
    """Size of a model's weights, when they are on this machine: a folder, a bundled model, the hub's cache."""
    from palimpsest.checkpoints import locate
    from palimpsest.world import BUNDLED

    folder = Path(locate(name)) if name in BUNDLED or Path(name).is_dir() else _cached(name)
    if folder is None:
        return None
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _cached(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
