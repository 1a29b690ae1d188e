"""A training's state in one file: tensors as safetensors, all else as JSON in its header. Nothing is ever unpickled.

One file, because a file can be replaced in one stroke: whenever the process is killed, a whole checkpoint is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter
from torch import Tensor
from torch.optim import Optimizer

from palimpsest.errors import ConfigError, DataError
from palimpsest.files import FileKind, new_file, parse_json, shaped, to_json, write_tensors

FORMAT_VERSION = 1
CHECKPOINT = FileKind(
    DataError,
    "The checkpoint cannot be read.",
    expected="a file that training wrote",
    remedy="remove it and begin anew, without --resume",
)


class _Record(BaseModel):
    """The record in the header."""

    format: int
    identity: dict[str, Any]
    course: dict[str, Any]
    optimizer: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class TrainingCheckpoint:
    """Everything that is needed to go on.

    Arguments:
        present: the module's parameters and buffers.
        best: those that validated best.
        optimizer: its `state_dict`.
        random_state: that of torch's generator.
        course: how far training has come.
    """

    present: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, Any]
    random_state: Tensor
    course: dict[str, Any]


def write_checkpoint(file: Path, checkpoint: TrainingCheckpoint, identity: Mapping[str, Any]) -> None:
    """Writes it whole, instead of a former one. Raises `OutputError` when the disk refuses.

    Arguments:
        identity: what it is a checkpoint of; asked for when it is read.
    """
    tensors = {f"present/{name}": tensor for name, tensor in checkpoint.present.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in checkpoint.best.items()}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in checkpoint.optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    tensors["random"] = checkpoint.random_state
    record = {
        "format": FORMAT_VERSION,
        "identity": identity,
        "course": checkpoint.course,
        "optimizer": numbers,
    }
    stored = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with new_file(file) as draft:
        write_tensors(stored, draft, metadata={"checkpoint": to_json(record)})


def read_checkpoint(file: Path, identity: Mapping[str, Any]) -> TrainingCheckpoint:
    """Reads what `write_checkpoint` wrote.

    Raises `DataError` for an invalid file, `ConfigError` for the checkpoint of another training, naming what
    differs.
    """
    stored = CHECKPOINT.tensors(file, integers=True)
    with CHECKPOINT.reading(file):
        record = parse_json(stored.texts["checkpoint"])
        CHECKPOINT.require_format(record, FORMAT_VERSION, "checkpoint", file, name="format")
        found = CHECKPOINT.checked(record, _Record, file)
    _require_same(found.identity, json.loads(to_json(identity)), file)
    with CHECKPOINT.reading(file):
        state: dict[int, dict[str, Any]] = {int(index): dict(entry) for index, entry in found.optimizer.items()}
        for name, tensor in stored.tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/", 2)
                state.setdefault(int(index), {})[key] = tensor
        return TrainingCheckpoint(
            present=_under("present/", stored.tensors),
            best=_under("best/", stored.tensors),
            optimizer={"state": state},
            random_state=stored.tensors["random"],
            course=found.course,
        )


class _Point(BaseModel):
    """One entry of a curve."""

    step: int
    seconds: float
    training: dict[str, float] | None
    validation: dict[str, float]


def require_course(curve: Sequence[Mapping[str, Any]], step: int, best_step: int) -> None:
    """Raises `ValueError` for a course that no training takes: points of other fields, or steps that do not rise."""
    # Strictly: what is shown afterwards are the values themselves, not what they could be taken for.
    points = TypeAdapter(list[_Point]).validate_python(curve, strict=True)
    steps = [point.step for point in points]
    if any(point.validation.keys() != points[0].validation.keys() for point in points):
        raise ValueError("field `curve`: other losses at one point than at another")
    if not steps or steps[0] != 0 or steps != sorted(set(steps)) or steps[-1] != step:
        raise ValueError(f"field `curve`: steps {str(steps)[:60]} instead of those from 0 to {step}")
    if best_step not in steps:
        raise ValueError(f"field `best_step`: {best_step}, after which nothing was validated")


def require_dtypes(stored: Sequence[Mapping[str, Tensor]], wanted: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` for numbers of another type than the module's, which would be converted without a word."""
    for name, tensor in ((name, tensor) for tensors in stored for name, tensor in tensors.items()):
        if name in wanted and tensor.dtype != wanted[name].dtype:
            raise ValueError(f"tensor {name}: {tensor.dtype} instead of {wanted[name].dtype}")


def require_moments(state: Mapping[int, Mapping[str, Any]], optimizer: Optimizer) -> None:
    """Raises `ValueError` for moments of Adam that are not those of these parameters; some may have none yet."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for index, entries in state.items():
        if not 0 <= index < len(parameters):
            raise ValueError(f"optimizer/{index}: there are {len(parameters)} parameters")
        if entries.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"optimizer/{index}: fields {', '.join(entries)} instead of Adam's")
        for name, value in entries.items():
            shape = () if name == "step" else tuple(parameters[index].shape)
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise ValueError(f"optimizer/{index}/{name}: no tensor of numbers")
            shaped(value, *shape, name=f"optimizer/{index}/{name}")
        if float(entries["step"]) < 1 or float(entries["exp_avg_sq"].min()) < 0:
            raise ValueError(f"optimizer/{index}: a step below 1, or a square below 0")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _require_same(recorded: dict[str, Any], present: dict[str, Any], file: Path) -> None:
    different = [name for name in sorted({*recorded, *present}) if recorded.get(name) != present.get(name)]
    if different:
        raise ConfigError(
            "The checkpoint is of another training.",
            expected="; ".join(f"{name} = {recorded.get(name)}" for name in different),
            found="; ".join(f"{name} = {present.get(name)}" for name in different),
            where=str(file),
            remedy="give what it was begun with, or remove it and begin anew without --resume",
        )
