"""The one place that knows how a linear layer stores its weight: by the module's type, never by its shape."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from palimpsest.errors import ModelError
from palimpsest.models.sites.experts import factors_by_expert, is_experts, is_turned, stacked
from palimpsest.models.sites.plain import is_plain

LINEAR_TYPES = (nn.Linear, Conv1D)
EXPERTS_MATRIX = "down_proj"
"""What the parameter is called that holds all experts' down-projections."""


def is_linear(module: nn.Module, also: Collection[str] = ()) -> bool:
    """Whether the module is a linear layer with a plain, editable weight.

    Arguments:
        also: qualified names of further types; subclasses are not taken on trust, since most of them are quantised.
    """
    kind = type(module)
    return (kind in LINEAR_TYPES or qualified_name(module) in also) and has_plain_weight(module)


def has_plain_weight(module: nn.Module) -> bool:
    """Whether the weight is one tensor of ordinary floating-point numbers."""
    return is_plain(getattr(module, "weight", None))


def is_quantised(module: nn.Module) -> bool:
    """Whether the module is a linear layer that keeps its weight in a packed form, as bitsandbytes and torchao do.

    A layer that wraps another one, as peft's do, does not count.
    """
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    is_layer = all(isinstance(size, int) for size in sizes) and not hasattr(module, "base_layer")
    return is_layer and not has_plain_weight(module)


def keep_form(module: nn.Module) -> bool:
    """Lets a quantised layer keep the form its weight is saved in; returns whether it still has it.

    On some CPUs bitsandbytes (0.49 and later) turns 4-bit weights, at their first use, into a form that passes no
    gradient, and whose way back loses the scales.
    """
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return not getattr(getattr(getattr(module, "weight", None), "quant_state", None), "packing_format_for_cpu", False)


def qualified_name(module: nn.Module) -> str:
    """The full name of a module's type."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}"


def describe(weight: object) -> str:
    """A weight's type and dtype, in words."""
    if not isinstance(weight, Tensor):
        return "not there"
    return f"a {type(weight).__name__} of {str(weight.dtype).removeprefix('torch.')}"


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored (in, out), as GPT-2's Conv1D does, instead of (out, in)."""
    return isinstance(module, Conv1D) or (is_experts(module) and is_turned(module))


def weight_as_out_in(module: nn.Module) -> Tensor:
    """The weight as a view of shape (out, in); of experts (out, experts * width), which may be a copy."""
    if is_experts(module):
        return stacked(module)
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(module).__name__} has no weight tensor")
    return weight.t() if is_transposed(module) else weight


def factors_to_storage(module: nn.Module, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of a change, left (out, r) and right (r, in), turned so that their product is in storage order.

    Of experts one of them has a third axis in front; see `experts.factors_by_expert`.
    """
    if is_experts(module):
        return factors_by_expert(module, left, right)
    return (right.t().contiguous(), left.t().contiguous()) if is_transposed(module) else (left, right)


def features(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, a quantised one included."""
    if is_quantised(module):
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    out_features, in_features = weight_as_out_in(module).shape
    return int(out_features), int(in_features)


def layer_of(name: str) -> str:
    """The module that a parameter is the matrix of: `a.b` for `a.b.weight`, or for the experts' `a.b.down_proj`.

    The name itself where it is no matrix, such as a bias.
    """
    owner, _, kind = name.rpartition(".")
    return owner if kind in ("weight", EXPERTS_MATRIX) else name


def cut_output(output: Tensor, index: int, shares: Sequence[int], groups: int = 1) -> Tensor:
    """One projection of a fused output, cut along the last axis.

    Arguments:
        output: (..., width).
        index: which slice.
        shares: what the slices' sizes are in proportion to.
        groups: how many runs the width consists of, each with all slices in order; the slice is gathered from all.
    """
    run, total = output.shape[-1] // groups, sum(shares)
    start, size = run * sum(shares[:index]) // total, run * shares[index] // total
    runs = output.reshape(*output.shape[:-1], groups, run)
    return runs[..., start : start + size].flatten(-2)


def quantised_weights(where: str, module: nn.Module) -> ModelError:
    """The error of a method that has to change weights, on a model that keeps them packed."""
    weight = getattr(module, "weight", getattr(module, EXPERTS_MATRIX, None))
    return ModelError(
        "The model's weights are quantised, so that no change can be added to them.",
        expected="weights in float32, bfloat16 or float16",
        found=f"a {qualified_name(module)}, its weight {describe(weight)}",
        where=where,
        remedy="take lora or f-learning-lora, whose changes run beside the layer; or edit the checkpoint it was"
        " quantised from, write it with `palimpsest apply`, and quantise the result",
    )
