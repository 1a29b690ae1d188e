"""Presets: options for a method on a model, each number with its source. One TOML file per method and model."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from palimpsest.errors import unknown_name

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

__all__ = ["Preset", "find_preset", "presets"]


@dataclass(frozen=True)
class Preset:
    """One file of options.

    Arguments:
        name: the file's name without its ending.
        match: config fields a model must have for the preset to be chosen automatically; empty for any model.
        options: option name to value.
        training: options of the training, for a method that is trained.
        source: where the numbers come from.
    """

    name: str
    match: Mapping[str, Any]
    options: Mapping[str, Any]
    source: str
    training: Mapping[str, Any] = field(default_factory=dict)

    def mismatches(self, model: EditableModel) -> list[str]:
        """A note, when the model is not the one that the numbers were chosen for; else nothing."""
        config = model.module.config
        other = {
            key: getattr(config, key, None) for key, value in self.match.items() if getattr(config, key, None) != value
        }
        if not other:
            return []
        wanted = ", ".join(f"{key} {self.match[key]}" for key in other)
        found = ", ".join(f"{key} {value}" for key, value in other.items())
        return [f"The preset {self.name!r} was made for a model with {wanted}; this one has {found}."]


def presets(method: str) -> dict[str, Preset]:
    """All presets of a method by name."""
    folder = resources.files(__package__) / method
    if not folder.is_dir():
        return {}
    found = {}
    for file in sorted(folder.iterdir(), key=lambda path: path.name):
        if file.name.endswith(".toml"):
            record = tomllib.loads(file.read_text(encoding="utf-8"))
            name = file.name.removesuffix(".toml")
            options, training = record.get("options", {}), record.get("training", {})
            found[name] = Preset(name, record.get("match", {}), options, record["source"], training)
    return found


def find_preset(method: str, name: str, model: EditableModel) -> Preset | None:
    """The preset of that name; for `"auto"` the one whose `match` fits the model, if any; for `"none"` nothing.

    Raises `ConfigError` for a name that is not there.
    """
    if name == "none":
        return None
    known = presets(method)
    if name == "auto":
        return next((one for one in known.values() if one.match and not one.mismatches(model)), None)
    if name not in known:
        raise unknown_name(f"preset of method {method!r}", name, [*known, "auto", "none"])
    return known[name]
