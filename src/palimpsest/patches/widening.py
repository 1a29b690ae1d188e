"""Added neurons as more columns of a model's own matrices.

An MLP without a gate is act(q K^T + b) V: with the neurons' keys as more rows of K, their biases in b and their values
as more rows of V it computes what it and the branch compute together. Two things can be had nearly:

    relu(z) v              act(sharpness z) v / sharpness, for an act that is the identity far above 0 and 0 far below
    act(q k + b) v         act(q (k + b c)) (q c) v in an MLP with a gate, for a c with q c about 1 on any text

the second one from neurons that know such a c, their `constant`. A config has one width for all layers, so that the
others get neurons of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.models import activation_of, gate_activation_of
from palimpsest.models.sites import is_quantised, is_transposed
from palimpsest.patches.neurons import Neurons

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

# What configs call the width of their MLPs.
_WIDTHS = ("n_inner", "intermediate_size", "ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "d_ff")
_SHARPNESS = 64.0
"""The result is off by at most 0.28 / 64 of a value, where a neuron begins to open."""
_LIKE_RELU = ("gelu", "gelu_pytorch_tanh", "silu", "quick_gelu")
_REMEDY = "write the base model's name and the patches instead: --as patched, which palimpsest.load reads"


@torch.no_grad()
def widened(model: EditableModel, added: Sequence[Neurons]) -> Any:
    """The transformers model with the neurons in its matrices; the model itself stays as it is.

    Raises `ConfigError` where the architecture does not allow it.
    """
    by_layer: dict[int, list[Neurons]] = {}
    for neurons in added:
        _require_alike(model, neurons)
        by_layer.setdefault(neurons.layer, []).append(neurons)
    extra = max(sum(len(one.edits) for one in group) for group in by_layer.values())
    wide = _wider_module(model, extra)
    tensors = dict(model.module.state_dict())
    filled: dict[str, Tensor] = {}
    for layer, group in by_layer.items():
        filled |= _filled(model, layer, group)
    shapes = {name: tensor.shape for name, tensor in wide.state_dict().items()}
    for name, shape in shapes.items():
        own = tensors[name]
        if own.shape != shape:
            padded = own.new_zeros(shape)
            padded[tuple(slice(size) for size in own.shape)] = own
            if name in filled:
                _put(padded, own.shape, filled[name])
            tensors[name] = padded
    wide.load_state_dict(tensors, assign=True)
    wide.tie_weights()
    wide.generation_config = getattr(model.module, "generation_config", None)
    return wide.eval()


def _filled(model: EditableModel, layer: int, group: Sequence[Neurons]) -> dict[str, Tensor]:
    """Parameter name to what stands in its new part, as it is stored."""
    own, has_gate = _function(model, layer)
    sharp = [1.0 if one.activation == own else _SHARPNESS for one in group]
    keys = torch.cat([one.keys * factor for one, factor in zip(group, sharp, strict=True)])
    values = torch.cat([one.values / factor for one, factor in zip(group, sharp, strict=True)])
    biases = torch.cat([_biases(one) * factor for one, factor in zip(group, sharp, strict=True)])
    parts = {"mlp.up.weight": keys, "mlp.up.bias": biases, "mlp.down.weight": values.t()}
    if has_gate:
        constants = torch.cat([_constant(one).expand_as(one.keys) for one in group])
        gates = keys + biases[:, None] * constants
        parts = {"mlp.gate.weight": gates, "mlp.up.weight": constants, "mlp.down.weight": values.t()}
    filled = {}
    for part, tensor in parts.items():
        site, kind = part.rsplit(".", 1)
        is_turned = kind == "weight" and is_transposed(model.sites.module(site, layer))
        name = model.sites.parameter_name(site, layer).removesuffix("weight") + kind
        filled[name] = tensor.t() if is_turned else tensor
    return filled


def _function(model: EditableModel, layer: int) -> tuple[str | None, bool]:
    """The name of a layer's activation, if it is known, and whether the MLP has a gate of its own."""
    gate = None if model.sites.part("mlp.up").is_slice else gate_activation_of(model, layer)
    return gate or activation_of(model, layer), gate is not None


def _biases(neurons: Neurons) -> Tensor:
    return neurons.keys.new_zeros(len(neurons.edits)) if neurons.biases is None else neurons.biases


def _constant(neurons: Neurons) -> Tensor:
    return neurons.keys.new_zeros(neurons.keys.shape[1]) if neurons.constant is None else neurons.constant


def _put(padded: Tensor, own: torch.Size, part: Tensor) -> None:
    """Writes the neurons behind what is the model's own, along the axis that has grown."""
    axis = next(axis for axis, size in enumerate(own) if padded.shape[axis] != size)
    padded.narrow(axis, own[axis], part.shape[axis]).copy_(part)


def _wider_module(model: EditableModel, extra: int) -> Any:
    """An empty model of the same class whose MLPs are wider, on no device."""
    config = model.module.config
    width = int(model.sites.module("mlp.up", 0).weight.numel()) // model.sites.d_model  # type: ignore[operator]
    changed = _expected_shapes(model, width + extra)
    for name in (name for name in _WIDTHS if hasattr(config, name)):
        # A fresh one: the model's own config is never changed.
        wider = type(config).from_dict({**config.to_dict(), name: width + extra})
        try:
            with torch.device("meta"):
                made = type(model.module)(wider)
        except (RuntimeError, ValueError, TypeError):
            continue
        shapes = {key: tuple(tensor.shape) for key, tensor in made.state_dict().items()}
        if all(shapes.get(key) == shape for key, shape in changed.items()):
            return made
    raise ConfigError(
        "The model's config has no width of the MLP that could grow.",
        expected=f"one of the fields {', '.join(_WIDTHS)}",
        found=f"a {type(model.module).__name__}, its MLPs {width} wide",
        remedy=_REMEDY,
    )


def _expected_shapes(model: EditableModel, width: int) -> Mapping[str, tuple[int, ...]]:
    """Of the decoder's matrices, when its MLPs have that width."""
    shapes = {}
    inward = [site for site in ("mlp.gate", "mlp.up") if site in model.sites.architecture.sites]
    for layer in range(model.num_layers):
        sizes = {**dict.fromkeys(inward, (width, model.sites.d_model)), "mlp.down": (model.sites.d_model, width)}
        for site, size in sizes.items():
            is_turned = is_transposed(model.sites.module(site, layer))
            shapes[model.sites.parameter_name(site, layer)] = size[::-1] if is_turned else size
    return shapes


def _require_alike(model: EditableModel, neurons: Neurons) -> None:
    """Raises `ConfigError` for neurons that the layer's own matrices cannot hold."""
    up, layer = model.sites.module("mlp.up", neurons.layer), neurons.layer
    own, has_gate = (None, False) if is_quantised(up) else _function(model, layer)
    has_bias = getattr(up, "bias", None) is not None
    is_alike = own == neurons.activation or (neurons.activation == "relu" and own in _LIKE_RELU)
    problems = {
        "an MLP with a gate in the same matrix, or an activation of its own": own is None and not is_quantised(up),
        "quantised weights": is_quantised(up),
        f"neurons with {neurons.activation} beside an MLP with {own}": own is not None and not is_alike,
        "neurons without a constant beside an MLP with a gate": has_gate and neurons.constant is None,
        "neurons with a bias beside an MLP without one": not has_gate
        and not has_bias
        and neurons.biases is not None
        and bool(neurons.biases.any()),
    }
    found = [problem for problem, is_there in problems.items() if is_there]
    if found:
        raise ConfigError(
            "The added neurons cannot become part of the model's own matrices.",
            expected="an MLP that computes as the neurons do",
            found=found[0],
            where=f"layer {layer} of model {model.name!r}",
            remedy=_REMEDY,
        )
