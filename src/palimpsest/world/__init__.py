"""The offline world: a small knowledge graph, its data sets, and the files of two bundled models that really know it.

Nothing here imports torch.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from palimpsest.errors import ModelError, unknown_name
from palimpsest.world.building import build
from palimpsest.world.data import counterfact, zsre
from palimpsest.world.knowledge import Knowledge
from palimpsest.world.tasks import write_tasks
from palimpsest.world.text import (
    SENTENCE_ENDS,
    Sentence,
    held_out,
    neutral_text,
    sentence,
    taught,
    taught_two_hop,
    training_sentences,
)

__all__ = [
    "BUNDLED",
    "SENTENCE_ENDS",
    "Knowledge",
    "Sentence",
    "build",
    "bundled_editors",
    "bundled_name",
    "bundled_path",
    "counterfact",
    "held_out",
    "neutral_text",
    "sentence",
    "taught",
    "taught_two_hop",
    "training_sentences",
    "write_tasks",
    "zsre",
]

BUNDLED = MappingProxyType({"world": "decoder", "world-t5": "encoder-decoder"})
"""The bundled models by name, and what kind each is."""


def bundled_path(name: str = "world") -> Path:
    """The folder of a bundled model, as Hugging Face's loaders take it: "world" is the decoder, "world-t5" the
    encoder-decoder.

    Raises:
        ConfigError: no model of that name is bundled.
        ModelError: the model is missing from this installation.
    """
    if name not in BUNDLED:
        raise unknown_name("bundled model", name, BUNDLED)
    path = Path(__file__).parent / "bundled" / BUNDLED[name]
    if not (path / "model.safetensors").is_file():
        raise ModelError(
            f"The bundled model {name!r} is not part of this installation.",
            where=str(path),
            remedy="reinstall the package, or train it: palimpsest world train "
            f"--architecture {BUNDLED[name]} --out DIR",
        )
    return path


def bundled_name(folder: str) -> str | None:
    """What the bundled model in a folder is called, here or in another installation; `None` for any other folder."""
    parts = Path(folder).parts[-4:]
    return next((name for name, kind in BUNDLED.items() if parts == ("palimpsest", "world", "bundled", kind)), None)


def bundled_editors() -> Path:
    """The folder of the editors that were trained for the bundled models."""
    return Path(__file__).parent / "bundled" / "editors"
