"""The patch of a sequential run: one sum that grows, on the model all the time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.errors import PatchError
from palimpsest.patches.weights import WeightPatch

if TYPE_CHECKING:
    from palimpsest.models.editable import EditableModel
    from palimpsest.patches.base import Applied, Patch


class RunningPatch:
    """All edits so far, applied to a model; taken off when the block ends, however it ends.

    Weight patches are added up: the sum is taken off, grows, and is put on again, so that memory does not
    grow with the number of edits. Patches of other kinds lie on top of each other.
    """

    def __init__(self, model: EditableModel, name: str) -> None:
        self._model = model
        self._name = name
        self._count = 0
        self._stack: list[tuple[Patch, Applied]] = []

    def __enter__(self) -> RunningPatch:
        return self

    def __exit__(self, *_failure: object) -> None:
        for _, applied in reversed(self._stack):
            applied.remove()
        self._stack.clear()

    def restore(self, patch: WeightPatch | None) -> None:
        """Puts a saved sum on the model; `None` for one that is empty."""
        if patch is not None:
            self._stack.append((patch, patch.apply(self._model)))

    def add(self, patch: Patch) -> str | None:
        """Puts one more edit on. Returns what is wrong when the sum is not finite; then nothing has changed."""
        self._count += 1
        below = self._stack[-1] if self._stack else None
        if below is None or not isinstance(patch, WeightPatch) or not isinstance(below[0], WeightPatch):
            self._stack.append((patch, patch.apply(self._model)))
            return None
        try:
            total = below[0] + patch
        except PatchError as error:
            return f"PatchError: {error}"
        total.manifest.label = f"{self._name}, edited in sequence"
        self._stack.pop()[1].remove()
        self._stack.append((total, total.apply(self._model)))
        return None

    @property
    def num_bytes(self) -> int:
        """Bytes of all patches on the model."""
        return sum(patch.num_bytes for patch, _ in self._stack)

    def is_storable(self) -> bool:
        """Whether `weight_patch` is all there is."""
        return len(self._stack) <= 1 and all(isinstance(patch, WeightPatch) for patch, _ in self._stack)

    def weight_patch(self) -> WeightPatch | None:
        """The sum; `None` when there is none yet."""
        patch = self._stack[0][0] if self._stack else None
        return patch if isinstance(patch, WeightPatch) else None
