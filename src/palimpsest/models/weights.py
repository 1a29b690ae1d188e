"""A model's weights under a stack of changes. The base tensors are never written to.

A change makes new tensors and lets the parameters point to them; taking it off lets them point back. So removal is
exact by construction, and an interrupt between two parameters is undone by pointing back as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.errors import PatchError
from palimpsest.models.fingerprint import exact_digest, fingerprint, tensor_digest
from palimpsest.models.placement import is_offloaded, offloaded_value, require_present

Compute = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Layer:
    """One change on the stack: how each touched parameter's new value follows from the one below it."""

    label: str
    compute: Mapping[str, Compute]
    below: dict[str, Tensor]


class WeightStack:
    """The parameters of a model, each storage once, and the changes on them.

    Parameters that share a storage (tied weights) have one canonical name, the first in `named_parameters()`.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parameters: dict[str, nn.Parameter] = {}
        self._canonical: dict[str, str] = {}
        tied: Mapping[str, str] = getattr(module, "all_tied_weights_keys", None) or {}
        by_storage: dict[tuple[object, ...], str] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            place = (parameter.data_ptr(), int(parameter.storage_offset()), tuple(parameter.shape))
            # Empty tensors have no address and are told apart by identity. Offloaded ones are another object under
            # each name; the model itself knows which of them are one.
            alone: tuple[object, ...] = (tied.get(name, name),) if is_offloaded(parameter) else (id(parameter),)
            key = place if parameter.data_ptr() else alone
            first = by_storage.setdefault(key, name)
            self._canonical[name] = first
            self._parameters.setdefault(first, parameter)
        self._aliases: dict[str, list[nn.Parameter]] = {name: [] for name in self._parameters}
        seen: set[int] = set()
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                self._aliases[self._canonical[name]].append(parameter)
        self._layers: list[Layer] = []
        self._digests: dict[tuple[str, str], tuple[tuple[int, int], str]] = {}

    def names(self) -> list[str]:
        """Canonical names, in the model's order."""
        return list(self._parameters)

    def canonical(self, name: str) -> str:
        """The name under which a parameter's storage is known. Raises `PatchError` for an unknown one."""
        if name not in self._canonical:
            raise PatchError(
                "The model has no such tensor.",
                expected=f"one of its {len(self._canonical)} parameters",
                found=repr(name),
            )
        return self._canonical[name]

    def current(self, name: str) -> Tensor:
        """A parameter's present value, with every change on the stack. Raises `ModelError` when it is offloaded."""
        self.require_present([name])
        return self._parameters[self.canonical(name)].data

    def require_present(self, names: Iterable[str]) -> None:
        """Raises `ModelError` when one of these parameters is offloaded; costs nothing."""
        require_present([name for name in names if is_offloaded(self._parameters[self.canonical(name)])])

    def shape(self, name: str) -> tuple[int, ...]:
        """A parameter's shape, wherever its values are."""
        return tuple(self._parameters[self.canonical(name)].shape)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The parameter objects that share a storage: one, or several where weights are tied."""
        return self._aliases[self.canonical(name)]

    def base(self, name: str) -> Tensor:
        """A parameter's value without any change."""
        name = self.canonical(name)
        return next((layer.below[name] for layer in self._layers if name in layer.below), self.current(name))

    @property
    def labels(self) -> list[str]:
        """What is on the stack, lowest first."""
        return [layer.label for layer in self._layers]

    @property
    def depth(self) -> int:
        """How many changes are on the stack."""
        return len(self._layers)

    def unwind(self, depth: int) -> None:
        """Takes changes off from the top until `depth` of them are left."""
        while len(self._layers) > depth:
            self._take_off(self._layers[-1])

    def push(self, label: str, compute: Mapping[str, Compute]) -> Layer:
        """Puts a change on the stack, whole or not at all.

        Arguments:
            label: what to call it.
            compute: canonical name to a function from the value below to the new value (same shape, dtype, device).
        """
        self.require_present(compute)
        layer = Layer(label, dict(compute), {})
        self._put(layer)
        return layer

    def remove(self, layer: Layer) -> None:
        """Takes a change off, wherever it lies; what lay above it is put back on what remains."""
        if layer not in self._layers:
            raise PatchError(
                "The patch is not on the model.", found=repr(layer.label), expected=f"one of {self.labels}"
            )
        above = self._layers[self._layers.index(layer) + 1 :]
        for upper in reversed(above):
            self._take_off(upper)
        self._take_off(layer)
        try:
            for upper in above:
                self._put(upper)
        except BaseException:
            # Their order is kept; a second try costs at most what was asked for.
            for upper in above:
                if upper not in self._layers:
                    self._put(upper)
            raise

    def fingerprint(self, config: Any, touched: Sequence[str]) -> dict[str, Any]:
        """The base model's fingerprint; see `models.fingerprint.fingerprint`."""
        shapes = {name: list(parameter.shape) for name, parameter in self._parameters.items()}
        return fingerprint(config, shapes, self._base_digest, map(self.canonical, touched))

    def exact_digest(self, name: str) -> str:
        """A digest of every bit of a parameter's value without any change; see `fingerprint.exact_digest`."""
        return self._digest(self.canonical(name), "exact", exact_digest)

    @contextmanager
    def without_changes(self) -> Iterator[None]:
        """Inside the block every parameter is as the base model has it; afterwards the changes are back on."""
        changed = {name for layer in self._layers for name in layer.below}
        current = {name: self.current(name) for name in changed}
        base = {name: self.base(name) for name in changed}
        try:
            for name, tensor in base.items():
                self.point(name, tensor)
            yield
        finally:
            for name, tensor in current.items():
                self.point(name, tensor)

    def _base_digest(self, name: str, whole: bool) -> str:
        return self._digest(name, "whole" if whole else "sample", partial(tensor_digest, whole=whole))

    def _digest(self, name: str, kind: str, compute: Callable[[Tensor], str]) -> str:
        if is_offloaded(self._parameters[name]):
            # Nothing can lie on it, and where it is kept nobody writes.
            if (name, kind) not in self._digests:
                self._digests[name, kind] = ((0, 0), compute(offloaded_value(self._module, name)))
            return self._digests[name, kind][1]
        base = self.base(name)
        # Torch counts in-place writes to a parameter, an optimiser's too; only those through `.data` go uncounted.
        writes = sum(parameter._version for parameter in self._aliases[name])
        stamp = (base.data_ptr(), writes)
        # One entry a tensor: training counts up the writes, and old stamps never come back.
        if self._digests.get((name, kind), (None, ""))[0] != stamp:
            self._digests[name, kind] = (stamp, compute(base))
        return self._digests[name, kind][1]

    def point(self, name: str, tensor: Tensor) -> None:
        """Lets a parameter and its aliases point to another tensor of the same shape."""
        for parameter in self._aliases[self.canonical(name)]:
            parameter.data = tensor

    def _put(self, layer: Layer) -> None:
        with torch.no_grad():
            fresh = {name: function(self.current(name)) for name, function in layer.compute.items()}
        below = {name: self.current(name) for name in fresh}
        try:
            for name, tensor in fresh.items():
                self.point(name, tensor)
            layer.below = below
            self._layers.append(layer)
        except BaseException:
            for name, tensor in below.items():
                self.point(name, tensor)
            if layer in self._layers:
                self._layers.remove(layer)
            raise

    def _take_off(self, layer: Layer) -> None:
        # Pointing back is idempotent, so an interrupt here is followed by doing it again.
        try:
            self._point_back(layer)
        except BaseException:
            self._point_back(layer)
            raise

    def _point_back(self, layer: Layer) -> None:
        for name, tensor in layer.below.items():
            self.point(name, tensor)
        if layer in self._layers:
            self._layers.remove(layer)
