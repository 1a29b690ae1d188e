"""Changes of weights: dense or low-rank deltas that can be scaled, negated, added and stacked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from palimpsest.errors import PatchError
from palimpsest.models import whole_tensor
from palimpsest.models.sites import is_plain, quantised_weights
from palimpsest.patches.base import Manifest, Patch, joined

if TYPE_CHECKING:
    from palimpsest.models import EditableModel, StackedChange

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Dense:
    """A change of the parameter's own shape, in the way the parameter is stored."""

    delta: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.delta.shape)

    def dense(self) -> Tensor:
        """The change itself, gathered when each of several processes has a share of it."""
        return whole_tensor(self.delta)

    def of_expert(self, index: int) -> Tensor | None:
        """Of a change with three axes the matrix of one expert; None where it is left as it is."""
        own = self.dense()[index]
        return own if own.any() else None

    def squared_norm(self) -> float:
        """Sum of all squared entries."""
        full = self.dense()
        # In float64, some rows at a time: a large tensor is not to be copied at twice its size.
        starts = range(0, full.shape[0] if full.ndim else 1, _ROWS_AT_ONCE)
        rows = (full[start : start + _ROWS_AT_ONCE] if full.ndim else full for start in starts)
        return math.fsum(float(part.double().square().sum()) for part in rows)

    def times(self, inputs: Tensor) -> Tensor:
        """Applies the change of a weight (out, in) to a layer's input: (..., in) to (..., out), in float32."""
        return inputs.float() @ self.delta.to(inputs.device, torch.float32).t()

    def scaled(self, factor: float) -> Dense:
        """`factor` times the change."""
        return Dense(self.delta * factor)

    def tensors(self) -> dict[str, Tensor]:
        """Its numbers by their name in a file."""
        return {"dense": self.delta}


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change `left @ right`; left (rows, r), right (r, columns), product in the way the parameter is stored.

    Of a parameter with three axes, a mixture's experts, at least one of the factors has a matrix for each, (experts, r,
    columns) or (experts, rows, r); where the other has two axes, all share it.
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        axes, experts = {self.left.ndim, self.right.ndim}, {len(one) for one in self._by_expert}
        if not axes <= {2, 3} or len(experts) > 1 or self.left.shape[-1] != self.right.shape[-2]:
            raise PatchError(
                "The factors of a low-rank change do not fit together.",
                expected="shapes (rows, r) and (r, columns)",
                found=f"shapes {tuple(self.left.shape)} and {tuple(self.right.shape)}",
            )

    @property
    def _by_expert(self) -> list[Tensor]:
        """The factors that have a matrix for each expert."""
        return [one for one in (self.left, self.right) if one.ndim == 3]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*(len(one) for one in self._by_expert[:1]), self.left.shape[-2], self.right.shape[-1])

    @property
    def rank(self) -> int:
        return int(self.left.shape[-1])

    @property
    def numel(self) -> int:
        """Numbers in both factors."""
        return self.left.numel() + self.right.numel()

    def dense(self) -> Tensor:
        """The product, in float32."""
        return self.left.float() @ self.right.float()

    def of_expert(self, index: int) -> Tensor | None:
        """See `Dense.of_expert`."""
        left, right = (one[index] if one.ndim == 3 else one for one in (self.left, self.right))
        return left.float() @ right.float() if left.any() and right.any() else None

    def times(self, inputs: Tensor) -> Tensor:
        """Applies the change of a weight (out, in) to a layer's input: (..., in) to (..., out), in float32."""
        left, right = (factor.to(inputs.device, torch.float32) for factor in (self.left, self.right))
        return (inputs.float() @ right.t()) @ left.t()

    def squared_norm(self) -> float:
        """Sum of all squared entries of the product, which is not made for it: tr((L'L)(RR'))."""
        left, right = self.left.double(), self.right.double()
        return float(((left.mT @ left) * (right @ right.mT)).sum())

    def scaled(self, factor: float) -> LowRank:
        """`factor` times the change; only the left factor is scaled."""
        return LowRank(self.left * factor, self.right)

    def tensors(self) -> dict[str, Tensor]:
        """Its numbers by their name in a file."""
        return {"left": self.left, "right": self.right}


Delta = Dense | LowRank


def add(first: Delta, second: Delta) -> Delta:
    """The sum; it stays factored while the factors are smaller than the product."""
    if first.shape != second.shape:
        raise PatchError("Two changes of one tensor differ in shape.", found=f"{first.shape} and {second.shape}")
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        is_alike = (first.left.ndim, first.right.ndim) == (second.left.ndim, second.right.ndim)
        if is_alike and first.numel + second.numel < math.prod(first.shape):
            return LowRank(torch.cat([first.left, second.left], dim=-1), torch.cat([first.right, second.right], dim=-2))
    if isinstance(first, Dense) and isinstance(second, Dense):
        return Dense(first.delta + second.delta)
    return Dense(first.dense() + second.dense())


class WeightPatch(Patch):
    """A change of weights, one delta a parameter.

    Arguments:
        deltas: canonical parameter name to its delta, in storage order.
        manifest: where it came from.
        parts: patches that this one was put together from and that are worth keeping apart, by name. They are saved
            with it and dropped by arithmetic.

    `-p`, `2.0 * p`, `p + q` and `p - q` give new patches. A patch scaled by zero is empty, so that `0 * p + q`
    equals `q` bit for bit.
    """

    kind = "weights"

    def __init__(
        self,
        deltas: Mapping[str, Delta],
        manifest: Manifest | None = None,
        *,
        parts: Mapping[str, WeightPatch] | None = None,
    ) -> None:
        for name, delta in deltas.items():
            for part in delta.tensors().values():
                if not whole_tensor(torch.isfinite(part).all()):
                    raise PatchError(
                        "A patch holds numbers that are not finite.",
                        expected="finite numbers",
                        found="NaN or infinity",
                        where=f"tensor {name}",
                        remedy="lower the learning rate or the number of steps, or compute in float32",
                    )
        self.deltas = dict(deltas)
        self.manifest = manifest or Manifest(label="unnamed")
        self.parts = dict(parts or {})

    # Putting on and taking off

    def put_on(self, model: EditableModel) -> StackedChange:
        """Puts the deltas on the model's weights; see `Patch.put_on`.

        Nothing can be added to a quantised weight: there the change runs beside the layer, from its input to its
        output.
        """
        stack = model.weights
        compute: dict[str, Callable[[Tensor], Tensor]] = {}
        branches: dict[str, Callable[[Tensor], Tensor]] = {}
        for name, delta in self.deltas.items():
            canonical = stack.canonical(name)
            if canonical in compute or canonical in branches:
                raise PatchError(
                    "A patch changes one tied weight under two names.",
                    expected="each storage once",
                    found=f"{name!r}, tied to {canonical!r}",
                )
            if stack.shape(canonical) != delta.shape:
                raise PatchError(
                    "A patch does not fit the model.",
                    expected=f"shape {stack.shape(canonical)}",
                    found=f"shape {delta.shape}",
                    where=f"tensor {name}",
                )
            if is_plain(stack.current(canonical)):
                compute[canonical] = _adder(delta)
            elif len(delta.shape) != 2:
                raise quantised_weights(f"tensor {name}", stack.owner(canonical))
            else:
                branches[canonical] = delta.times
        return stack.push(self.manifest.label, compute, branches, origin=self)

    # Arithmetic

    def __truediv__(self, divisor: float) -> WeightPatch:
        return self * (1.0 / divisor)

    def __radd__(self, other: object) -> WeightPatch:
        # The start of `sum(patches)`.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __neg__(self) -> WeightPatch:
        return self * -1.0

    def __mul__(self, factor: float) -> WeightPatch:
        if not isinstance(factor, (int, float)):
            return NotImplemented
        deltas = {name: delta.scaled(float(factor)) for name, delta in self.deltas.items()} if factor else {}
        return WeightPatch(deltas, self.manifest.model_copy(update={"label": f"{factor:g} * ({self.manifest.label})"}))

    __rmul__ = __mul__

    def __add__(self, other: WeightPatch) -> WeightPatch:
        if not isinstance(other, WeightPatch):
            return NotImplemented
        deltas = dict(self.deltas)
        for name, delta in other.deltas.items():
            deltas[name] = add(deltas[name], delta) if name in deltas else delta
        return WeightPatch(deltas, joined(self.manifest, other.manifest))

    def __sub__(self, other: WeightPatch) -> WeightPatch:
        return self + (-other)

    # Facts about it

    def touched(self) -> list[str]:
        return sorted(self.deltas)

    def is_empty(self) -> bool:
        return not self.deltas

    def norm(self) -> float:
        """Frobenius norm of all deltas together."""
        return math.sqrt(sum(delta.squared_norm() for delta in self.deltas.values()))

    def tensors(self) -> dict[str, Tensor]:
        return {f"{name}/{key}": part for name, delta in self.deltas.items() for key, part in delta.tensors().items()}

    @classmethod
    def from_saved(cls, tensors: Mapping[str, Tensor], manifest: Manifest, parts: Mapping[str, Patch]) -> WeightPatch:
        deltas = {name: _delta(tensors, name, form) for name, form in manifest.tensor_layout.items()}
        return cls(deltas, manifest, parts={name: part for name, part in parts.items() if isinstance(part, cls)})

    def layout(self) -> dict[str, str]:
        return {name: type(delta).__name__ for name, delta in self.deltas.items()}

    def saved_parts(self) -> Mapping[str, Patch]:
        return self.parts

    def followed_by(self, other: Patch) -> WeightPatch | None:
        return self + other if isinstance(other, WeightPatch) else None


def _delta(tensors: Mapping[str, Tensor], name: str, form: str) -> Delta:
    if form == "Dense":
        return Dense(tensors[f"{name}/dense"])
    if form == "LowRank":
        return LowRank(tensors[f"{name}/left"], tensors[f"{name}/right"])
    raise ValueError(f"unknown layout {form!r} of {name}")


def _adder(delta: Delta) -> Callable[[Tensor], Tensor]:
    def plus(below: Tensor) -> Tensor:
        # Added in float32 or better and rounded once: a delta below bfloat16's resolution is not lost twice.
        wide = torch.promote_types(below.dtype, torch.float32)
        if below.ndim != 3:
            return (below + delta.dense().to(below.device, wide)).to(below.dtype)
        # Of a mixture's experts one after another: all of them in float32 may be gigabytes, and most are not changed.
        changed = below.clone()
        for index in range(len(below)):
            own = delta.of_expert(index)
            if own is not None:
                changed[index] = (below[index] + own.to(below.device, wide)).to(below.dtype)
        return changed

    return plus
