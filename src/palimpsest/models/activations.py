"""Which function an MLP without a gate puts between its two matrices: found by looking, not by a config's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from palimpsest.errors import unknown_name
from palimpsest.models.hooks import Point, captured

if TYPE_CHECKING:
    from palimpsest.models.editable import EditableModel

# Under transformers' names.
ACTIVATIONS = ("relu", "gelu", "gelu_pytorch_tanh", "silu", "quick_gelu", "relu2")
_LEAST = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name. Raises `ConfigError` for an unknown one."""
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    function: Callable[[Tensor], Tensor] = ACT2FN[name]
    return function


@torch.no_grad()
def activation_of(model: EditableModel, layer: int) -> str | None:
    """The name of the decoder's activation at a layer; `None` where the MLP has a gate or a function of its own.

    One pass over a few tokens: of the known functions, the one that leads from what `mlp.up` writes to what `mlp.down`
    reads.

    Raises `ModelError` for a mixture of experts, which has no such matrices.
    """
    up, down = Point("mlp.up", layer), Point("mlp.down", layer, "input")
    rows = [list(range(min(16, len(model.tokenizer))))]
    with model.weights.without_changes(), captured(model.sites, [up, down]) as found:
        model.forward(model.batch(rows))
    before, after = found[up], found[down]
    return None if before.shape != after.shape else _fitting(before, torch.ones_like(before), after)


@torch.no_grad()
def gate_activation_of(model: EditableModel, layer: int) -> str | None:
    """The name of the activation of a decoder's gated MLP; `None` where it has no gate of its own or another form.

    Of the known functions, the one that leads from what `mlp.gate` writes to what `mlp.down` reads, times what `mlp.up`
    writes.
    """
    if model.is_encoder_decoder or "mlp.gate" not in model.sites.architecture.sites:
        return None
    points = [Point("mlp.gate", layer), Point("mlp.up", layer), Point("mlp.down", layer, "input")]
    rows = [list(range(min(16, len(model.tokenizer))))]
    with model.weights.without_changes(), captured(model.sites, points) as found:
        model.forward(model.batch(rows))
    gate, up, after = (found[point] for point in points)
    return _fitting(gate, up, after) if gate.shape == up.shape == after.shape else None


def _fitting(before: Tensor, times: Tensor, after: Tensor) -> str | None:
    errors = {name: float((activation(name)(before) * times - after).abs().max()) for name in ACTIVATIONS}
    best = min(errors, key=errors.__getitem__)
    scale = float(after.abs().max())
    return best if errors[best] <= _LEAST[after.dtype] * max(scale, 1e-3) else None
