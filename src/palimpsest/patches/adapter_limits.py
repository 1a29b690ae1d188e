"""Limits of servers on LoRA adapters: ranks, names of modules, families.

Sources: vLLM's documentation of `max_lora_rank` and its check of adapters, SGLang's of `--max-lora-rank`. Both scale
every layer by `lora_alpha / r` of the config, and read no patterns of ranks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`; an adapter may have that rank or a smaller one."""
_NUMBER = re.compile(r"(?<=\.)(\d+)(?=\.)")


def vllm_rank(rank: int) -> int | None:
    """The smallest `--max-lora-rank` under which vLLM loads an adapter; `None` where it loads none of that rank."""
    return next((limit for limit in VLLM_RANKS if rank <= limit), None)


def targets(changed: Collection[str], linear: Collection[str]) -> dict[str, Any]:
    """How an adapter's config names its modules: by their last names where that is not ambiguous, else in full.

    SGLang refuses full names; peft takes both.

    Arguments:
        changed: full names of the adapted modules.
        linear: full names of all linear modules of the model.

    Returns `target_modules` and, where only some layers are adapted, `layers_to_transform`.
    """
    full = {"target_modules": sorted(changed)}
    numbers = [_NUMBER.findall(name) for name in changed]
    if any(len(found) != 1 for found in numbers):
        return full
    layers = {int(found[0]) for found in numbers}
    last = sorted({name.rpartition(".")[2] for name in changed})
    matched = {name for name in linear if name.rpartition(".")[2] in last}
    if matched == set(changed):
        return {"target_modules": last}
    in_layers = {name for name in matched if [int(one) for one in _NUMBER.findall(name)][:1] in [[n] for n in layers]}
    if in_layers == set(changed):
        return {"target_modules": last, "layers_to_transform": sorted(layers)}
    return full


def notes_on(rank: int, target_modules: Sequence[str], *, is_transposed: bool, is_encoder_decoder: bool) -> list[str]:
    """Sentences on servers that do not take an adapter; empty where they do."""
    notes = []
    if is_encoder_decoder:
        notes.append("vLLM and SGLang put no adapters on encoder-decoders: load it with peft, or write --as merged")
    if is_transposed:
        notes.append(
            "vLLM and SGLang do not read weights stored (in, out), as GPT-2's: load it with peft, or write --as merged"
        )
    if vllm_rank(rank) is None:
        notes.append(
            f"its rank, {rank}, is above {VLLM_RANKS[-1]}, the largest that vLLM loads: write --as merged, or fewer"
            " patches"
        )
    if any("." in name for name in target_modules):
        notes.append(
            "SGLang takes last names of modules only, and these are ambiguous: start it with --lora-target-modules all,"
            " or write --as merged"
        )
    return notes
