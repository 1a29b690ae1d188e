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
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from palimpsest.locating import context_templates, encode_in_context
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig, MethodState
from palimpsest.methods.memory import MemoryConfig
from palimpsest.methods.ordinary import OrdinaryText, drawn
from palimpsest.methods.states import BranchState, foreign_state
from palimpsest.methods.wise.config import WiseConfig
from palimpsest.methods.wise.shards import merged_shards, open_shard, shard_mask
from palimpsest.methods.wise.side_passes import Inputs, SidePasses, layer_inputs, side_passes
from palimpsest.models import EditableModel, Encoded, frozen_parameters, layer_number
from palimpsest.models.sites import MLP_DOWN, features
from palimpsest.patches import KnownEdit, ModulePatch, Patch, SideMemories, SideMemory, standing_back
from palimpsest.requests import EditRequest
from palimpsest.statistics import reachable
from palimpsest.training import prompts_apart_from, require_finite


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
        first = open_shard(memories, config)
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
                    encoded = [encode_in_context(model, request, one, request.target_new) for one in templates]
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
                    memories = merged_shards(memories, model, config)
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


def _trained(
    memories: SideMemories, passes: SidePasses, outside: Inputs, known: KnownEdit, config: WiseConfig
) -> tuple[SideMemory, list[float]]:
    """The open shard's memory with one more edit."""
    shard, read = open_shard(memories, config), passes.inputs.tensor
    former = next((one for one in memories.memories if one.shards == (shard,)), None)
    shape = passes.suffix.model.sites.d_model, read.shape[-1]
    start = torch.zeros(shape, device=read.device) if former is None else former.change.to(read.device)
    change, losses = train(passes, outside, start, shard_mask(shard, start, config), config)
    # The first context is the prompt alone, which is what the routing will read.
    threshold = config.threshold_share * float(passes.inputs.indicators(change)[0])
    if former is None:
        return SideMemory((shard,), change, threshold, (known,)), losses
    return SideMemory((shard,), change, min(threshold, former.threshold), (*former.edits, known)), losses


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
