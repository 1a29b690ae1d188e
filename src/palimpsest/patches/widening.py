"""Added neurons as more columns of a model's own matrices, where these are of the same make.

An MLP without a gate is act(q K^T + b) V: with the neurons' keys as more rows of K, their biases in b and their values
as more rows of V it computes what it and the branch compute together. A config has one width for all layers, so that
the others get neurons of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.models import activation_of
from palimpsest.models.sites import is_quantised, is_transposed
from palimpsest.patches.neurons import Neurons

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

# What configs call the width of their MLPs.
_WIDTHS = ("n_inner", "intermediate_size", "ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "d_ff")
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
    up, down = (model.sites.module(site, layer) for site in ("mlp.up", "mlp.down"))
    names = {site: model.sites.parameter_name(site, layer).removesuffix("weight") for site in ("mlp.up", "mlp.down")}
    keys, values = (torch.cat([getattr(one, name) for one in group]) for name in ("keys", "values"))
    biases = torch.cat([one.keys.new_zeros(len(one.edits)) if one.biases is None else one.biases for one in group])
    return {
        names["mlp.up"] + "weight": keys.t() if is_transposed(up) else keys,
        names["mlp.up"] + "bias": biases,
        names["mlp.down"] + "weight": values if is_transposed(down) else values.t(),
    }


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
    for layer in range(model.num_layers):
        for site, sizes in (("mlp.up", (width, model.sites.d_model)), ("mlp.down", (model.sites.d_model, width))):
            is_turned = is_transposed(model.sites.module(site, layer))
            shapes[model.sites.parameter_name(site, layer)] = sizes[::-1] if is_turned else sizes
    return shapes


def _require_alike(model: EditableModel, neurons: Neurons) -> None:
    """Raises `ConfigError` for neurons that the layer's own matrices cannot hold."""
    up, layer = model.sites.module("mlp.up", neurons.layer), neurons.layer
    own = None if is_quantised(up) else activation_of(model, layer)
    has_bias = getattr(up, "bias", None) is not None
    problems = {
        "an MLP with a gate, or an activation of its own": own is None and not is_quantised(up),
        "quantised weights": is_quantised(up),
        f"neurons with {neurons.activation} beside an MLP with {own}": own is not None and own != neurons.activation,
        "neurons with a bias beside an MLP without one": not has_bias
        and neurons.biases is not None
        and bool(neurons.biases.any()),
    }
    found = [problem for problem, is_there in problems.items() if is_there]
    if found:
        raise ConfigError(
            "The added neurons cannot become part of the model's own matrices.",
            expected="an MLP without a gate that computes as the neurons do",
            found=found[0],
            where=f"layer {layer} of model {model.name!r}",
            remedy=_REMEDY,
        )
