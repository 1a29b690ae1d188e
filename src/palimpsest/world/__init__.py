"""The offline world: a small knowledge graph, its data sets, and the files of two bundled models that really know it.

Nothing here imports torch.
"""

from __future__ import annotations

from pathlib import Path

from palimpsest.errors import ModelError, unknown_name
from palimpsest.world.data import counterfact, zsre
from palimpsest.world.knowledge import build
from palimpsest.world.text import neutral_text

__all__ = ["build", "bundled_editors", "bundled_path", "counterfact", "neutral_text", "zsre"]


def bundled_path(name: str = "world") -> Path:
    """The folder of a bundled model, as Hugging Face's loaders take it: "world" is the decoder, "world-t5" the
    encoder-decoder.

    Raises:
        ConfigError: no model of that name is bundled.
        ModelError: the model is missing from this installation.
    """
    folders = {"world": "decoder", "world-t5": "encoder-decoder"}
    if name not in folders:
        raise unknown_name("bundled model", name, folders)
    path = Path(__file__).parent / "bundled" / folders[name]
    if not (path / "model.safetensors").is_file():
        raise ModelError(
            f"The bundled model {name!r} is not part of this installation.",
            where=str(path),
            remedy="reinstall the package, or train it: palimpsest world train "
            f"--architecture {folders[name]} --out DIR",
        )
    return path


def bundled_editors() -> Path:
    """The folder of the editors that were trained for the bundled models."""
    return Path(__file__).parent / "bundled" / "editors"
