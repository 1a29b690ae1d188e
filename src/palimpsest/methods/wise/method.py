"""WISE (Wang et al., arXiv:2405.14768): side memories beside one MLP's down-projection, and a routing between them.

With A(x) what the down-projection W reads at each token of a prompt x, a side memory W' answers where

    D(x) = mean over tokens of |A(x) (W' - W)^T|  >  threshold                                          (eq. 5, 6)

and W everywhere else. An edit trains W' inside the mask of its knowledge shard, a random share of the entries, on

    cross-entropy of the answer, in several contexts
    + [gamma - (D_in - D_out)]+ + [D_out - alpha]+ + [beta - D_in]+                                     (eq. 7, 8)

D_in on the edit's rows and D_out on ordinary text, by plain gradient descent with W' - W clamped. The threshold is a
share of the smallest D_in of its edits. After so many edits a shard is full and the next one begins; so many full
shards become one memory by TIES (`solve/ties.py`), whose threshold is measured anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from palimpsest.locating import ContextOptions, context_templates, in_context
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig, MethodState
from palimpsest.methods.memory import MemoryConfig
from palimpsest.methods.ordinary import OrdinaryText, drawn
from palimpsest.methods.states import BranchState, foreign_state
from palimpsest.methods.wise.side_passes import Inputs, SidePasses, layer_inputs, side_passes
from palimpsest.models import EditableModel, Encoded, by_length, frozen_parameters, layer_number
from palimpsest.models.sites import MLP_DOWN, features
from palimpsest.patches import KnownEdit, ModulePatch, Patch, SideMemories, SideMemory, standing_back
from palimpsest.requests import EditRequest
from palimpsest.solve import ties
from palimpsest.statistics import OWN_WRITING, reachable
from palimpsest.training import prompts_apart_from, require_finite

NEW_SHARE = 0.4
"""Weight of new shards when they are merged into a merged memory (the published code's)."""


class WiseConfig(MethodConfig):
    """Options of `wise`."""

    layer: int | Literal["auto"] = "auto"
    """The layer; negative numbers count from the last. `auto` is the one at 0.69 of the depth."""
    learning_rate: float = Field(default=1.0, gt=0)
    """Step size of plain gradient descent."""
    steps: int = Field(default=70, ge=1)
    """Steps of one edit, at most."""
    stop_loss: float = Field(default=0.02, ge=0)
    """An edit is done when its whole loss is below this,"""
    stop_change: float = Field(default=1e-4, ge=0)
    """and has changed by no more than this in the last step."""
    largest_change: float = Field(default=1.0, gt=0)
    """Bound on every entry of W' - W."""
    alpha: float = Field(default=5.0, ge=0)
    """Where D of ordinary text is to stay below."""
    beta: float = Field(default=20.0, ge=0)
    """Where D of the edit is to rise above."""
    gamma: float = Field(default=10.0, ge=0)
    """How far apart the two are to be."""
    threshold_share: float = Field(default=0.88, gt=0, le=1)
    """The threshold, as a share of the smallest D of a memory's edits."""
    mask_ratio: float = Field(default=0.2, gt=0, le=1)
    """Share of the entries that a knowledge shard may change."""
    edits_per_shard: int = Field(default=500, ge=1)
    """Edits before the next shard begins."""
    shards_per_merge: int = Field(default=2, ge=1)
    """Full shards that become one memory; 1 keeps each as it is."""
    density: float = Field(default=0.53, gt=0, le=1)
    """Share of each shard's entries that TIES keeps."""
    memories: Literal["retrieve", "merge"] = "retrieve"
    """Whether merged memories stand side by side, or each merger takes the former one in, so that there is one."""
    contexts: ContextOptions = ContextOptions(starts=["I", "You", "Because", "Yes", "Q:"], lengths=[5, 10], top_k=1)
    """Texts before the prompt."""
    text: str = OWN_WRITING
    """What D_out is measured on: `own`, what the model itself writes; `wikipedia`, `wikitext`, `world`; a text file, a
    .jsonl, a .parquet, or a folder of them; owner/name of a data set on the hub; or a data set of edits, such as
    `world-counterfact`: its training prompts with their old answers."""
    max_tokens: int = Field(default=4000, ge=2)
    """Tokens of that text to draw from."""
    row_length: int = Field(default=32, ge=2)
    """Tokens of its longest row."""
    rows_outside: int = Field(default=1, ge=1)
    """Rows of it that each edit is held against, drawn anew."""
    spare: int = Field(default=8, ge=0)
    """Other subjects about which the edit's prompt is asked, to be held against it like those rows; ordinary beginnings
    of sentences where it has no subject. 0: none, as published."""


class SideMemoryState(BranchState[SideMemories]):
    """The side memories of all edits so far."""

    form = SideMemories
    method = "wise"


@final
class Wise(Method[WiseConfig]):
    """Several requests are edited one after another."""

    Config: ClassVar[type[MethodConfig]] = WiseConfig
    State: ClassVar[type[MethodState] | None] = SideMemoryState
    capabilities: ClassVar[Capabilities] = Capabilities(gives_weight_patch=False, edits_encoder_decoders=False)

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._ordinary = OrdinaryText()

    def check_model(self, model: EditableModel, config: WiseConfig) -> None:
        model.sites.parameter_name(MLP_DOWN, layer_number(config.layer, model.num_layers))

    def compute(self, model: EditableModel, requests: Sequence[EditRequest], config: WiseConfig, run: EditRun) -> Patch:
        layer = layer_number(config.layer, model.num_layers)
        memories = _earlier(run.state, model, layer)
        first = _open_shard(memories, config)
        with run.clock.stage("contexts"):
            templates = context_templates(model, config.contexts, seed=config.seed)
            options = MemoryConfig(max_tokens=config.max_tokens, row_length=config.row_length)
            text = config.text if "text" in self.options else reachable(config.text, run.diagnostics.notes)
            ordinary = self._ordinary.of(model, text, options, run.progress)
        before = SideMemories(layer, memories.weight, ())
        with standing_back(model, before), frozen_parameters(model.module):
            for index, request in enumerate(requests):
                run.progress("side memories", index, len(requests))
                made = len(memories.owners())
                with run.clock.stage("training"):
                    rows = [in_context(request, template) for template in templates]
                    encoded = [model.encode(row.prompt, row.target_new) for row in rows]
                    draw = config.seed + 104_729 * (made + 1)
                    apart = drawn(ordinary, request, config.rows_outside, draw)
                    others = prompts_apart_from(request, config.spare, torch.Generator().manual_seed(draw))
                    apart = [*apart, *(Encoded(model.encode(text).prompt_ids) for text in others)]
                    passes, outside = side_passes(model, encoded, layer), layer_inputs(model, apart, layer)
                    known = KnownEdit(request.id, encoded[0].prompt_ids)
                    memory, losses = _trained(memories, passes, outside, known, config)
                memories = memories.joined(SideMemories(layer, memories.weight, (memory,)))
                run.diagnostics.losses[request.id] = losses
                with run.clock.stage("merging"):
                    memories = _merged(memories, model, config)
        run.progress("side memories", len(requests), len(requests))
        run.state = SideMemoryState(memories)
        run.diagnostics.facts |= {"layer": layer, "memories": len(memories.memories), "contexts": list(templates)}
        changed = tuple(one for one in memories.memories if max(one.shards) >= first)
        return ModulePatch([SideMemories(layer, memories.weight, changed)])


def train(
    passes: SidePasses, outside: Inputs, start: Tensor, mask: Tensor, config: WiseConfig
) -> tuple[Tensor, list[float]]:
    """(out, in), the change after gradient descent inside a mask, and the loss of each step."""
    change = nn.Parameter(start.clone())
    losses: list[float] = []
    for step in range(config.steps):
        loss = passes.losses(change).mean()
        loss = loss + margin_loss(passes.inputs.indicators(change), outside.indicators(change), config)
        require_finite(loss, step, config.steps, config.learning_rate)
        losses.append(float(loss.detach()))
        if losses[-1] <= config.stop_loss and abs(losses[-1] - losses[-2:][0]) <= config.stop_change and step:
            break
        [gradient] = torch.autograd.grad(loss, change)
        with torch.no_grad():
            change.sub_(config.learning_rate * gradient * mask)
            change.clamp_(-config.largest_change, config.largest_change)
    return change.detach(), losses


def margin_loss(inside: Tensor, outside: Tensor, config: WiseConfig) -> Tensor:
    """The three margins, each the mean over its positive terms alone.

    Arguments:
        inside: (rows,), D of the edit.
        outside: (rows,), D of ordinary text.
    """
    apart = config.gamma - (inside[:, None] - outside)
    low, high = outside - config.alpha, config.beta - inside
    return _mean_of_positive(apart) + _mean_of_positive(low) + _mean_of_positive(high)


def shard_mask(shard: int, like: Tensor, config: WiseConfig) -> Tensor:
    """The entries that a shard may change, the same whenever it is asked for."""
    generator = torch.Generator().manual_seed(config.seed + 7919 * (shard + 1))
    return (torch.rand(like.shape, generator=generator) < config.mask_ratio).to(like.device)


def _trained(
    memories: SideMemories, passes: SidePasses, outside: Inputs, known: KnownEdit, config: WiseConfig
) -> tuple[SideMemory, list[float]]:
    """The open shard's memory with one more edit."""
    shard, read = _open_shard(memories, config), passes.inputs.tensor
    former = next((one for one in memories.memories if one.shards == (shard,)), None)
    shape = passes.suffix.model.sites.d_model, read.shape[-1]
    start = torch.zeros(shape, device=read.device) if former is None else former.change.to(read.device)
    change, losses = train(passes, outside, start, shard_mask(shard, start, config), config)
    # The first context is the prompt alone, which is what the routing will read.
    threshold = config.threshold_share * float(passes.inputs.indicators(change)[0])
    if former is None:
        return SideMemory((shard,), change, threshold, (known,)), losses
    return SideMemory((shard,), change, min(threshold, former.threshold), (*former.edits, known)), losses


def _merged(memories: SideMemories, model: EditableModel, config: WiseConfig) -> SideMemories:
    """Full shards as one memory, once there are enough of them."""
    full = [one for one in memories.memories if len(one.shards) == 1 and len(one.edits) >= config.edits_per_shard]
    if config.shards_per_merge == 1 or len(full) < config.shards_per_merge:
        return memories
    merged = [one for one in memories.memories if len(one.shards) > 1]
    parts, weights = full, [1 / len(full)] * len(full)
    if config.memories == "merge" and merged:
        parts = [*merged, *full]
        weights = [(1 - NEW_SHARE) / len(merged)] * len(merged) + [NEW_SHARE * weight for weight in weights]
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


def _open_shard(memories: SideMemories, config: WiseConfig) -> int:
    """The number of the shard that the next edit goes into."""
    if not memories.memories:
        return 0
    last = max(memories.memories, key=lambda one: max(one.shards))
    is_full = len(last.shards) > 1 or len(last.edits) >= config.edits_per_shard
    return max(last.shards) + is_full


def _earlier(state: MethodState | None, model: EditableModel, layer: int) -> SideMemories:
    """The side memories so far. Raises `ConfigError` for another method's state, or that of another place."""
    weight = model.sites.parameter_name(MLP_DOWN, layer)
    if state is None:
        return SideMemories(layer, weight, ())
    found = state.branch if isinstance(state, SideMemoryState) else None
    shape = features(model.sites.module(MLP_DOWN, layer))
    if found is None or found.weight != weight or any(tuple(one.change.shape) != shape for one in found.memories):
        raise foreign_state(
            f"the side memories that wise returned for {weight}, of shape {shape}",
            type(state).__name__ if found is None else f"those of {found.weight}",
            remedy="give layer as an option, so that all edits of a sequence have the same",
        )
    return found


def _mean_of_positive(terms: Tensor) -> Tensor:
    positive = terms.clamp(min=0)
    return positive.sum() / (positive > 0).sum().clamp(min=1)
