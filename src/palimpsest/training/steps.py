"""The size of an optimiser's steps in units of the matrix that it moves, which carry over from model to model.

A matrix W, (out, in), whose entries have the root mean square w, writes about w |x| sqrt(out) of an input x. One step
of unit length is one that can change as much:

    along the gradient        |dW x| <= |dW| |x|,                      so |dW| = w sqrt(out)
    of Adam, in every entry   |dW x| <= lr |x| sqrt(in) sqrt(out),     so lr = w / sqrt(in)

for the gradient of one token is an outer product with its input, so that the signs of a step agree with those of x.
Of an adapter s B A, with A uniform within 1 / sqrt(in), Adam's first step in B writes up to s lr rank |x| sqrt(out) /
sqrt(3 in), so lr = w sqrt(3 in) / (s rank).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.models import whole_tensor
from palimpsest.models.sites import features, has_plain_weight, is_transposed, weight_as_out_in


def root_mean_square(weight: Tensor) -> float:
    """Of all entries, in float32."""
    return math.sqrt(float(whole_tensor(weight.detach().float().square().mean())))


def owner(model: nn.Module, name: str) -> nn.Module:
    """The module that a parameter of this name belongs to."""
    return model.get_submodule(name.rpartition(".")[0])


def unit_of_step(module: nn.Module, weight: Tensor, optimizer: str) -> float:
    """The learning rate of a step of unit length; a vector, such as a bias, counts as a matrix with one row.

    Of experts it is that of one of them, for the weights by which a router adds them up come to about one.

    Arguments:
        module: whose weight it is; its type says how a matrix is stored.
        weight: the tensor that is trained.
        optimizer: `adamw`, or one that steps along the gradient.
    """
    size = root_mean_square(weight)
    if weight.ndim < 2:
        return size / math.sqrt(weight.numel()) if optimizer == "adamw" else size
    rows, columns = weight.shape[-2:]
    into, out = (rows, columns) if is_transposed(module) else (columns, rows)
    return size / math.sqrt(into) if optimizer == "adamw" else size * math.sqrt(out)


def unit_of_adapter(layer: nn.Module, scale: float) -> float:
    """Adam's learning rate for a step of unit length of an adapter on a linear layer.

    Arguments:
        layer: without its adapter.
        scale: alpha, which is the adapter's scale times its rank.
    """
    into = features(layer)[1]
    size = root_mean_square(weight_as_out_in(layer)) if has_plain_weight(layer) else size_by_passing(layer)
    return size * math.sqrt(3 * into) / scale


@torch.no_grad()
def size_by_passing(layer: nn.Module) -> float:
    """Root mean square of a matrix whose entries are packed: what it makes of random inputs, without its bias."""
    device = next(layer.buffers(), next(layer.parameters())).device
    inputs = torch.randn(64, features(layer)[1], generator=torch.Generator().manual_seed(0)).to(device)
    written = (layer(inputs) - layer(torch.zeros_like(inputs))).float()
    return float(written.square().mean().sqrt() / inputs.norm(dim=1).square().mean().sqrt())


class Normalised(torch.optim.Optimizer):
    """Moves each tensor against its gradient by its learning rate, however long the gradient is.

    Nothing is added up from step to step, so a change of a matrix has no larger rank than the gradients together.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; the closure is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                length = float(whole_tensor(parameter.grad.norm()))
                if length > 0:
                    parameter.sub_(parameter.grad, alpha=group["lr"] / length)
