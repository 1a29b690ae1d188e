"""Branches at a site of a model, which read the site's input and change its output.

A branch is data: tensors and a few plain options. What it computes is its class; the classes are listed in
`patches.modules`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from palimpsest.errors import PalimpsestError, PatchError

if TYPE_CHECKING:
    from palimpsest.models import Attachment, EditableModel


class Branch(ABC):
    """One thing added to one site of one layer.

    Arguments:
        weight: full name of the weight that it stands beside.
    """

    form: ClassVar[str]
    weight: str

    @abstractmethod
    def place(self) -> tuple[Any, ...]:
        """Where it is and how it computes: two branches of one place can be joined."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Its numbers by name."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Everything else, JSON-ready."""

    @classmethod
    @abstractmethod
    def from_saved(cls, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Self:
        """The branch that these are of. Raises `PatchError` when they do not fit together."""

    @abstractmethod
    def check(self, model: EditableModel) -> None:
        """Raises `PatchError` where it does not fit the model."""

    @abstractmethod
    def attach(self, model: EditableModel) -> Attachment:
        """Puts it on the model with hooks."""

    @abstractmethod
    def joined(self, later: Self) -> Self:
        """The branch and a later one of the same place as one."""

    @abstractmethod
    def owners(self) -> list[str]:
        """The ids of the edits that its parts belong to, a part each, in order."""

    @abstractmethod
    def without(self, edits: Collection[str]) -> Self | None:
        """The same without what belongs to these edits; `None` where nothing would be left."""

    @property
    def is_empty(self) -> bool:
        """Whether it can change nothing."""
        return not self.owners()


def require_weight(model: EditableModel, site: str, layer: int, weight: str) -> None:
    """Raises `PatchError` when a site's weight has another name in this model."""
    try:
        found = model.sites.parameter_name(site, layer)
    except PalimpsestError as error:
        found = error.problem
    if found != weight:
        raise PatchError(
            "A patch does not fit the model.", expected=f"{weight} at {site} of layer {layer}", found=found
        )


def require_shapes(form: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `PatchError` when tensors are missing, not of these shapes, or not finite."""
    for name, shape in shapes.items():
        found = tensors.get(name)
        if found is None or tuple(found.shape) != shape:
            raise PatchError(
                f"The tensors of added {form} do not fit together.",
                expected=f"{name} of shape {shape}",
                found="none" if found is None else f"shape {tuple(found.shape)}",
                where=f"tensor {name}",
            )
        if found.is_floating_point() and not torch.isfinite(found).all():
            raise PatchError(
                "A patch holds numbers that are not finite.",
                expected="finite numbers",
                found="NaN or infinity",
                where=f"tensor {name} of added {form}",
                remedy="lower the learning rate or the number of steps, or compute in float32",
            )
