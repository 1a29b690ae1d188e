"""Changes of a GGUF file by patches: which tensors, by how much, and their layers' inputs at the edits' prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from palimpsest.checkpoints import Array, StoredPlace, stored_values
from palimpsest.errors import ConfigError, PalimpsestError
from palimpsest.models import tokens
from palimpsest.models.sites import first_input, is_plain
from palimpsest.patches.base import Patch
from palimpsest.patches.gguf.precision import Change
from palimpsest.patches.gguf.sources import SourceFile
from palimpsest.patches.modules import ModulePatch
from palimpsest.patches.neurons import Neurons
from palimpsest.patches.weights import WeightPatch
from palimpsest.requests import EditRequest

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

_MOST_KEYS = 512
_MOST_EDITS = 256
_ROWS = 16


def require_weights(patches: Sequence[Patch]) -> None:
    """Raises `ConfigError` for a patch that is no change of weights, and for patches that change nothing."""
    for patch in patches:
        if isinstance(patch, WeightPatch):
            continue
        is_neurons = isinstance(patch, ModulePatch) and all(isinstance(one, Neurons) for one in patch.branches)
        raise ConfigError(
            "The patch has no form in GGUF.",
            expected="changes of weights, as ft, lora, rome, memit and others make them",
            found=f"added neurons ({patch.manifest.label})"
            if is_neurons
            else f"a patch of kind {patch.kind!r} ({patch.manifest.label}), which runs beside the model",
            remedy="write a wider model with --as merged and convert that; or edit again with a method that changes"
            " weights (auto: -o weights_only=true)"
            if is_neurons
            else "serve the model with it: palimpsest serve MODEL --patch PATCH; or edit with a method that changes"
            " weights",
        )
    if all(patch.is_empty() for patch in patches):
        raise ConfigError(
            "The patches change nothing.",
            expected="at least one changed tensor",
            found="empty patches" if patches else "no patch",
            remedy="use the GGUF file as it is",
        )


def requests_of(patches: Sequence[Patch]) -> list[EditRequest]:
    """The edits that patches carry, each once; of edits of one prompt the last."""
    found: dict[str, EditRequest] = {}
    for patch in patches:
        for edit in patch.manifest.edits:
            request = EditRequest.from_dict(edit)
            found[request.prompt] = request
    return list(found.values())


def changed_names(model: EditableModel) -> list[str]:
    """Names of the parameters that what lies on the model has changed.

    Raises `ConfigError` where what lies on it is more than a change of plain weights.
    """
    if any(not isinstance(one, WeightPatch) for one in model.weights.origins):
        require_weights([one for one in model.weights.origins if isinstance(one, Patch)])
    weights = model.weights
    for name in weights.names():
        if not is_plain(weights.current(name)):
            raise ConfigError(
                "A quantised model in memory cannot be written as GGUF.",
                expected="weights in float32, bfloat16 or float16",
                found="packed weights",
                where=f"tensor {name}",
                remedy="make the edit on the GGUF file, or on the checkpoint that was quantised",
            )
    return [name for name in weights.names() if weights.base(name).data_ptr() != weights.current(name).data_ptr()]


def aliases(model: EditableModel, name: str) -> list[str]:
    """All names of a parameter: several where weights are tied, of which the file may have one or all."""
    every = (one for one, _ in model.module.named_parameters(remove_duplicate=False))
    return [one for one in every if model.weights.canonical(one) == name]


def places_of(model: EditableModel, source: SourceFile, names: Sequence[str]) -> dict[str, list[StoredPlace]]:
    """By parameter the tensors of the file that hold it: one, or several where the model ties what the file does not.

    Raises `ModelError` where the file does not have the base model's weights.
    """
    found: dict[str, list[StoredPlace]] = {}
    for name in names:
        base, first, places = _float(model.weights.base(name)), None, dict[str, StoredPlace]()
        for alias in aliases(model, name):
            try:
                place = source.layout.find(alias, base)
                places[place.tensor.name] = place
            except PalimpsestError as error:
                first = first or error
        if not places and first is not None:
            raise first
        found[name] = list(places.values())
    return found


def changes(
    model: EditableModel, source: SourceFile, places: Mapping[str, Sequence[StoredPlace]], keys: Mapping[str, Array]
) -> list[Change]:
    """The changed tensors of the file, with what lies on the model."""
    found = []
    for name, those in places.items():
        base, current = _float(model.weights.base(name)), _float(model.weights.current(name))
        for place in those:
            # In the file's own numbers: those of a model in bfloat16 are rounded.
            stored = stored_values(source.header, place.tensor) if source.is_own else place.turn.to_file(base)
            wanted = stored + (place.turn.to_file(current) - place.turn.to_file(base))
            tensor = place.tensor
            found.append(Change(tensor.name, tensor.kind, stored, wanted, keys.get(name), is_on_grid=source.is_own))
    return found


def turned_back(
    model: EditableModel, places: Mapping[str, Sequence[StoredPlace]], values: Mapping[str, Array]
) -> dict[str, Tensor]:
    """By parameter the values, in transformers' order and the model's dtype, that tensors of a file have."""
    found: dict[str, Tensor] = {}
    for name, those in places.items():
        base = model.weights.base(name)
        for place in those:
            turned = np.ascontiguousarray(place.turn.from_file(values[place.tensor.name]))
            found[name] = torch.from_numpy(turned).to(base.device, base.dtype)
    return found


def keys_at(model: EditableModel, requests: Sequence[EditRequest], names: Sequence[str]) -> dict[str, Array]:
    """By parameter, for the weights of linear layers, what the layer reads at the edits' prompts and answers.

    Returns matrices (n, in), float32, of at most `_MOST_KEYS` rows spread evenly. What lies on the model is on it.
    """
    owners = {
        name: model.weights.owner(name)
        for name in names
        if name.endswith(".weight") and model.sites.is_linear(model.weights.owner(name))
    }
    read: dict[str, list[Tensor]] = {name: [] for name in owners}
    encoded = [model.encode(request.prompt, request.target_new) for request in requests[:_MOST_EDITS]]
    for chunk in tokens.by_length([len(row) for row in encoded], _ROWS):
        batch = model.batch([encoded[index] for index in chunk])
        masks = [batch.attention_mask] + ([batch.decoder.attention_mask] if batch.decoder is not None else [])
        with ExitStack() as stack, torch.no_grad():
            for name, owner in owners.items():
                stack.callback(owner.register_forward_pre_hook(_keeping(read[name], masks), with_kwargs=True).remove)
            model.forward(batch)
    return {name: _some(rows) for name, rows in read.items() if rows}


def _keeping(rows: list[Tensor], masks: Sequence[Tensor]) -> Any:
    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        values = first_input(args, kwargs).detach()
        flat = values.reshape(-1, values.shape[-1])
        real = next((mask for mask in masks if mask.numel() == len(flat)), None)
        rows.append((flat if real is None else flat[real.reshape(-1).bool()]).float().cpu())

    return before


def _some(rows: Sequence[Tensor]) -> Array:
    every = torch.cat(list(rows))
    return every[:: max(1, -(-len(every) // _MOST_KEYS))].numpy()


def _float(tensor: Tensor) -> Array:
    return tensor.detach().float().cpu().numpy()
