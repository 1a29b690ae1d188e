"""Blocks that are not computed, a head that is computed at chosen places only, parameters that take no part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from palimpsest.models.sites.passing import first_input

if TYPE_CHECKING:
    from palimpsest.models.patch_stack import PatchStack
    from palimpsest.models.sites.architecture import Sites


@contextmanager
def bypassed(sites: Sites, handed: Mapping[int, Tensor | None], arity: int) -> Iterator[None]:
    """Inside the block the given layers are not computed.

    Arguments:
        sites: the model's sites.
        handed: layer to what it hands on; None for what it is given.
        arity: length of the tuple that a block of this model returns, 0 for a bare tensor; see `recorded_arity`.
    """
    with ExitStack() as stack:
        for layer, tensor in handed.items():
            block = sites.block(layer)
            _replace_forward(stack, block, _stand_in(tensor, arity))
        yield


@contextmanager
def recorded_arity(block: nn.Module) -> Iterator[list[int]]:
    """Inside the block, every call of a module adds the length of the tuple it returns, 0 for a bare tensor."""
    found: list[int] = []

    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        found.append(len(output) if isinstance(output, tuple) else 0)

    handle = block.register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def head_at(sites: Sites, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Inside the block the model's logits are (1, places, vocabulary): those at the places, and no others.

    What a family does with its logits after the head, capping or scaling them, it still does.

    Arguments:
        sites: the model's sites.
        rows: (places,), row of each place.
        columns: (places,), its column.
    """

    def gather(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = first_input(args, kwargs)
        return (hidden[rows.to(hidden.device), columns.to(hidden.device)][None],), {}

    handle = sites.module("unembed").register_forward_pre_hook(gather, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def frozen_parameters(module: nn.Module) -> Iterator[None]:
    """Inside the block no parameter takes a gradient; afterwards `requires_grad` is as it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def cast_above(sites: Sites, weights: PatchStack, entry: int, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside the block all weights but those of the blocks below `entry` are copies in another dtype.

    Afterwards the parameters point to their own tensors again. `None` keeps them.
    """
    below = tuple(f"{sites.architecture.blocks}.{layer}." for layer in range(entry))
    own: dict[str, Tensor] = {}
    try:
        if dtype is not None:
            for name in weights.names():
                tensor = weights.current(name)
                if tensor.is_floating_point() and tensor.dtype != dtype and not name.startswith(below):
                    own[name] = tensor
                    weights.point(name, tensor.to(dtype))
        yield
    finally:
        for name, tensor in own.items():
            weights.point(name, tensor)


def _stand_in(tensor: Tensor | None, arity: int) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        handed = first_input(args, kwargs) if tensor is None else tensor
        return (handed, *[None] * (arity - 1)) if arity else handed

    return forward


def _replace_forward(stack: ExitStack, block: nn.Module, forward: Callable[..., Any]) -> None:
    # Another library may have put a forward of its own on the instance; it has to be there again afterwards.
    former = block.__dict__.get("forward")

    def restore() -> None:
        if former is None:
            del block.forward
        else:
            block.forward = former

    block.forward = forward
    stack.callback(restore)
