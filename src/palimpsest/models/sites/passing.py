"""The hidden states among what modules are called with and give back: tensors, tuples, by place or by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from palimpsest.models.sites.experts import is_experts, keys_of


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a module is called with, by place or by name."""
    tensor: Tensor = args[0] if args else kwargs["hidden_states"]
    return tensor


def read_by(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Returns the inputs of a module's matrix: the hidden states, or the experts' keys, (tokens, experts * width)."""
    return keys_of(module, args, kwargs) if is_experts(module) else first_input(args, kwargs)


def first_tensor(output: object) -> Tensor:
    """The hidden states in a block's output, be it a tensor or a tuple that begins with one."""
    tensor = output[0] if isinstance(output, tuple) else output
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected a tensor or a tuple of tensors, found {type(tensor).__name__}")
    return tensor
