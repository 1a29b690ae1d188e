"""Patches as folders that others can load: a whole model for transformers, or a LoRA adapter for peft."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.errors import ConfigError, some_of
from palimpsest.files import expanded, new_folder, require_absent, write_tensors
from palimpsest.models.sites import (
    describe,
    factors_to_storage,
    is_experts,
    is_quantised,
    is_transposed,
    qualified_name,
)
from palimpsest.patches.adapter_limits import notes_on, targets
from palimpsest.patches.base import Patch
from palimpsest.patches.card import CARD, CONTENTS, Contents, FolderForm, card
from palimpsest.patches.folders import PATCHES
from palimpsest.patches.modules import ModulePatch
from palimpsest.patches.neurons import Neurons
from palimpsest.patches.weights import LowRank, WeightPatch
from palimpsest.patches.widening import widened
from palimpsest.world import BUNDLED

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

_SHOWN_TENSORS = 4
_SHARD = "5GB"


def write_merged(model: EditableModel, patches: Sequence[Patch], out: str | Path) -> None:
    """Writes the model with the patches merged into its weights: a new folder, complete or not at all.

    The folder has safetensors weights, the config, the tokenizer and a model card made from the patches' manifests.
    Added neurons become part of wider matrices; see `patches.widening`. The model in memory is the same before and
    after.

    Raises `OutputError` when the folder exists or the disk refuses, `PatchError` for a patch of another model,
    `ConfigError` for a patch that cannot be part of the weights, or that changes quantised ones.
    """
    folder = expanded(out)
    require_absent(folder)
    neurons = [branch for patch in patches for branch in added_neurons(patch)]
    weights = [patch for patch in patches if not isinstance(patch, ModulePatch)]
    _refuse_quantised(model, _weight_patches(weights, of="a merged model"))
    with ExitStack() as stack:
        # Applied before the folder is begun: a patch for another model must leave no trace on disk.
        with ExitStack() as check:
            for patch in patches:
                check.enter_context(model.patched(patch))
        for patch in weights:
            stack.enter_context(model.patched(patch))
        merged = widened(model, neurons) if neurons else model.module
        draft = stack.enter_context(new_folder(folder))
        _save_weights(merged, draft)
        # A full disk is an exception of no kind in tokenizers, and of their own in safetensors: `new_folder` knows.
        model.tokenizer.save_pretrained(draft)
        _write_contents(_contents(model, patches, "merged", model.name), draft)


def added_neurons(patch: Patch) -> list[Neurons]:
    """The neurons that a patch adds. Raises `ConfigError` for one that adds something else."""
    found = []
    for branch in patch.branches if isinstance(patch, ModulePatch) else ():
        if not isinstance(branch, Neurons):
            raise ConfigError(
                "Only changes of weights, and neurons, can be merged into a model.",
                expected="weight patches, or added neurons",
                found=f"added {branch.form} ({patch.manifest.label})",
                remedy="write the base model's name and the patches instead: --as patched",
            )
        found.append(branch)
    return found


def write_patched(model: EditableModel, patches: Sequence[Patch], out: str | Path) -> None:
    """Writes the base model's name and the patches: a new folder that `palimpsest.load` reads, complete or not at all.

    Raises `OutputError` when the folder exists or the disk refuses, `PatchError` for a patch of another model.
    """
    folder = expanded(out)
    require_absent(folder)
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(model.patched(patch))
        contents = _contents(model, patches, "patched", base_of(model.name))
    with new_folder(folder) as draft:
        for index, patch in enumerate(patches):
            patch.write(draft / PATCHES / str(index))
        _write_contents(contents, draft)


def base_of(name: str) -> str:
    """How a folder elsewhere names a model: a folder by its full path, others as they are called.

    A bundled model is called by its name even if there is a folder of that name.
    """
    path = expanded(name)
    return str(path.resolve()) if path.exists() and name not in BUNDLED else name


def _save_weights(module: Any, draft: Path) -> None:
    with warnings.catch_warnings():
        # Offloaded weights are fetched shard by shard; transformers warns that a shard has to fit the memory.
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        module.save_pretrained(draft, max_shard_size=_SHARD)


def write_adapter(model: EditableModel, patches: Sequence[Patch], out: str | Path) -> list[str]:
    """Writes the patches as one LoRA adapter that peft loads on the base model: a new folder, complete or not at all.

    Low-rank changes of one weight are put side by side, so their sum is exact and its rank is the sum of theirs.
    Every layer has the largest of these ranks, the factors padded with zeros, and alpha is that rank: nothing is
    rescaled, factors and signs are in the matrices. vLLM and llama.cpp's converter drop patterns of ranks, so there
    are none.

    Returns sentences on servers that do not take the adapter; see `adapter_limits`.

    Raises `OutputError` when the folder exists or the disk refuses, `PatchError` for a patch of another model,
    `ConfigError` for a change that is not a low-rank one of a linear layer's weight.
    """
    folder = expanded(out)
    require_absent(folder)
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(model.patched(patch))
    factors = padded(low_rank_factors(model, patches))
    rank = next(iter(factors.values()))[0].shape[0]
    import peft

    linear = [name for name, module in model.module.named_modules() if model.sites.is_linear(module)]
    chosen = targets(factors, linear)
    turned = any(is_transposed(model.module.get_submodule(name)) for name in factors)
    config: Any = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        **chosen,
        fan_in_fan_out=turned,
        lora_dropout=0.0,
        bias="none",
        task_type="SEQ_2_SEQ_LM" if model.is_encoder_decoder else "CAUSAL_LM",
        base_model_name_or_path=_source(model),
        inference_mode=True,
    )
    # peft keeps a set, whose order changes from run to run; the file need not.
    config.target_modules = chosen["target_modules"]
    tensors = {}
    for name, (down, up) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
    with new_folder(folder) as draft:
        config.save_pretrained(str(draft))
        write_tensors(tensors, draft / "adapter_model.safetensors")
        ranks = dict.fromkeys(factors, rank)
        _write_contents(_contents(model, patches, "peft", _source(model), ranks), draft)
    return notes_on(rank, chosen["target_modules"], is_transposed=turned, is_encoder_decoder=model.is_encoder_decoder)


def _weight_patches(patches: Sequence[Patch], *, of: str) -> list[WeightPatch]:
    found = []
    for patch in patches:
        if not isinstance(patch, WeightPatch):
            others = "the base model's name and the patches: --as patched"
            if isinstance(patch, ModulePatch) and all(isinstance(branch, Neurons) for branch in patch.branches):
                others = "a model with wider MLPs: --as merged; or edit again by weights (auto: -o weights_only=true)"
            raise ConfigError(
                f"Only changes of weights can be part of {of}.",
                expected="weight patches",
                found=f"a patch of kind {patch.kind!r} ({patch.manifest.label})",
                remedy=f"write {others}",
            )
        found.append(patch)
    return found


def _refuse_quantised(model: EditableModel, patches: Sequence[WeightPatch]) -> None:
    for name in (name for patch in patches for name in patch.deltas):
        owner = model.weights.owner(name)
        if is_quantised(owner):
            raise ConfigError(
                "A patch cannot be merged into quantised weights.",
                expected="weights in float32, bfloat16 or float16",
                found=f"a {qualified_name(owner)}, its weight {describe(getattr(owner, 'weight', None))}",
                where=f"tensor {name}",
                remedy="write an adapter instead: --as peft; or make the edit on the checkpoint that was quantised",
            )


def padded(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The same (A, B) by module, all of the largest rank: A has further rows of zeros, B further columns."""
    rank = max(down.shape[0] for down, _ in factors.values())
    return {
        name: (
            functional.pad(down, (0, 0, 0, rank - down.shape[0])).contiguous(),
            functional.pad(up, (0, rank - up.shape[1])).contiguous(),
        )
        for name, (down, up) in factors.items()
    }


def low_rank_factors(
    model: EditableModel, patches: Sequence[Patch], *, alternative: str = "the whole model instead: --as merged"
) -> dict[str, tuple[Tensor, Tensor]]:
    """Module name to peft's (A, B), shapes (r, in) and (out, r), of the sum of all patches.

    Arguments:
        alternative: what to write where the patches are no low-rank changes.

    Raises `ConfigError` for a change that is not a low-rank one of a linear layer's weight.
    """
    downs: dict[str, list[Tensor]] = {}
    ups: dict[str, list[Tensor]] = {}
    refused: dict[str, str] = {}
    names = (name for name, _ in model.module.named_parameters(remove_duplicate=False))
    owners = Counter(map(model.weights.canonical, names))
    for patch in _weight_patches(patches, of="an adapter"):
        for name, delta in patch.deltas.items():
            canonical = model.weights.canonical(name)
            owner, _, kind = canonical.rpartition(".")
            module = model.module.get_submodule(owner)
            if is_experts(module):
                refused[name] = "a mixture's experts, which an adapter has no form for"
            elif kind != "weight" or not (model.sites.is_linear(module) or is_quantised(module)):
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
        shown = some_of([f"{name} ({why})" for name, why in refused.items()], most=_SHOWN_TENSORS)
        raise ConfigError(
            "The patches cannot be written as a LoRA adapter.",
            expected="low-rank changes of the weights of linear layers, as lora and f-learning-lora make them",
            found=shown or "patches that change nothing",
            remedy=f"write {alternative}",
        )
    return {name: _shortened(torch.cat(downs[name], dim=0), torch.cat(ups[name], dim=1)) for name in ups}


def _shortened(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The same product by fewer ranks, if there are more of them than the matrix has rows or columns."""
    most = min(down.shape[1], up.shape[0])
    if down.shape[0] > most:
        left, size, right = torch.linalg.svd(up.double() @ down.double(), full_matrices=False)
        root = size.sqrt()
        up, down = (left * root).float(), (root[:, None] * right).float()
    return down.contiguous(), up.contiguous()


def _source(model: EditableModel) -> str:
    """Where peft finds the base model again: the folder or hub id it was loaded from."""
    return str(getattr(model.module.config, "_name_or_path", "") or model.name)


def _write_contents(contents: Contents, draft: Path) -> None:
    (draft / CONTENTS).write_text(contents.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (draft / CARD).write_text(card(contents), encoding="utf-8")


def _contents(
    model: EditableModel, patches: Sequence[Patch], form: FolderForm, base: str, ranks: Mapping[str, int] | None = None
) -> Contents:
    # Without probes: these are the patches' tests, and there is no patch in the folder to be tested.
    manifests = [
        patch.manifest.model_copy(
            update={
                "tensor_layout": dict.fromkeys(patch.touched(), form),
                "edits": [{**edit, "probes": []} for edit in patch.manifest.edits],
            }
        )
        for patch in patches
    ]
    fingerprint = model.fingerprint()["weights"]
    return Contents(
        form=form,
        base=base,
        fingerprint=fingerprint,
        auto_class="AutoModelForSeq2SeqLM" if model.is_encoder_decoder else "AutoModelForCausalLM",
        ranks=dict(ranks or {}),
        patches=manifests,
    )
