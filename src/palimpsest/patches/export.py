"""Patches as folders that others can load: a whole model for transformers, or a LoRA adapter for peft."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.models.linear import factors_to_storage, is_transposed
from palimpsest.patches.base import Patch
from palimpsest.patches.storage import write_tensors
from palimpsest.patches.weights import LowRank, WeightPatch
from palimpsest.provenance import new_folder, require_absent, versions

if TYPE_CHECKING:
    from palimpsest.models.editable import EditableModel

CARD = "README.md"
_LISTED_EDITS = 200
_SHOWN_TENSORS = 4


def write_merged(model: EditableModel, patches: Sequence[Patch], out: str | Path) -> None:
    """Writes the model with the patches merged into its weights: a new folder, complete or not at all.

    The folder has safetensors weights, the config, the tokenizer and a model card made from the patches' manifests.
    The model in memory is the same before and after.

    Raises `OutputError` when the folder exists or the disk refuses, `PatchError` for a patch of another model,
    `ConfigError` for a patch that is more than a change of weights.
    """
    folder = Path(out).expanduser()
    require_absent(folder)
    _weight_patches(patches)
    with ExitStack() as stack:
        # Applied before the folder is begun: a patch for another model must leave no trace on disk.
        for patch in patches:
            stack.enter_context(model.patched(patch))
        draft = stack.enter_context(new_folder(folder))
        model.module.save_pretrained(draft)
        # A full disk is an exception of no kind in tokenizers, and of their own in safetensors: `new_folder` knows.
        model.tokenizer.save_pretrained(draft)
        (draft / CARD).write_text(model_card(model.name, patches), encoding="utf-8")


def write_adapter(model: EditableModel, patches: Sequence[Patch], out: str | Path) -> None:
    """Writes the patches as one LoRA adapter that peft loads on the base model: a new folder, complete or not at all.

    Low-rank changes of one weight are put side by side, so their sum is exact and its rank is the sum of theirs.
    Every layer's alpha is its rank: nothing is rescaled, factors and signs are in the matrices.

    Raises `OutputError` when the folder exists or the disk refuses, `PatchError` for a patch of another model,
    `ConfigError` for a change that is not a low-rank one of a linear layer's weight.
    """
    folder = Path(out).expanduser()
    require_absent(folder)
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(model.patched(patch))
    factors = _factors(model, _weight_patches(patches))
    import peft

    ranks = {name: int(down.shape[0]) for name, (down, _) in factors.items()}
    smallest = min(ranks.values())
    # A layer's pattern is read as a regular expression.
    patterns = {re.escape(name): rank for name, rank in ranks.items() if rank != smallest}
    config: Any = peft.LoraConfig(
        r=smallest,
        lora_alpha=smallest,
        rank_pattern=patterns,
        alpha_pattern=patterns,
        target_modules=sorted(ranks),
        fan_in_fan_out=any(is_transposed(model.module.get_submodule(name)) for name in ranks),
        lora_dropout=0.0,
        bias="none",
        task_type="SEQ_2_SEQ_LM" if model.is_encoder_decoder else "CAUSAL_LM",
        base_model_name_or_path=_source(model),
        inference_mode=True,
    )
    # peft keeps a set, whose order changes from run to run; the file need not.
    config.target_modules = sorted(ranks)
    tensors = {}
    for name, (down, up) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
    with new_folder(folder) as draft:
        config.save_pretrained(str(draft))
        write_tensors(tensors, draft / "adapter_model.safetensors")
        (draft / CARD).write_text(_adapter_card(model, patches, ranks), encoding="utf-8")


def _weight_patches(patches: Sequence[Patch]) -> list[WeightPatch]:
    found = []
    for patch in patches:
        if not isinstance(patch, WeightPatch):
            raise ConfigError(
                "Only changes of weights can be merged into a model.",
                expected="weight patches",
                found=f"a patch of kind {patch.manifest.kind!r} ({patch.manifest.label})",
            )
        found.append(patch)
    return found


def _factors(model: EditableModel, patches: Sequence[WeightPatch]) -> dict[str, tuple[Tensor, Tensor]]:
    """Module name to peft's (A, B), shapes (r, in) and (out, r), of the sum of all patches."""
    downs: dict[str, list[Tensor]] = {}
    ups: dict[str, list[Tensor]] = {}
    refused: dict[str, str] = {}
    names = (name for name, _ in model.module.named_parameters(remove_duplicate=False))
    owners = Counter(map(model.weights.canonical, names))
    for patch in patches:
        for name, delta in patch.deltas.items():
            canonical = model.weights.canonical(name)
            owner, _, kind = canonical.rpartition(".")
            module = model.module.get_submodule(owner)
            if kind != "weight" or not model.sites.is_linear(module):
                refused[name] = "not the weight of a linear layer"
            elif owners[canonical] > 1:
                refused[name] = "tied to another layer's weight"
            elif not isinstance(delta, LowRank):
                refused[name] = "a dense change"
            else:
                # In storage order the factors of a transposed layer are swapped and turned; the same turn undoes it.
                up, down = factors_to_storage(module, delta.left.float(), delta.right.float())
                ups.setdefault(owner, []).append(up.cpu())
                downs.setdefault(owner, []).append(down.cpu())
    if refused or not ups:
        shown = [f"{name} ({why})" for name, why in list(refused.items())[:_SHOWN_TENSORS]]
        more = len(refused) - len(shown)
        raise ConfigError(
            "The patches cannot be written as a LoRA adapter.",
            expected="low-rank changes of the weights of linear layers, as lora and f-learning-lora make them",
            found=(", ".join(shown) + (f" and {more} more" if more else "")) or "patches that change nothing",
            remedy="write the whole model instead: --as merged",
        )
    return {
        name: (torch.cat(downs[name], dim=0).contiguous(), torch.cat(ups[name], dim=1).contiguous()) for name in ups
    }


def _source(model: EditableModel) -> str:
    """Where peft finds the base model again: the folder or hub id it was loaded from."""
    return str(getattr(model.module.config, "_name_or_path", "") or model.name)


def model_card(base: str, patches: Sequence[Patch]) -> str:
    """The text of a short model card: what was edited, how, and how to undo it."""
    return _card(
        base,
        patches,
        tags="[knowledge-editing, palimpsest]",
        how="merged into its weights",
        undo="Nothing in this folder remembers the old weights. To go back, load the base model "
        f"`{_plain(base)}`; to take back one of several patches, merge the others into the base model again with "
        "`palimpsest apply`.",
    )


def _adapter_card(model: EditableModel, patches: Sequence[Patch], ranks: Mapping[str, int]) -> str:
    base, touched = _plain(_source(model)), [f"{name}.weight" for name in ranks]
    low, high = min(ranks.values()), max(ranks.values())
    return _card(
        model.name,
        patches,
        tags="[knowledge-editing, palimpsest, peft, lora]",
        how=f"as one LoRA adapter, {_count(len(ranks), 'layer', 'layers')} of rank "
        + (f"{low}" if low == high else f"{low} to {high}"),
        undo="The base model is not in this folder and is not changed by it. Load it with "
        f'`peft.PeftModel.from_pretrained(base, "this folder")`, and take it off again with `unload()`.\n\nMade for '
        f"`{base}` whose weights have the fingerprint `{model.fingerprint(touched)['weights']}`; on other weights it "
        "does something else.",
    )


def _card(base: str, patches: Sequence[Patch], *, tags: str, how: str, undo: str) -> str:
    edits = [edit for patch in patches for edit in patch.manifest.edits]
    lines = [
        "---",
        f"tags: {tags}",
        "---",
        "",
        f"# {_plain(Path(base).name)}, edited",
        "",
        f"`{_plain(base)}` with {_count(len(patches), 'patch', 'patches')} of Palimpsest {how}: "
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
        undo,
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
