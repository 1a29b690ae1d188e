"""A model's weights under a stack of changes. The base tensors are never written to.

A change makes new tensors and lets the parameters point to them; taking it off lets them point back. So removal is
exact by construction, and an interrupt between two parameters is undone by pointing back as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from palimpsest.errors import ModelError, PatchError
from palimpsest.models.fingerprint import exact_digest, fingerprint, tensor_digest
from palimpsest.models.placement import is_offloaded, offloaded_value, require_present
from palimpsest.models.sites.linear import (
    features,
    is_quantised,
    keep_form,
    qualified_name,
    quantised_weights,
)
from palimpsest.models.sites.plain import is_plain
from palimpsest.models.stacked_change import Compute, Install, KeptRouter, StackedChange
from palimpsest.provenance import digest

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class PatchStack:
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
            # Offloaded tensors are another object under each name; the model itself knows which of them are one. Empty
            # ones have no address, packed ones perhaps; they are told apart by identity.
            address = parameter.data_ptr() if is_plain(parameter) else 0
            alone: object = tied.get(name, name) if is_offloaded(parameter) else id(parameter)
            place = (address, int(parameter.storage_offset())) if address else (alone, 0)
            first = by_storage.setdefault((*place, tuple(parameter.shape)), name)
            self._canonical[name] = first
            self._parameters.setdefault(first, parameter)
        self._aliases: dict[str, list[nn.Parameter]] = {name: [] for name in self._parameters}
        seen: set[int] = set()
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                self._aliases[self._canonical[name]].append(parameter)
        for layer in filter(is_quantised, module.modules()):
            if not keep_form(layer):
                raise _used_before(layer)
        self._layers: list[StackedChange] = []
        self._is_bare = False
        self._is_direct = False
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

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The parameter objects that share a storage: one, or several where weights are tied."""
        return self._aliases[self.canonical(name)]

    def base(self, name: str) -> Tensor:
        """A parameter's value without any change."""
        name = self.canonical(name)
        return next((layer.below[name] for layer in self._layers if name in layer.below), self.current(name))

    def require_plain(self) -> None:
        """Raises `ModelError` when some weights are packed, so that they cannot all be trained."""
        for name in self.names():
            if not is_plain(self._parameters[name]):
                raise quantised_weights(f"tensor {name}", self.owner(name))

    @property
    def labels(self) -> list[str]:
        """Labels of the changes on the stack, lowest first."""
        return [layer.label for layer in self._layers]

    @property
    def depth(self) -> int:
        """How many changes are on the stack."""
        return len(self._layers)

    @property
    def is_bare(self) -> bool:
        """Whether every parameter is as the base model has it."""
        return self._is_bare or not self._layers

    def unwind(self, depth: int) -> None:
        """Takes changes off from the top until `depth` of them are left."""
        while len(self._layers) > depth:
            self._take_off(self._layers[-1])

    def shape(self, name: str) -> tuple[int, ...]:
        """A parameter's shape, wherever its values are; (out, in) where a quantised layer keeps them packed."""
        owner = self.owner(name)
        is_packed = is_quantised(owner) and name.endswith(".weight")
        return features(owner) if is_packed else tuple(self._parameters[self.canonical(name)].shape)

    @property
    def origins(self) -> list[object]:
        """The objects that put the changes on the stack, lowest first."""
        return [layer.origin for layer in self._layers]

    @property
    def routers(self) -> list[KeptRouter]:
        """Routers of the prompts, highest first: the last edit decides first."""
        if self._is_bare or self._is_direct:
            return []
        return [layer.router for layer in reversed(self._layers) if layer.router is not None]

    @contextmanager
    def without_routers(self) -> Iterator[None]:
        """Inside the block every prompt is the model's own to answer."""
        former, self._is_direct = self._is_direct, True
        try:
            yield
        finally:
            self._is_direct = former

    def owner(self, name: str) -> nn.Module:
        """The module that has a parameter, by its canonical name."""
        return self._module.get_submodule(self.canonical(name).rpartition(".")[0])

    def push(
        self,
        label: str,
        compute: Mapping[str, Compute],
        branches: Mapping[str, Compute] | None = None,
        *,
        origin: object = None,
        install: Install | None = None,
        router: KeptRouter | None = None,
    ) -> StackedChange:
        """Puts a change on the stack, whole or not at all.

        Arguments:
            label: what to call it.
            compute: canonical name to a function from the value below to the new value (same shape, dtype, device).
            branches: canonical name of a quantised layer's weight to a function from the layer's input to what is
                added to its output.
            origin: the object on whose behalf.
            install: puts hooks on the modules and returns their handles; they are taken off with the change.
            router: decides for each prompt whether something else answers it.
        """
        self.require_present(compute)
        layer = StackedChange(label, dict(compute), dict(branches or {}), origin, install, router)
        self._put(layer)
        return layer

    def remove(self, layer: StackedChange) -> None:
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

    def fingerprint(self, config: PretrainedConfig, touched: Sequence[str]) -> dict[str, Any]:
        """The base model's fingerprint; see `models.fingerprint.fingerprint`."""
        shapes = {name: list(self.shape(name)) for name in self.names()}
        return fingerprint(config, shapes, self._base_digest, map(self.canonical, touched))

    def exact_digest(self, name: str) -> str:
        """A digest of every bit of a parameter's value without any change; see `fingerprint.exact_digest`."""
        return self._digest(self.canonical(name), "exact", exact_digest)

    def stamp(self, name: str) -> tuple[int, int]:
        """Another one once a parameter's value without any change was written or replaced.

        Torch counts in-place writes to a parameter, an optimiser's too; only those through `.data` go uncounted.
        """
        name = self.canonical(name)
        if is_offloaded(self._parameters[name]):
            # Nothing can lie on it, and where it is kept nobody writes.
            return 0, 0
        address = self.base(name).data_ptr() if is_plain(self._parameters[name]) else 0
        return address, sum(parameter._version for parameter in self._aliases[name])

    @contextmanager
    def without_changes(self) -> Iterator[None]:
        """Inside the block every parameter is as the base model has it; afterwards the changes are back on."""
        changed = {name for layer in self._layers for name in layer.below}
        current = {name: self.current(name) for name in changed}
        base = {name: self.base(name) for name in changed}
        installed = [layer for layer in self._layers if layer.install is not None]
        try:
            self._is_bare = True
            for layer in installed:
                layer.unhook()
            for name, tensor in base.items():
                self.point(name, tensor)
            yield
        finally:
            self._is_bare = False
            for name, tensor in current.items():
                self.point(name, tensor)
            for layer in installed:
                self._hook(layer)

    def _base_digest(self, name: str, whole: bool) -> str:
        return self._digest(name, "whole" if whole else "sample", partial(tensor_digest, whole=whole))

    def _digest(self, name: str, kind: str, compute: Callable[[Tensor], str]) -> str:
        # One entry a tensor: training counts up the writes, and old stamps never come back.
        stamp = self.stamp(name)
        if self._digests.get((name, kind), (None, ""))[0] != stamp:
            self._digests[name, kind] = (stamp, self._computed(name, compute))
        return self._digests[name, kind][1]

    def _computed(self, name: str, compute: Callable[[Tensor], str]) -> str:
        parameter = self._parameters[name]
        if is_offloaded(parameter):
            return compute(offloaded_value(self._module, name))
        return compute(self.base(name)) if is_plain(parameter) else self._packed_digest(name)

    def _packed_digest(self, name: str) -> str:
        """Of all that the owner saves: scales belong to a packed weight, and saving puts it into its lasting form."""
        saved = sorted(self.owner(name).state_dict().items())
        return digest([(key, tensor_digest(one, whole=True)) for key, one in saved if isinstance(one, Tensor)])

    def point(self, name: str, tensor: Tensor) -> None:
        """Lets a parameter and its aliases point to another tensor of the same shape."""
        for parameter in self._aliases[self.canonical(name)]:
            parameter.data = tensor

    def _put(self, layer: StackedChange) -> None:
        with torch.no_grad():
            fresh = {name: function(self.current(name)) for name, function in layer.compute.items()}
        below = {name: self.current(name) for name in fresh}
        try:
            for name, tensor in fresh.items():
                self.point(name, tensor)
            self._hook(layer)
            layer.below = below
            self._layers.append(layer)
        except BaseException:
            layer.unhook()
            for name, tensor in below.items():
                self.point(name, tensor)
            if layer in self._layers:
                self._layers.remove(layer)
            raise

    def _hook(self, layer: StackedChange) -> None:
        for name, branch in layer.branches.items():
            layer.hooks.append(self.owner(name).register_forward_hook(self._adding(branch)))
        if layer.install is not None:
            layer.hooks.extend(layer.install())

    def _adding(self, branch: Compute) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def after(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            return output if self._is_bare else output + branch(args[0]).to(output.dtype)

        return after

    def _take_off(self, layer: StackedChange) -> None:
        # Pointing back is idempotent, so an interrupt here is followed by doing it again.
        try:
            self._point_back(layer)
        except BaseException:
            self._point_back(layer)
            raise

    def _point_back(self, layer: StackedChange) -> None:
        layer.unhook()
        for name, tensor in layer.below.items():
            self.point(name, tensor)
        if layer in self._layers:
            self._layers.remove(layer)


def _used_before(module: nn.Module) -> ModelError:
    return ModelError(
        "A first use of the model on this CPU turned its 4-bit weights into a form that only inference can use.",
        expected="weights in the form they are saved in",
        found=f"a {qualified_name(module)} that has been used",
        remedy="load the model again and hand it to palimpsest.load before anything else",
    )
