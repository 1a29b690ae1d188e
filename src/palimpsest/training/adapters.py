"""LoRA adapters by peft: put on for training, read out as low-rank deltas, taken off without a trace."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from palimpsest.models import EditableModel
from palimpsest.models.sites import factors_to_storage, is_transposed
from palimpsest.patches import LowRank
from palimpsest.training.constraint import NOTHING_SPARED
from palimpsest.training.steps import unit_of_adapter

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
        spared: name of a layer to (in, directions), an orthonormal basis of inputs to which A is kept orthogonal, so
            that the adapter writes nothing there; see `training.keeping`.
    """

    def __init__(
        self,
        model: EditableModel,
        modules: Sequence[str],
        *,
        rank: int,
        alpha: float,
        spared: Mapping[str, Tensor] = NOTHING_SPARED,
    ) -> None:
        self._model = model
        self._modules = list(modules)
        self._rank = rank
        self._alpha = alpha
        self._spared = spared
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
            self.after_step()
        except BaseException:
            self._take_off()
            raise
        return self

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function that computes with the adapters."""
        return function(*args, **kwargs)

    def masters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._model.module.parameters() if parameter.requires_grad]

    def units(self, optimizer: str) -> list[float]:
        """See `training.steps`; steps along the gradient are as long as Adam's first one would be at most."""
        found: dict[int, float] = {}
        for name, original in self._originals.items():
            layer: Any = self._model.module.get_submodule(name)
            unit = unit_of_adapter(original, layer.scaling[ADAPTER] * self._rank)
            for factor in (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight):
                found[id(factor)] = unit if optimizer == "adamw" else unit * math.sqrt(factor.numel())
        return [found[id(master)] for master in self.masters()]

    def before_step(self) -> None:
        """Nothing: the adapters are in float32 already."""

    @torch.no_grad()
    def after_step(self) -> None:
        """Keeps A away from what is to be spared."""
        for name, basis in self._spared.items():
            layer: Any = self._model.module.get_submodule(name)
            factor = layer.lora_A[ADAPTER].weight
            factor.sub_((factor @ basis.to(factor)) @ basis.to(factor).t())

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
