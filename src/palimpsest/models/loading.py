"""From a name to an EditableModel: a hub id, a folder, a bundled model, or a transformers model in memory."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from palimpsest.errors import ConfigError, ModelError
from palimpsest.models.editable import EditableModel
from palimpsest.models.families import Architecture

BUNDLED = ("world", "world-t5")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    model: str | Path | nn.Module,
    tokenizer: Any = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    architecture: Architecture | None = None,
) -> EditableModel:
    """Loads a model for editing and verifies its sites.

    Arguments:
        model: a folder, a hub id, `"world"` or `"world-t5"` for a bundled model, or a transformers model in memory.
        tokenizer: needed for a model in memory only. Such a model is put into evaluation mode and stays there.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: the checkpoint's own, but float32 for half-precision
            checkpoints of type float16 on a CPU.
        device: a torch device, or `auto`: CUDA where there is one, else the CPU.
        architecture: a row of the site table for a family that is not in it.

    Raises `ModelError` for a folder without safetensors, a model that cannot be loaded, or an unknown layout.
    """
    if isinstance(model, nn.Module):
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
        return EditableModel(model, tokenizer, name=name, architecture=architecture)
    return _from_pretrained(str(model), dtype=dtype, device=device, architecture=architecture)


def _from_pretrained(name: str, *, dtype: str, device: str, architecture: Architecture | None) -> EditableModel:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    if dtype != "auto" and dtype not in _DTYPES:
        raise ConfigError("Unknown dtype.", expected=f"auto, {', '.join(_DTYPES)}", found=repr(dtype))
    source = _locate(name)
    chosen_device = _device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        is_encoder_decoder = getattr(AutoConfig.from_pretrained(source), "is_encoder_decoder", False)
        kind = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
        loaded, report = kind.from_pretrained(
            source,
            dtype="auto" if dtype == "auto" else _DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"The model {name!r} could not be loaded.",
            expected="a folder or hub id with config.json, safetensors weights and a tokenizer",
            found=str(error).strip().split("\n")[0],
            where=str(source),
            remedy="copy the folder again" if Path(source).exists() else "check the name, and the network",
        ) from error
    _require_complete(source, sorted(report["missing_keys"]))
    if dtype == "auto" and loaded.dtype == torch.float16 and chosen_device.type == "cpu":
        loaded = loaded.float()
    return EditableModel(loaded.to(chosen_device), tokenizer, name=name, architecture=architecture)


def _locate(name: str) -> str:
    """The folder of a bundled model, a checked local folder, or the name itself as a hub id."""
    if name in BUNDLED:
        from palimpsest.world import bundled_path

        return str(bundled_path(name))
    folder = Path(name).expanduser()
    if not folder.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ModelError(
                "There is no such model folder.",
                expected="a folder with config.json and safetensors weights",
                found="nothing",
                where=str(folder),
                remedy="bundled models are: " + ", ".join(BUNDLED),
            )
        _refuse_misspelt(name)
        return name
    if not folder.is_dir() or not (folder / "config.json").exists():
        raise ModelError(
            "This is not a model folder.",
            expected="a folder with config.json",
            found="a file" if folder.is_file() else "no config.json in it",
            where=str(folder),
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        raise ModelError(
            "The model folder has no safetensors weights.",
            expected="model.safetensors (or its shards)",
            found=", ".join(pickles) + " (pickles, which can run code and are never opened)"
            if pickles
            else "no weights",
            where=str(folder),
            remedy="convert them in an environment you trust: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)",
        )
    return str(folder)


def _refuse_misspelt(name: str) -> None:
    """A name without an owner that looks like a bundled model's is a slip, not a hub id worth a minute of network."""
    close = [] if "/" in name else difflib.get_close_matches(name.casefold(), BUNDLED, n=1, cutoff=0.75)
    if close:
        raise ModelError(
            f"There is no model named {name!r}.",
            expected="a folder, a hub id such as owner/name, or a bundled model: " + ", ".join(BUNDLED),
            found=repr(name),
            remedy=f"did you mean {close[0]!r}?",
        )


def _require_complete(source: str, missing: list[str]) -> None:
    """What a checkpoint lacks is filled with random numbers, and such a model must not be edited."""
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(
            "The checkpoint lacks weights of the model.",
            expected="a tensor for every parameter",
            found=f"nothing for {', '.join(missing[:3])}{more}",
            where=source,
            remedy="copy the folder again; or save the whole model with its head, not a part of it",
        )


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
