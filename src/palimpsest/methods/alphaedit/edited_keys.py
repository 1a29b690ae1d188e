"""What a sequence of edits with AlphaEdit remembers: the keys of the facts written so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.files import shaped
from palimpsest.locating import key_columns
from palimpsest.methods.base import MethodState
from palimpsest.solve import EarlierKeys


@dataclass(frozen=True)
class EditedKeys(MethodState):
    """Keys of all edits so far, by layer: root-weighted, read from the edited model, and projected."""

    keys: dict[int, EarlierKeys]

    def tensors(self) -> dict[str, Tensor]:
        """See `MethodState.tensors`."""
        rows = {f"{layer}.rows": earlier.rows for layer, earlier in self.keys.items()}
        moments = {f"{layer}.moment": one.moment for layer, one in self.keys.items() if one.moment is not None}
        return rows | moments

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> EditedKeys:
        """See `MethodState.from_tensors`."""
        keys = {}
        for name, rows in tensors.items():
            at, _, what = name.partition(".")
            if what not in ("rows", "moment"):
                raise ValueError(f"tensor {name}, which no state of alphaedit has")
            if what == "rows":
                width = int(shaped(rows, None, None, name=name).shape[1])
                moment = tensors.get(f"{at}.moment")
                moment = None if moment is None else shaped(moment, width, width, name=f"{at}.moment").double()
                keys[int(at)] = EarlierKeys(rows.double(), moment)
        return cls(keys)


def earlier_keys(state: MethodState | None, widths: Mapping[int, int]) -> dict[int, EarlierKeys]:
    """The keys of the edits before, none at first. Raises `ConfigError` for the state of other layers or methods.

    Arguments:
        state: what the last edit returned.
        widths: layer to the length of its keys.
    """
    if state is None:
        return {}
    own = {at: one.rows.shape[1] for at, one in state.keys.items()} if isinstance(state, EditedKeys) else {}
    if not isinstance(state, EditedKeys) or own != widths:
        lengths = sorted(set(widths.values()))
        raise ConfigError(
            "This state is not of this method at these layers.",
            expected=f"the state that alphaedit returned for layers {sorted(widths)}, keys of length {lengths}",
            found=f"layers {sorted(own)}, keys of length {sorted(set(own.values()))}" if own else type(state).__name__,
            remedy="give the layers as an option, so that all edits of a sequence change the same ones",
        )
    return state.keys


def root_weighted(vectors: Tensor, pooling: str) -> Tensor:
    """Keys times the square root of their weights, so that their products add up to the weighted sum of k k^T."""
    keys, weights = key_columns(vectors, pooling)  # type: ignore[arg-type]
    return keys * weights.sqrt()[:, None]
