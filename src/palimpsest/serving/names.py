"""Which models an endpoint has: the base, and the base with patches, by name: `world`, `world+oslo`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.errors import ConfigError, PalimpsestError, near_matches
from palimpsest.models import ChatRecord, EditableModel
from palimpsest.patches import Patch

BASE = "base"
"""The base model's other name, whatever it is called."""
JOINER = "+"


@dataclass(frozen=True)
class NamedPatch:
    """A patch under the name that requests choose it by."""

    name: str
    patch: Patch


class Catalogue:
    """The names that requests may ask for.

    Arguments:
        model: the base model.
        patches: each with its name; one of a name. One that was made on top of others brings those that stand
            before it with it.

    Raises `ConfigError` for a name that is given twice or cannot be one, and `PatchError` for a patch that does not
    belong on the model: each is put on once.
    """

    def __init__(self, model: EditableModel, patches: Sequence[NamedPatch]) -> None:
        self.base = Path(model.name).name or model.name
        self._patches: dict[str, Patch] = {}
        self._below: dict[str, tuple[str, ...]] = {}
        for one in patches:
            if one.name in self._patches or not one.name or JOINER in one.name:
                raise ConfigError(
                    "Patches are chosen by their folders' names, and this one cannot be.",
                    expected=f"different names, without {JOINER!r}",
                    found=f"{one.name!r}" + (" twice" if one.name in self._patches else ""),
                    remedy="rename the folder, or copy it under another name",
                )
            labels = one.patch.manifest.stacked_on
            below = tuple(name for name, patch in self._patches.items() if patch.manifest.label in labels)
            with self.put_on(model, below), model.patched(one.patch):
                self._patches[one.name], self._below[one.name] = one.patch, below

    def chosen(self, name: str) -> tuple[str, ...]:
        """The patches that a model's name stands for. Raises `LookupError` with a sentence for an unknown one."""
        for base in (self.base, BASE):
            if name == base:
                return ()
            if name.startswith(base + JOINER):
                found = tuple(name.removeprefix(base + JOINER).split(JOINER))
                unknown = [one for one in found if one not in self._patches]
                if not unknown and len(set(found)) == len(found):
                    return tuple(dict.fromkeys(each for one in found for each in (*self._below[one], one)))
        close = near_matches(name, self.names())
        raise LookupError(
            f"There is no model {name[:200]!r}." + (f" Did you mean {' or '.join(map(repr, close))}?" if close else "")
        )

    def put_on(self, model: EditableModel, names: Sequence[str]) -> ExitStack:
        """Puts patches on the model, the first one lowest; closing what is returned takes them off."""
        stack = ExitStack()
        stack.enter_context(model.patched(*(self._patches[name] for name in names)))
        return stack

    def chat_of(self, names: Sequence[str]) -> ChatRecord | None:
        """The texts of the chat that the patches were made in, if they were."""
        return next((chat for name in names if (chat := self._patches[name].manifest.chat)), None)

    def names(self) -> list[str]:
        """The base, and the base with each patch."""
        return [self.base, *(f"{self.base}{JOINER}{name}" for name in self._patches)]

    def described(self, created: int) -> list[dict[str, Any]]:
        """Every name as OpenAI lists models, with what Palimpsest knows beside it."""
        rows: list[dict[str, Any]] = [{"id": self.base, "parent": None, "edits": 0}]
        for name, patch in self._patches.items():
            edits = len(patch.manifest.edits)
            rows.append(
                {
                    "id": f"{self.base}{JOINER}{name}",
                    "parent": self.base,
                    "edits": edits,
                    "label": patch.manifest.label,
                    "tensors_sha256": patch.manifest.tensors_sha256,
                }
            )
        return [{"object": "model", "created": created, "owned_by": "palimpsest", **row} for row in rows]


def patch_name(folder: Path) -> str:
    """The name that a patch's folder gives it."""
    return folder.resolve().name


def said_of(error: PalimpsestError) -> str:
    """An error of ours as one paragraph, for an answer over the network."""
    parts = (error.problem, *(f"{label}: {text}." for label, text in error.details() if label != "where"))
    return " ".join(parts)
