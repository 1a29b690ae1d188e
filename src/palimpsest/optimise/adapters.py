"""LoRA adapters by peft: put on for training, read out as low-rank deltas, taken off without a trace."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from palimpsest.models.editable import EditableModel
from palimpsest.models.linear import factors_to_storage, is_transposed
from palimpsest.patches.weights import LowRank

ADAPTER = "edit"
P = ParamSpec("P")
T = TypeVar("T")


class LoraAdapters:
    """Inside the block the named linear layers carry fresh adapters (B = 0), and only these have gradients.

    On leaving, the layers themselves are back in their places and `requires_grad` is as it was.

    Arguments:
        modules: full names of linear layers.
        rank: r, the inner width of the factors.
        alpha: the update is `alpha / rank * B A`.
    """

    def __init__(self, model: EditableModel, modules: Sequence[str], *, rank: int, alpha: float) -> None:
        self._model = model
        self._modules = list(modules)
        self._rank = rank
        self._alpha = alpha
        self._originals: dict[str, nn.Module] = {}
        self._flags: list[bool] = []

    def __enter__(self) -> LoraAdapters:
        import peft

        module = self._model.module
        self._model.weights.require_present(f"{name}.weight" for name in self._modules)
        self._flags = [parameter.requires_grad for parameter in module.parameters()]
        self._originals = {name: module.get_submodule(name) for name in self._modules}
        config: Any = peft.LoraConfig(
            r=self._rank,
            lora_alpha=self._alpha,
            lora_dropout=0.0,
            target_modules=self._modules,
            fan_in_fan_out=any(is_transposed(layer) for layer in self._originals.values()),
        )
        try:
            with warnings.catch_warnings():
                # peft corrects fan_in_fan_out by itself where layers of both kinds are adapted, and says so.
                warnings.simplefilter("ignore")
                peft.inject_adapter_in_model(config, module, adapter_name=ADAPTER)
            # Injected as they are in the layer's dtype; half-precision steps would be lost, or overflow.
            for parameter in self.masters():
                parameter.data = parameter.data.float()
        except BaseException:
            self._take_off()
            raise
        return self

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function that computes with the adapters."""
        return function(*args, **kwargs)

    def masters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._model.module.parameters() if parameter.requires_grad]

    def before_step(self) -> None:
        """Nothing: the adapters are in float32 already."""

    def after_step(self) -> None:
        """Nothing: adapters are unconstrained."""

    @torch.no_grad()
    def deltas(self) -> dict[str, LowRank]:
        """Parameter name to `alpha / rank * B A`, factored, in storage order; untrained adapters are left out."""
        found = {}
        for name, original in self._originals.items():
            layer: Any = self._model.module.get_submodule(name)
            left = (layer.lora_B[ADAPTER].weight * layer.scaling[ADAPTER]).detach().float().clone()
            right = layer.lora_A[ADAPTER].weight.detach().float().clone()
            if left.any():
                found[f"{name}.weight"] = LowRank(*factors_to_storage(original, left, right))
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._take_off()

    def _take_off(self) -> None:
        for name, original in self._originals.items():
            parent, _, child = name.rpartition(".")
            setattr(self._model.module.get_submodule(parent), child, original)
        # Asked for again: an offloaded parameter is another object after every forward pass.
        for parameter, flag in zip(self._model.module.parameters(), self._flags, strict=True):
            parameter.requires_grad_(flag)
        # peft leaves its configuration on the model it was injected into.
        for attribute in ("peft_config", "_hf_peft_config_loaded"):
            if attribute in vars(self._model.module):
                delattr(self._model.module, attribute)
