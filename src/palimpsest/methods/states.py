"""States of T-Patcher, GRACE and WISE between edits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from palimpsest.errors import ConfigError, DataError
from palimpsest.files import FileKind, parse_json
from palimpsest.methods.base import MethodState
from palimpsest.models import EditableModel
from palimpsest.patches import Branch

BranchT = TypeVar("BranchT", bound=Branch)


@dataclass(frozen=True)
class BranchState(MethodState, Generic[BranchT]):
    """A branch with all edits so far."""

    form: ClassVar[type[Branch]]
    method: ClassVar[str]
    branch: BranchT

    def tensors(self) -> dict[str, Tensor]:
        """See `MethodState.tensors`."""
        described = json.dumps(self.branch.options()).encode()
        return {**self.branch.tensors(), "options": torch.tensor(list(described), dtype=torch.uint8)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """See `MethodState.from_tensors`."""
        kind = FileKind(
            DataError,
            f"The state's tensors are not those of {cls.method}.",
            expected=f"{cls.form.form}: tensors, and what belongs to each",
            remedy="begin the sequence anew",
        )
        with kind.reading("its tensors"):
            options = parse_json(bytes(tensors["options"].tolist()).decode())
            return cls(cls.form.from_saved(tensors, options))  # type: ignore[arg-type]


@dataclass(frozen=True)
class EditedQueries(MethodState):
    """Inputs of the last MLP at the places of the edits so far, (places, width)."""

    queries: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """See `MethodState.tensors`."""
        return {"queries": self.queries}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> EditedQueries:
        """See `MethodState.from_tensors`."""
        found = tensors.get("queries")
        if found is None or found.ndim != 2 or not torch.isfinite(found).all():
            raise DataError(
                "The state's tensors are not those of t-patcher.",
                expected="finite `queries` of shape (places, width)",
                found=", ".join(f"{name} {tuple(one.shape)}" for name, one in tensors.items()) or "nothing",
                remedy="begin the sequence anew",
            )
        return cls(found)

    @staticmethod
    def before(state: MethodState | None, model: EditableModel) -> Tensor:
        """Returns the inputs at earlier edits. Raises `ConfigError` for another method's or another model's state."""
        width = model.sites.d_model
        if state is None:
            return torch.zeros(0, width, device=model.device)
        if not isinstance(state, EditedQueries) or state.queries.shape[1] != width:
            found = f" of width {state.queries.shape[1]}" if isinstance(state, EditedQueries) else ""
            expected = f"the state that t-patcher returned, of width {width}"
            raise foreign_state(expected, type(state).__name__ + found, place="on this model")
        return state.queries.to(model.device)


def foreign_state(
    expected: str, found: str, *, place: str = "in this place", remedy: str = "begin the sequence anew"
) -> ConfigError:
    """The error for the state of another method, or of another place or model."""
    return ConfigError(f"This state is not of this method {place}.", expected=expected, found=found, remedy=remedy)
