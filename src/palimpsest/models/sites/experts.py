"""The experts of a mixture as one linear layer: what each writes is added up, so their down-projections side by side.

Of a token that the router sends to some experts e with weights g_e, a layer writes

    y = sum_e g_e (W_e h_e + b_e) = W k + sum_e g_e b_e,    W = [W_1 ... W_E],    k = [g_1 h_1, ..., g_E h_E]

where h_e is what expert e has inside, and a token that is not sent to e has zeros in its place. So W, (out, experts *
width), is a matrix like that of any other MLP, and k is what it reads. The router decides before W is read: a change of
W moves no token of its own layer to another expert.

transformers keeps W as one parameter `down_proj` of three axes, (experts, out, width), or (experts, width, out) where
the module says that it is transposed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.models.sites.plain import is_plain

_SAYS = ("num_experts", "is_transposed", "has_bias", "has_gate", "_apply_gate")
"""What transformers' decorator `use_experts_implementation` lets a module of experts say of its layout."""


def is_experts(module: nn.Module) -> bool:
    """Whether this is a module of experts in transformers' layout, whose down-projections are plain numbers.

    Experts that are each followed by a norm, or that this process holds only in part, do not count.
    """
    if not all(hasattr(module, name) for name in _SAYS):
        return False
    is_shared = bool(getattr(module, "_is_expert_parallel", False)) or bool(
        getattr(module, "has_post_expert_norm", False)
    )
    down = getattr(module, "down_proj", None)
    return isinstance(down, Tensor) and is_plain(down) and down.ndim == 3 and not is_shared


def number_of_experts(module: nn.Module) -> int:
    """How many experts a module holds; 1 for any other module."""
    return len(down_projections(module)) if is_experts(module) else 1


def down_projections(module: nn.Module) -> Tensor:
    """All experts' W_e, (experts, ...), as they are stored."""
    down: Any = module.down_proj
    stored: Tensor = down
    return stored


def is_turned(module: nn.Module) -> bool:
    """Whether the matrices are stored (experts, width, out)."""
    return bool(module.is_transposed)


def stacked(module: nn.Module) -> Tensor:
    """W, (out, experts * width); a copy, or a view where the experts are stored transposed."""
    down = down_projections(module)
    return down.flatten(0, 1).t() if is_turned(module) else down.transpose(0, 1).flatten(1)


def factors_by_expert(module: nn.Module, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of a change of W, left (out, r) and right (r, experts * width), as factors of the stored parameter.

    One of the two has three axes, one matrix for every expert, and their product the parameter's shape.
    """
    apart = right.reshape(len(right), number_of_experts(module), -1).transpose(0, 1)
    if is_turned(module):
        return apart.mT.contiguous(), left.t().contiguous()
    return left, apart.contiguous()


def keys_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """k, (tokens, experts * width), of what a module of experts is called with: hidden states, choices, weights.

    Only experts that a token is sent to are computed, one after another in plain torch, whichever kernels the model
    itself computes with.
    """
    hidden, chosen, weights = (*args, *kwargs.values())[:3]
    experts = number_of_experts(module)
    # At least float32 where the router's weights are: products with these are not rounded to the model's dtype.
    dtype = torch.promote_types(hidden.dtype, weights.dtype)
    width = down_projections(module).shape[1 if is_turned(module) else 2]
    keys = hidden.new_zeros(len(hidden), experts, width, dtype=dtype)
    for expert in (one for one in chosen.unique().tolist() if one < experts):
        token, place = (chosen == expert).nonzero(as_tuple=True)
        keys[token, expert] = (_inside(module, hidden[token], expert) * weights[token, place, None]).to(dtype)
    found: Tensor = keys.flatten(1)
    return found


def _inside(module: nn.Module, hidden: Tensor, expert: int) -> Tensor:
    """h_e, (tokens, width)."""
    layer: Any = module
    name = "gate_up_proj" if layer.has_gate else "up_proj"
    matrix = getattr(layer, name)[expert]
    out: Tensor = hidden @ matrix if is_turned(module) else nn.functional.linear(hidden, matrix)
    if layer.has_bias:
        out = out + getattr(layer, f"{name}_bias")[expert]
    inside: Tensor = layer._apply_gate(out) if layer.has_gate else layer.act_fn(out)
    return inside
