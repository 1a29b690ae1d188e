"""The JSON files of a model, read before transformers sees them: what would run code or read a pickle is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from palimpsest.errors import ModelError

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
INDEX = "model.safetensors.index.json"
_INDEX_END = ".safetensors.index.json"
_WEIGHTS_END = ".safetensors"
# Fields of a config that name code by its place on the hub where transformers finds a slash in them.
_KERNEL_FIELDS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
# What the families call their number of layers; a checkpoint has at least one tensor for each.
_LAYER_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers")
_TOKEN_FIELDS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")


def file_of(source: str, name: str) -> Path | None:
    """A file of a local folder or of a hub id, fetched if it has to be; `None` if there is none of that name."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, name))
    except (EntryNotFoundError, LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a model's file. Raises `ModelError` for a file that holds anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        is_empty = path.is_file() and path.stat().st_size == 0
        raise _not_an_object(path, "an empty file" if is_empty else f"{type(error).__name__}: {error}"[:200]) from error
    if not isinstance(found, dict):
        raise _not_an_object(path, f"{json.dumps(found)[:60]} ({type(found).__name__})")
    return found


def check_files(source: str, *, trust_remote_code: bool) -> dict[str, Any]:
    """The fields of a model's config, after all its JSON files were looked at.

    Raises `ModelError` for a file that is no JSON object, for code of the model's own unless it is trusted, for a
    kernel from the hub, and for an index of weights that are not safetensors files of the folder.
    """
    path = file_of(source, CONFIG)
    if path is None:
        raise ModelError("The model has no config.json.", expected="a model with config.json", where=source)
    config = read_object(path)
    others = config.get("configuration_files")
    named = [one for one in others if isinstance(one, str)] if isinstance(others, list) else []
    tokenizer = file_of(source, TOKENIZER_CONFIG)
    for file in [path, *(file_of(source, one) for one in named), tokenizer]:
        if file is not None:
            _check_code(file, read_object(file), trust_remote_code=trust_remote_code)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(
            "The model's config does not say what type of model it is.",
            expected='a text, such as "llama"',
            found=f"{config['model_type']!r}" if "model_type" in config else "no such field",
            where=f"{path}, field model_type",
            remedy="copy the model again",
        )
    _check_weights(source, config, path)
    if (generation := file_of(source, GENERATION_CONFIG)) is not None:
        _check_token_ids(generation, read_object(generation))
    _check_token_ids(path, config)
    return config


def _not_an_object(path: Path, found: str) -> ModelError:
    return ModelError(
        f"The model's {path.name} cannot be read.",
        expected="a JSON object",
        found=found,
        where=str(path),
        remedy="copy the file again",
    )


def _check_code(path: Path, fields: Mapping[str, Any], *, trust_remote_code: bool) -> None:
    if fields.get("auto_map") and not trust_remote_code:
        raise ModelError(
            "The model comes with Python code of its own, which is not run.",
            expected="a model of one of transformers' own classes",
            found=f"auto_map = {json.dumps(fields['auto_map'])[:200]}",
            where=f"{path}, field auto_map",
            remedy="read that code; if you trust it, --trust-remote-code (load(..., trust_remote_code=True)) runs it. "
            "Where transformers has a class for the model's type itself, take auto_map out of the file",
        )
    for place, name in _kernels(fields):
        raise ModelError(
            "The model asks for a kernel from the hub, which would be fetched and run.",
            expected="eager, sdpa or another implementation of transformers' own",
            found=repr(name),
            where=f"{path}, field {place}",
            remedy="take the field out of the file",
        )


def _kernels(fields: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Names with a slash in fields that choose an implementation, also in the configs inside a config."""
    if not isinstance(fields, dict):
        return
    for key, value in fields.items():
        inner = f"{place}.{key}" if place else str(key)
        if key in _KERNEL_FIELDS:
            texts = value.values() if isinstance(value, dict) else [value]
            yield from ((inner, text) for text in texts if isinstance(text, str) and "/" in text)
        else:
            yield from _kernels(value, inner)


def _check_weights(source: str, config: Mapping[str, Any], path: Path) -> None:
    """Every file that holds weights is a safetensors file of the folder."""
    explicit = config.get("transformers_weights")
    if explicit is not None and not (
        isinstance(explicit, str) and explicit.endswith((_WEIGHTS_END, _INDEX_END)) and _is_inside(explicit)
    ):
        raise _outside(explicit, f"{path}, field transformers_weights")
    folder = Path(source)
    indices = sorted(folder.glob(f"*{_INDEX_END}")) if folder.is_dir() else [file_of(source, INDEX)]
    tensors: set[str] = set()
    for index in indices:
        if index is None:
            continue
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(
                "The index of the model's weights cannot be read.",
                expected="weight_map: an object from each tensor's name to its file",
                found=f"{json.dumps(weight_map)[:60]}",
                where=str(index),
                remedy="copy the model again",
            )
        for name, file in weight_map.items():
            if not (isinstance(file, str) and file.endswith(_WEIGHTS_END) and _is_inside(file)):
                raise _outside(file, f"{index}, tensor {name}")
            if folder.is_dir() and not (folder / file).is_file():
                raise ModelError(
                    "A file of the model's weights is missing.",
                    expected=f"{file}, which the index names",
                    found="no such file",
                    where=str(folder),
                    remedy="copy the model again",
                )
        tensors |= weight_map.keys()
    if folder.is_dir():
        _check_num_layers(config, path, tensors or _tensor_names(folder))


def _tensor_names(folder: Path) -> set[str]:
    """Names of the tensors in a folder's safetensors files. Raises `ModelError` for a file with a damaged header."""
    from safetensors import SafetensorError, safe_open

    names: set[str] = set()
    for file in sorted(folder.glob(f"*{_WEIGHTS_END}")):
        try:
            with safe_open(file, framework="pt") as opened:
                names.update(opened.keys())
        except (OSError, SafetensorError) as error:
            raise ModelError(
                "The model could not be loaded: a file of its weights is damaged or cut short.",
                expected="a whole safetensors file",
                found=str(error),
                where=str(file),
                remedy="copy the file again",
            ) from error
    return names


def _check_num_layers(config: Mapping[str, Any], path: Path, tensors: set[str]) -> None:
    """A slip in the number of layers must not build a model that fills the memory."""
    for field in _LAYER_FIELDS:
        value = config.get(field)
        if isinstance(value, int) and value > len(tensors):
            raise ModelError(
                "The model's config does not belong to its weights.",
                expected=f"at most {len(tensors)} layers, for as many tensors",
                found=f"{value}",
                where=f"{path}, field {field}",
                remedy="copy the model again",
            )


def _check_token_ids(path: Path, fields: Mapping[str, Any]) -> None:
    for field in _TOKEN_FIELDS:
        value = fields.get(field)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
            raise ModelError(
                f"The model's {path.name} has a token id that is not a number.",
                expected="a whole number, a list of them, or null",
                found=repr(value),
                where=f"{path}, field {field}",
                remedy="copy the file again",
            )


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/"))
    return not parts.is_absolute() and ".." not in parts.parts and ":" not in name


def _outside(found: object, where: str) -> ModelError:
    return ModelError(
        "The model names weights that are not safetensors files of its folder.",
        expected="files whose names end in .safetensors, inside the folder",
        found=f"{found!r} (other files can run code, and are never opened)"[:200],
        where=where,
        remedy="convert the weights in an environment you trust: "
        "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)",
    )
