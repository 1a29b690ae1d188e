"""State that is a branch: what GRACE and WISE carry from one edit to the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from palimpsest.errors import DataError, PalimpsestError
from palimpsest.methods.base import MethodState
from palimpsest.patches.branches import Branch

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
        try:
            options = json.loads(bytes(tensors["options"].tolist()))
            return cls(cls.form.from_saved(tensors, options))  # type: ignore[arg-type]
        except (KeyError, ValueError, TypeError, PalimpsestError) as error:
            raise DataError(
                f"The state's tensors are not those of {cls.method}.",
                expected=f"{cls.form.form}: tensors, and what belongs to each",
                found=f"{type(error).__name__}: {str(error).splitlines()[0]}",
                remedy="begin the sequence anew",
            ) from error
