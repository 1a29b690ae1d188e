"""Knowledge shards: which entries each may change, which one is open, and how full ones become one memory."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.methods.wise.config import WiseConfig
from palimpsest.methods.wise.side_passes import layer_inputs
from palimpsest.models import EditableModel, Encoded, by_length
from palimpsest.patches import SideMemories, SideMemory
from palimpsest.solve import ties

NEW_SHARE = 0.4
"""Weight of new shards when they are merged into a merged memory (the published code's)."""


def shard_mask(shard: int, like: Tensor, config: WiseConfig) -> Tensor:
    """The entries that a shard may change, the same whenever it is asked for."""
    generator = torch.Generator().manual_seed(config.seed + 7919 * (shard + 1))
    return (torch.rand(like.shape, generator=generator) < config.mask_ratio).to(like.device)


def merged_shards(memories: SideMemories, model: EditableModel, config: WiseConfig) -> SideMemories:
    """Full shards as one memory, once there are enough of them."""
    full = [one for one in memories.memories if len(one.shards) == 1 and len(one.edits) >= config.edits_per_shard]
    if config.shards_per_merge == 1 or len(full) < config.shards_per_merge:
        return memories
    earlier = [one for one in memories.memories if len(one.shards) > 1]
    parts, weights = full, [1 / len(full)] * len(full)
    if config.memories == "merge" and earlier:
        parts = [*earlier, *full]
        weights = [(1 - NEW_SHARE) / len(earlier)] * len(earlier) + [NEW_SHARE * weight for weight in weights]
    change = ties([one.change.to(full[-1].change.device) for one in parts], weights, config.density)
    edits = tuple(known for one in parts for known in one.edits)
    prompts = [Encoded(known.prompt_ids) for known in edits]
    found = [
        layer_inputs(model, [prompts[index] for index in chunk], memories.layer).indicators(change)
        for chunk in by_length([len(one) for one in prompts], 64)
    ]
    threshold = config.threshold_share * float(torch.cat(found).min())
    together = SideMemory(tuple(shard for one in parts for shard in one.shards), change, threshold, edits)
    return memories.joined(SideMemories(memories.layer, memories.weight, (together,)))


def open_shard(memories: SideMemories, config: WiseConfig) -> int:
    """The number of the shard that the next edit goes into."""
    if not memories.memories:
        return 0
    last = max(memories.memories, key=lambda one: max(one.shards))
    is_full = len(last.shards) > 1 or len(last.edits) >= config.edits_per_shard
    return max(last.shards) + is_full
