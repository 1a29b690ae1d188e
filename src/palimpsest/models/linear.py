"""The one place that knows how a linear layer stores its weight: by the module's type, never by its shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LINEAR_TYPES = (nn.Linear, Conv1D)


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear layer with a plain, editable weight."""
    return type(module) in LINEAR_TYPES


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored (in, out), as GPT-2's Conv1D does, instead of (out, in)."""
    return isinstance(module, Conv1D)


def weight_as_out_in(module: nn.Module) -> Tensor:
    """The weight as a view of shape (out, in)."""
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(module).__name__} has no weight tensor")
    return weight.t() if is_transposed(module) else weight


def to_storage(module: nn.Module, delta: Tensor) -> Tensor:
    """A change of shape (out, in), turned to the way the module stores its weight."""
    return delta.t() if is_transposed(module) else delta


def factors_to_storage(module: nn.Module, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of a change, left (out, r) and right (r, in), turned so that their product is in storage order."""
    return (right.t().contiguous(), left.t().contiguous()) if is_transposed(module) else (left, right)


def features(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer."""
    out_features, in_features = weight_as_out_in(module).shape
    return int(out_features), int(in_features)


def cut_output(output: Tensor, index: int, of: int) -> Tensor:
    """Slice `index` of `of` along the last axis: one projection of a fused output."""
    return torch.chunk(output, of, dim=-1)[index] if of > 1 else output
