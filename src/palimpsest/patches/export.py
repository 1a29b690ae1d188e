"""A patched model as a folder that transformers, and everything that reads its folders, can load."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from palimpsest.errors import ConfigError, OutputError
from palimpsest.patches.base import Patch
from palimpsest.patches.weights import WeightPatch
from palimpsest.provenance import new_folder, require_absent, versions

if TYPE_CHECKING:
    from palimpsest.models.editable import EditableModel

CARD = "README.md"
_LISTED_EDITS = 200


def write_merged(model: EditableModel, patches: Sequence[Patch], out: str | Path) -> None:
    """Writes the model with the patches merged into its weights: a new folder, complete or not at all.

    The folder has safetensors weights, the config, the tokenizer and a model card made from the patches' manifests.
    The model in memory is the same before and after.

    Raises `OutputError` when the folder exists or the disk refuses, `PatchError` for a patch of another model,
    `ConfigError` for a patch that is more than a change of weights.
    """
    folder = Path(out).expanduser()
    require_absent(folder)
    for patch in patches:
        if not isinstance(patch, WeightPatch):
            raise ConfigError(
                "Only changes of weights can be merged into a model.",
                expected="weight patches",
                found=f"a patch of kind {patch.manifest.kind!r} ({patch.manifest.label})",
            )
    with ExitStack() as stack:
        # Applied before the folder is begun: a patch for another model must leave no trace on disk.
        for patch in patches:
            stack.enter_context(model.patched(patch))
        draft = stack.enter_context(new_folder(folder))
        try:
            model.module.save_pretrained(draft)
            model.tokenizer.save_pretrained(draft)
        except SafetensorError as error:
            raise OutputError(
                "Writing failed; nothing was left behind.",
                expected="room and permission to write",
                found=str(error),
                where=str(folder),
                remedy="free some space or choose another place, then run it again",
            ) from error
        (draft / CARD).write_text(model_card(model.name, patches), encoding="utf-8")


def model_card(base: str, patches: Sequence[Patch]) -> str:
    """The text of a short model card: what was edited, how, and how to undo it."""
    edits = [edit for patch in patches for edit in patch.manifest.edits]
    lines = [
        "---",
        "tags: [knowledge-editing, palimpsest]",
        "---",
        "",
        f"# {_plain(Path(base).name)}, edited",
        "",
        f"`{_plain(base)}` with {_count(len(patches), 'patch', 'patches')} of Palimpsest merged into its weights: "
        f"{_count(len(edits), 'fact', 'facts')} edited.",
        "",
        "## How",
        "",
        "| patch | method | preset | seed | tensors changed | made |",
        "|---|---|---|---|---|---|",
        *(_patch_row(patch) for patch in patches),
        "",
        "## What",
        "",
        "| prompt | new answer | old answer |",
        "|---|---|---|",
        *(_edit_row(edit) for edit in edits[:_LISTED_EDITS]),
    ]
    if len(edits) > _LISTED_EDITS:
        lines.append(f"\nand {len(edits) - _LISTED_EDITS} more, listed in the patches' manifests.")
    lines += [
        "",
        "## How to undo it",
        "",
        f"Nothing in this folder remembers the old weights. To go back, load the base model `{_plain(base)}`; to take "
        "back one of several patches, merge the others into the base model again with `palimpsest apply`.",
        "",
        "Made with " + ", ".join(f"{name} {number}" for name, number in versions().items()) + ".",
        "",
    ]
    return "\n".join(lines)


def _patch_row(patch: Patch) -> str:
    manifest = patch.manifest
    seed = "" if manifest.seed is None else str(manifest.seed)
    cells = (manifest.label, manifest.method or "", manifest.preset or "", seed)
    return "| " + " | ".join([*map(_plain, cells), str(len(patch.touched())), manifest.created]) + " |"


def _edit_row(edit: dict[str, Any]) -> str:
    return "| " + " | ".join(_plain(edit.get(name, "")) for name in ("prompt", "target_new", "target_old")) + " |"


def _plain(text: object) -> str:
    """One line that cannot end a table cell, open a tag or close a code span."""
    flat = " ".join(str(text).split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
