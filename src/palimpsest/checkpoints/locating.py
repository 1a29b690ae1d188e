"""From a model's name to the place its files are read from; what cannot be read is refused in seconds."""

from __future__ import annotations

import difflib
from pathlib import Path

from palimpsest.checkpoints.adapter_folders import is_adapter
from palimpsest.checkpoints.gguf_files import the_gguf_in
from palimpsest.checkpoints.gguf_header import is_gguf
from palimpsest.errors import ModelError, near_matches
from palimpsest.files import expanded, remedy_of, require_readable, require_regular, said
from palimpsest.world import BUNDLED, bundled_path

_HUB_SECONDS = 10
_READ = {".gguf", ".jinja", ".json", ".model", ".safetensors", ".txt"}
"""Endings of what is read of a model's folder; whatever else lies in it need not be readable."""


def locate(name: str) -> str:
    """The folder of a bundled model, a checked local folder, a GGUF file, or the name itself as a hub id.

    A folder of an adapter is one too; see `checkpoints.adapter_folders`.

    Raises `ModelError` for a folder that is no model's, and for a hub id that is neither in the cache nor can be asked
    for.
    """
    if name in BUNDLED:
        return str(bundled_path(name))
    folder = expanded(name)
    if not _exists(folder):
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or is_gguf(name) or "\\" in name:
            raise _no_such_place(folder)
        _refuse_misspelt(name)
        _require_on_hub(name)
        return name
    _refuse_special(folder)
    if folder.is_file() and is_gguf(folder):
        return str(folder)
    if folder.is_dir() and (is_adapter(folder) or any(folder.glob("*.safetensors"))):
        if is_adapter(folder) or (folder / "config.json").exists():
            return str(folder)
    elif folder.is_dir() and (file := the_gguf_in(folder)) is not None:
        return str(file)
    if not folder.is_dir() or not (folder / "config.json").exists():
        raise ModelError(
            "This is not a model.",
            expected="a folder with config.json and safetensors weights, or a GGUF file",
            found="a file whose name does not end in .gguf" if folder.is_file() else "no config.json in it",
            where=str(folder),
        )
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    raise ModelError(
        "The model folder has no safetensors weights.",
        expected="model.safetensors (or its shards)",
        found=", ".join(pickles) + " (pickles, which can run code and are never opened)" if pickles else "no weights",
        where=str(folder),
        remedy="convert them in an environment you trust: "
        "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)",
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file system takes
        return False


def _refuse_special(place: Path) -> None:
    """A pipe or a device where a file should be is never read: whoever reads it may wait for ever."""
    for path in (place, *place.iterdir()) if place.is_dir() else (place,):
        try:
            (require_readable if path.suffix in _READ else require_regular)(path)
        except FileNotFoundError:
            # A link to nothing, which whoever needs the file will miss.
            continue
        except (OSError, ValueError) as error:
            raise ModelError(
                "A file of the model cannot be read.",
                expected="a file",
                found=said(error),
                where=str(path),
                remedy=remedy_of(error, "copy the model again"),
            ) from error


def _no_such_place(place: Path) -> ModelError:
    try:
        beside = [one.name for one in place.parent.iterdir()] if place.parent.is_dir() else []
    except OSError:
        beside = []
    close = near_matches(place.name, beside)
    return ModelError(
        "There is no such model file." if is_gguf(place) else "There is no such model folder.",
        expected="a folder with config.json and safetensors weights, or a GGUF file",
        found="nothing",
        where=str(place),
        remedy=f"did you mean {' or '.join(str(place.parent / one) for one in close)}?"
        if close
        else "bundled models are: " + ", ".join(BUNDLED),
    )


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


def _require_on_hub(name: str) -> None:
    """Asks the hub once, for a model that is not in the cache: loading would ask for every file, with many retries."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        if constants.HF_HUB_OFFLINE:
            found, remedy = "not in the cache, and HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE, or give a folder"
        else:
            info = HfApi().model_info(name, timeout=_HUB_SECONDS)
            files = [one.rfilename for one in info.siblings or []]
            if "config.json" in files or not any(map(is_gguf, files)):
                return
            found = "only GGUF files: " + ", ".join(filter(is_gguf, files))
            remedy = "download the one you want, and give its path"
    except Exception as error:  # whatever the hub's client and its network library raise, the answer is no
        found = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no answer'}"
        remedy = "check the name (owner/name) and the network; log in for a private or gated model; or give a folder"
    raise ModelError(
        f"The model {name!r} could not be loaded.",
        expected="a folder, a model in the hub's cache or on the hub, or a bundled model: " + ", ".join(BUNDLED),
        found=found,
        remedy=remedy,
    )
