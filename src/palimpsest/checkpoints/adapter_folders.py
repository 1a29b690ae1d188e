"""Folders of peft's adapters as models: the base model that the adapter names, with the adapter merged into it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from palimpsest.checkpoints.config_files import ADAPTER_CONFIG, CONFIG, read_object
from palimpsest.checkpoints.refusals import refused_by_transformers
from palimpsest.errors import ModelError, some_of
from palimpsest.files import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WEIGHTS = "adapter_model.safetensors"
_BASE = "base_model_name_or_path"


def is_adapter(source: str | Path) -> bool:
    """Whether a folder holds a peft adapter and no model."""
    folder = Path(source)
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).exists()


def adapter_base(folder: Path) -> str:
    """The base model that an adapter's config names. Raises `ModelError` for an adapter that cannot be used."""
    path = folder / ADAPTER_CONFIG
    fields = read_object(path)
    kind, base = fields.get("peft_type"), fields.get(_BASE)
    if kind != "LORA":
        raise ModelError(
            "This kind of adapter cannot be merged into its base model.",
            expected='peft_type "LORA"',
            found=repr(kind),
            where=f"{path}, field peft_type",
            remedy="merge it with peft (merge_and_unload), save the model, and give that folder",
        )
    if fields.get("megatron_config") is not None or fields.get("auto_mapping"):
        raise ModelError(
            "The adapter names Python modules of its own, which are not imported.",
            expected="a plain LoRA adapter",
            found="megatron_config" if fields.get("megatron_config") is not None else "auto_mapping",
            where=str(path),
            remedy="merge it with peft in an environment you trust, save the model, and give that folder",
        )
    if not (folder / _WEIGHTS).is_file():
        raise ModelError(
            "The adapter has no safetensors weights.",
            expected=_WEIGHTS,
            found="adapter_model.bin, a pickle, which can run code and is never opened"
            if (folder / "adapter_model.bin").exists()
            else "no weights",
            where=str(folder),
            remedy="save it again with peft, which writes safetensors",
        )
    if not isinstance(base, str) or not base:
        raise ModelError(
            "The adapter does not say which model it is for.",
            expected="the base model's folder or hub id",
            found=repr(base),
            where=f"{path}, field {_BASE}",
            remedy="write it there",
        )
    beside = folder / base
    return str(beside) if beside.exists() and not os.path.exists(expanded(base)) else base


def merge_adapter(folder: Path, module: PreTrainedModel) -> PreTrainedModel:
    """The base model with the adapter merged into its weights. Raises `ModelError` where the two do not go together."""
    import peft

    with refused_by_transformers(str(folder), where=str(folder), what="adapter", remedy=f"check its {_BASE}"):
        with warnings.catch_warnings():
            # What peft only warns of, weights that are missing, is refused below.
            warnings.simplefilter("ignore")
            adapted = peft.PeftModel.from_pretrained(module, str(folder), is_trainable=False)
        _require_all_of_it(folder, set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)))
        result: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    # The one mark that peft leaves on a model it has let go of.
    vars(result).pop("peft_config", None)
    result.config._name_or_path = str(folder)
    return result


def _require_all_of_it(folder: Path, wanted: set[str]) -> None:
    """Raises `ModelError` where weights and config differ: peft would leave out the one, and begin the other anew."""
    from safetensors import safe_open

    with safe_open(folder / _WEIGHTS, framework="pt") as opened:
        stored = set(opened.keys())
    missing, unused = sorted(wanted - stored), sorted(one for one in stored - wanted if ".lora_" in one)
    if missing or unused:
        raise ModelError(
            "The adapter's weights are not those that its config names.",
            expected="weights and a config that belong together",
            found=f"nothing for {some_of(missing)}" if missing else f"no place for {some_of(unused)}",
            where=str(folder),
            remedy="copy the adapter again",
        )


def refuse_adapted(model: nn.Module) -> None:
    """Raises `ModelError` for a model in memory that has an adapter on it: its layers are wrapped in others."""
    is_peft = any(kind.__module__.split(".")[0] == "peft" for kind in type(model).__mro__)
    if is_peft or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            "The model has an adapter of peft on it.",
            expected="the model itself: its layers, not peft's around them",
            found=type(model).__name__ if is_peft else f"a {type(model).__name__} with adapters loaded into it",
            remedy="merge the adapter first: model = model.merge_and_unload(); or take it off: model = model.unload()"
            if is_peft
            else "load the adapter by peft.PeftModel.from_pretrained(base, folder) and merge it: merge_and_unload()",
        )
