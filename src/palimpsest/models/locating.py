"""From a model's name to the place its files are read from; what cannot be read is refused in seconds."""

from __future__ import annotations

import difflib
from pathlib import Path

from palimpsest.errors import ModelError

BUNDLED = ("world", "world-t5")
_HUB_SECONDS = 10


def locate(name: str) -> str:
    """The folder of a bundled model, a checked local folder, or the name itself as a hub id.

    Raises `ModelError` for a folder that is no model's, and for a hub id that is neither in the cache nor can be asked
    for.
    """
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
        _require_on_hub(name)
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


def _require_on_hub(name: str) -> None:
    """Asks the hub once, for a model that is not in the cache: loading would ask for every file, with many retries."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        if constants.HF_HUB_OFFLINE:
            found, remedy = "not in the cache, and HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE, or give a folder"
        else:
            HfApi().model_info(name, timeout=_HUB_SECONDS)
            return
    except Exception as error:  # whatever the hub's client and its network library raise, the answer is no
        found = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no answer'}"
        remedy = "check the name (owner/name) and the network; log in for a private or gated model; or give a folder"
    raise ModelError(
        f"The model {name!r} could not be loaded.",
        expected="a folder, a model in the hub's cache or on the hub, or a bundled model: " + ", ".join(BUNDLED),
        found=found,
        remedy=remedy,
    )
