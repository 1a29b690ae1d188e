"""The patch of a sequential run: one sum that grows, on the model all the time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.errors import PatchError

if TYPE_CHECKING:
    from palimpsest.models import EditableModel
    from palimpsest.patches import Applied, Patch


class RunningPatch:
    """All edits so far, applied to a model; taken off when the block ends, however it ends.

    Patches that can become one do: the sum is taken off, grows, and is put on again, so that memory does not grow
    with the number of edits. Others lie on top of each other.
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

    def restore(self, patch: Patch | None) -> None:
        """Puts a saved sum on the model; `None` for one that is empty."""
        if patch is not None:
            self._stack.append((patch, patch.apply(self._model)))

    def add(self, patch: Patch) -> str | None:
        """Puts one more edit on. Returns what is wrong when the sum is not finite; then nothing has changed."""
        self._count += 1
        try:
            total = self._stack[-1][0].followed_by(patch) if self._stack else None
        except PatchError as error:
            return f"PatchError: {error}"
        if total is None:
            self._stack.append((patch, patch.apply(self._model)))
            return None
        total.manifest.label = f"{self._name}, edited in sequence"
        self._stack.pop()[1].remove()
        self._stack.append((total, total.apply(self._model)))
        return None

    @property
    def num_bytes(self) -> int:
        """Bytes of all patches on the model."""
        return sum(patch.num_bytes for patch, _ in self._stack)

    @property
    def norm(self) -> float | None:
        """Norm of the sum of all changes of weights; `None` for patches of other kinds."""
        return self._stack[0][0].norm() if len(self._stack) == 1 else None

    def is_storable(self) -> bool:
        """Whether `patch` is all there is."""
        return len(self._stack) <= 1

    def patch(self) -> Patch | None:
        """The sum; `None` when there is none yet."""
        return self._stack[0][0] if self._stack else None
