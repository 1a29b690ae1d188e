"""The state of a sequence of edits with ROME, MEMIT or their kin: the keys of the facts written so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.locating import KeyPooling, SubjectRows, key_columns, subject_vectors
from palimpsest.methods.base import MethodState
from palimpsest.models import EditableModel, Point
from palimpsest.models.sites import MLP_DOWN
from palimpsest.solve import EarlierKeys


@dataclass(frozen=True)
class EditedKeys(MethodState):
    """Keys of all edits so far, by layer: root-weighted, read from the edited model, and projected by AlphaEdit."""

    keys: dict[int, EarlierKeys]

    def tensors(self) -> dict[str, Tensor]:
        """See `MethodState.tensors`."""
        return {f"{layer}.{what}": one for layer, keys in self.keys.items() for what, one in keys.tensors().items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """See `MethodState.from_tensors`."""
        tables: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            at, _, what = name.partition(".")
            tables.setdefault(int(at), {})[what] = tensor
        return cls({layer: EarlierKeys.from_tensors(table) for layer, table in tables.items()})

    @classmethod
    def before(cls, state: MethodState | None, widths: Mapping[int, int], *, method: str) -> dict[int, EarlierKeys]:
        """The keys of the edits before, none at first. Raises `ConfigError` for the state of other layers or methods.

        Arguments:
            state: what the last edit returned.
            widths: layer to the length of its keys.
            method: who returned it, for the message.
        """
        if state is None:
            return {}
        keys = state.keys if isinstance(state, EditedKeys) else {}
        own, is_own = {at: one.rows.shape[1] for at, one in keys.items()}, type(state) is cls
        if not is_own or own != widths:
            lengths = sorted(set(widths.values()))
            found = f"layers {sorted(own)}, keys of length {sorted(set(own.values()))}" if own else type(state).__name__
            raise ConfigError(
                "This state is not of this method at these layers.",
                expected=f"the state that {method} returned for layers {sorted(widths)}, keys of length {lengths}",
                found=found if is_own else f"{type(state).__name__}, {found}",
                remedy="give the layers as an option, so that all edits of a sequence change the same ones",
            )
        return keys


class WrittenKeys(EditedKeys):
    """The same as they are, of ROME, MEMIT, EMMET and PMET with `history`."""


def edited_keys(
    model: EditableModel, rows: SubjectRows, layers: Iterable[int], pooling: KeyPooling
) -> dict[int, Tensor]:
    """Keys of some facts by layer, (n, in), as the model reads them with what lies on it.

    They are times the square root of their weights, so that their products add up to the weighted sum of k k^T.
    """
    points = {layer: Point(MLP_DOWN, layer, "input") for layer in layers}
    found, keys = subject_vectors(model, rows, list(points.values())), {}
    for layer, point in points.items():
        columns, weights = key_columns(found[point], pooling)
        keys[layer] = columns * weights.sqrt()[:, None]
    return keys
