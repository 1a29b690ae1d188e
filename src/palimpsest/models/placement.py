"""Where a model's weights are: on one device, spread over several, or offloaded and fetched by accelerate's hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.errors import ModelError, some_of


def is_offloaded(tensor: Tensor) -> bool:
    """Whether a weight is elsewhere (in main memory or on disk) and only fetched for its layer's forward pass."""
    return tensor.is_meta


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: the device of its weight, or the one its weight is fetched to.

    Raises `ModelError` for a weight that is nowhere: a model on the meta device without hooks.
    """
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise ModelError("A module has no weight.", found=type(module).__name__)
    if not is_offloaded(weight):
        return weight.device
    device = getattr(_hook(module), "execution_device", None)
    if device is None:
        raise _absent(["weight"])
    return torch.device(device)


def offloaded_value(model: nn.Module, name: str) -> Tensor:
    """The value of an offloaded parameter, read from where it is kept.

    Raises `ModelError` when it is kept nowhere: a model on the meta device without hooks.
    """
    path = name.split(".")
    for depth in range(len(path) - 1, -1, -1):
        kept: Mapping[str, Tensor] | None = getattr(
            _hook(model.get_submodule(".".join(path[:depth]))), "weights_map", None
        )
        if kept is not None:
            return kept[".".join(path[depth:])]
    raise _absent([name])


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself; one whose parts lie in several processes is gathered, and all of them must call this."""
    gather = getattr(tensor, "full_tensor", None)
    full: Tensor = gather() if gather is not None else tensor
    return full


def require_present(names: Sequence[str]) -> None:
    """Raises `ModelError` when there is one of these offloaded parameters; costs nothing.

    Arguments:
        names: those parameters to be read or changed that are offloaded.
    """
    if names:
        raise ModelError(
            "Weights that have to be changed are offloaded.",
            expected="every weight that is edited on a device (a GPU, or the CPU without offloading)",
            found=f"{some_of(names)}: in main memory or on disk, fetched only while their layer runs",
            remedy="give a device map that keeps these layers on a device and offloads others, load with a smaller"
            " dtype, or edit other layers",
        )


def _hook(module: nn.Module) -> Any:
    """The hook that fetches a module's weights, if it has one; several may be chained."""
    hook = getattr(module, "_hf_hook", None)
    chained = getattr(hook, "hooks", None) or [hook]
    return next((one for one in chained if getattr(one, "weights_map", None) is not None), chained[0])


def _absent(names: Sequence[str]) -> ModelError:
    return ModelError(
        "The model's weights are nowhere.",
        expected="weights on a device, or offloaded by accelerate",
        found=f"{names[0]} on the meta device, without a hook that fetches it",
        remedy="load the model with palimpsest.load(folder, device_map=...)",
    )
