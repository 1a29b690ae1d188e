"""From a name to an EditableModel: a hub id, a folder, a GGUF file, a bundled model, or a transformers model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from palimpsest import processes
from palimpsest.checkpoints import (
    adapter_base,
    from_gguf,
    from_pretrained,
    is_adapter,
    is_gguf,
    locate,
    merge_adapter,
    refuse_adapted,
)
from palimpsest.errors import ConfigError, ModelError, unknown_name
from palimpsest.files import expanded
from palimpsest.models import Chat, EditableModel
from palimpsest.models.sites import Architecture, is_quantised, qualified_name
from palimpsest.patches import patched_base, put_on_all
from palimpsest.provenance import file_digest
from palimpsest.world import BUNDLED

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
DeviceMap = str | Mapping[str, Any]
# They become patterns in transformers.
_MODULE = re.compile(r"[\w.-]{0,1000}")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    model: str | Path | nn.Module,
    tokenizer: Any = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: DeviceMap | None = None,
    architecture: Architecture | None = None,
    chat: bool | Chat | Mapping[str, Any] = False,
    thinking: bool | int | None = None,
    trust_remote_code: bool = False,
) -> EditableModel:
    """Loads a model for editing and verifies its sites.

    Arguments:
        model: a folder, a GGUF file, a hub id, `"world"` or `"world-t5"` for a bundled model, or a transformers model
            in memory. A folder that `palimpsest apply --as patched` wrote is its base model with the patches on it; a
            folder of a LoRA adapter (`--as peft`) is its base model with the adapter merged into the weights.
        tokenizer: needed for a model in memory only. Such a model is put into evaluation mode and stays there.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: the checkpoint's own, but float32 for half-precision
            checkpoints of type float16 on a CPU, and for GGUF files, whose weights it holds exactly.
        device: a torch device, or `auto`: CUDA if there is one (in one of several processes: its own one), else
            the CPU. The weights are read straight onto it.
        device_map: how to spread a model that is too large for one device: `auto`, `balanced`, `balanced_low_0`,
            `sequential` (accelerate's), or module names to devices, `cpu` and `disk`; instead of `device`. What is
            offloaded can be computed with, not edited.
        architecture: a row of the site table for a family that is not in it.
        chat: whether every prompt is a user's turn in the tokenizer's chat template, and its target the assistant's
            answer; or a patch's `manifest.chat`, to ask exactly as it was made.
        thinking: whether the model thinks before it answers: `True`, or the tokens that a thought may have (1,024).
            Left out, as a patch's chat says, and not at all otherwise. Thinking takes a chat.
        trust_remote_code: whether Python code that comes with the model may run; a model that needs it is refused
            otherwise.

    Raises `ConfigError` for a dtype, device or map that cannot be used, `ModelError` for a folder without safetensors,
    a model that cannot be loaded or has code of its own, an unknown layout, or a chat without a template.
    """
    if isinstance(model, nn.Module):
        return _in_memory(
            model, tokenizer, (dtype, device, device_map), architecture=architecture, chat=chat, thinking=thinking
        )
    if dtype != "auto" and dtype not in _DTYPES:
        raise ConfigError("Unknown dtype.", expected=f"auto, {', '.join(_DTYPES)}", found=repr(dtype))
    # Folders of patches name a base, which may be such a folder again: the patches of the innermost go on first.
    name, folders = str(model), list[Path]()
    while name not in BUNDLED and (base := patched_base(expanded(name))) is not None:
        folder = expanded(name).resolve()
        if folder in folders:
            raise ModelError(
                "A folder of patches names itself as its base model.",
                expected="a base model with weights of its own",
                found=" -> ".join(map(str, [*folders[folders.index(folder) :], folder])),
                where=str(model),
                remedy="write it again with `palimpsest apply --as patched`",
            )
        folders.append(folder)
        name = base
    placement = _placement(device, device_map)
    source = locate(name)
    module, its_tokenizer = _read(name, source, dtype=dtype, placement=placement, trust_remote_code=trust_remote_code)
    loaded = EditableModel(module, its_tokenizer, name=name, architecture=architecture, chat=chat, thinking=thinking)
    if is_gguf(source):
        loaded.file_digest = file_digest(Path(source))
    for folder in reversed(folders):
        put_on_all(folder, loaded)
    return loaded


def _in_memory(
    model: nn.Module,
    tokenizer: Any,
    placing: tuple[str, str, DeviceMap | None],
    *,
    architecture: Architecture | None,
    chat: bool | Chat | Mapping[str, Any],
    thinking: bool | int | None,
) -> EditableModel:
    if placing != ("auto", "auto", None):
        dtype, device, device_map = placing
        raise ConfigError(
            "A model in memory is taken as it is.",
            expected="dtype, device and device_map left out",
            found=f"dtype={dtype!r}, device={device!r}, device_map={device_map!r}",
            remedy="load it by its name, or convert and place it with transformers and accelerate before",
        )
    refuse_adapted(model)
    if not hasattr(getattr(model, "config", None), "model_type"):
        raise ModelError(
            "This is not a transformers model.",
            expected="a model with a config, such as AutoModelForCausalLM gives",
            found=type(model).__name__,
        )
    if tokenizer is None:
        raise ConfigError(
            "A model in memory needs its tokenizer.",
            expected="palimpsest.load(model, tokenizer)",
            found="no tokenizer",
        )
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__)
    return EditableModel(model, tokenizer, name=name, architecture=architecture, chat=chat, thinking=thinking)


def _read(
    name: str, source: str, *, dtype: str, placement: DeviceMap, trust_remote_code: bool
) -> tuple[nn.Module, Any]:
    """The model at a place and its tokenizer: a GGUF file, an adapter with its base, a folder, or a hub id."""
    if is_gguf(source):
        chosen = torch.float32 if dtype == "auto" else _DTYPES[dtype]
        return from_gguf(Path(source), dtype=chosen, placement=placement)
    if is_adapter(source):
        base = adapter_base(Path(source))
        place = locate(base)
        if is_adapter(place):
            raise ModelError(
                "The adapter's base model is an adapter.",
                expected="a base model with weights of its own",
                found=base,
                where=source,
                remedy="merge that adapter into its base model first",
            )
        module, tokenizer = _read(base, place, dtype=dtype, placement=placement, trust_remote_code=trust_remote_code)
        _require_unpacked(module, where=source)
        return merge_adapter(Path(source), module), tokenizer
    module, tokenizer = from_pretrained(
        name,
        source,
        dtype="auto" if dtype == "auto" else _DTYPES[dtype],
        placement=placement,
        trust_remote_code=trust_remote_code,
    )
    is_quantised = getattr(module.config, "quantization_config", None) is not None
    if dtype == "auto" and module.dtype == torch.float16 and _is_cpu_alone(placement) and not is_quantised:
        module = module.float()
    return module, tokenizer


def _require_unpacked(module: nn.Module, *, where: str) -> None:
    packed = next((one for one in module.modules() if is_quantised(one)), None)
    if packed is not None:
        raise ModelError(
            "An adapter cannot be merged into quantised weights.",
            expected="a base model in float32, bfloat16 or float16",
            found=f"layers of type {qualified_name(packed)}",
            where=where,
            remedy="name the checkpoint that was quantised as the adapter's base",
        )


def _placement(device: str, device_map: DeviceMap | None) -> DeviceMap:
    """The device map to load with; one device is a map as well, so that nothing is read twice."""
    if device_map is None:
        return {"": _device(device)}
    if device != "auto":
        raise ConfigError(
            "A device and a device map are given.",
            expected="one of them",
            found=f"device={device!r}, device_map={device_map!r}",
        )
    if processes.count() > 1:
        raise ConfigError(
            "A device map is for one process.",
            expected="no device map: each of several processes has its own device",
            found=f"device_map={device_map!r} in {processes.count()} processes",
            remedy="leave the device map out, or start one process",
        )
    if isinstance(device_map, str):
        if device_map not in DEVICE_MAPS:
            raise unknown_name("device map", device_map, DEVICE_MAPS)
        return device_map
    odd = next((name for name in device_map if not _MODULE.fullmatch(name)), None)
    if odd is not None:
        raise ConfigError(
            "A name in the device map is none of a module.",
            expected="names as the model has them, such as transformer.h.0, or the empty name for all of it",
            found=repr(odd[:80]),
            where="the device map",
        )
    # As texts: that is how accelerate and safetensors take them.
    return {name: place if place == "disk" else str(_device(_named(place))) for name, place in device_map.items()}


def _is_cpu_alone(placement: DeviceMap) -> bool:
    return not isinstance(placement, str) and set(map(str, placement.values())) == {"cpu"}


def _named(place: object) -> str:
    """A device's name; accelerate's maps have GPUs as bare numbers."""
    return f"cuda:{place}" if isinstance(place, int) else str(place)


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device(f"cuda:{processes.local_rank()}" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "The device cannot be used.",
            expected="auto, cpu, cuda, cuda:0, ... as far as this machine and this torch have it",
            found=f"{device!r}: {str(error).splitlines()[0]}",
        ) from error
    return chosen
