"""The published search: Adam on a vector, which ROME, MEMIT and PMET share.

    min over delta   mean over contexts j of  -1/m sum_t log p(y_t | x_j, y_<t; h + delta)
                     + kl_factor KL( p(. | essence; h + delta) || p(. | essence; h) )
                     + weight_decay |delta| / |h|^2                                  (ROME, eq. 4; MEMIT, eq. 16)
    subject to       |delta| <= clamp_norm_factor |h|

The decay is of the norm and not its square, as the published code has it. Every fact has its own Adam; one that has
stopped takes no part in a step, so each fact in a batch ends as it would on its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from palimpsest.locating.target_vector.chunk import Chunk
from palimpsest.locating.target_vector.log import Log
from palimpsest.locating.target_vector.options import TargetOptions

RELAXED_WEIGHT = 0.1
RELAXED_DIVERGENCE = 0.01


@dataclass(frozen=True)
class Evaluation:
    """One pass: (facts,) total loss, likelihood part, divergence, whether all answer tokens are the most probable ones;
    (facts, sites, width) gradient of the total.
    """

    total: Tensor
    nll: Tensor
    divergence: Tensor
    is_said: Tensor
    gradient: Tensor


def search_adam(chunk: Chunk, options: TargetOptions, log: Log) -> Tensor:
    """The vectors, (facts, sites, width). Facts stop by themselves; see the module's docstring."""
    objective = TargetObjective(chunk, options)
    lengths = chunk.initial.norm(dim=-1, keepdim=True)
    # Adam does not feel the gradient's scale, so a vector in units of what it is added to makes the step relative.
    is_relative = options.learning_rate_unit == "relative"
    unit = chunk.scale[..., None] / math.sqrt(chunk.initial.shape[-1]) if is_relative else torch.ones_like(lengths)
    masters = [nn.Parameter(torch.zeros_like(vector)) for vector in chunk.initial]
    optimizer = torch.optim.Adam(masters, lr=options.learning_rate, foreach=True)
    deltas = finite = torch.zeros_like(chunk.initial)
    for step in range(options.steps):
        found = objective.evaluate(deltas, chunk)
        log.record(found.total, found.nll, found.gradient)
        finite = torch.where(log.active[:, None, None], deltas, finite)
        log.stop(objective.is_reached(found), "reached")
        if log.is_done or step == options.steps - 1:
            break
        for master, gradient, is_active in zip(masters, found.gradient * unit, log.active.tolist(), strict=True):
            master.grad = gradient if is_active else None
        optimizer.step()
        if options.clamp_norm_factor is not None:
            _clamp(masters, options.clamp_norm_factor * lengths / unit)
        deltas = torch.stack([master.detach() for master in masters]) * unit
        chunk = chunk.narrowed(log.active)
    return finite


class TargetObjective:
    """The loss and its gradient, and what it remembers from the first pass and from pass to pass."""

    def __init__(self, chunk: Chunk, options: TargetOptions) -> None:
        self._options = options
        self._lengths = chunk.initial.norm(dim=-1)
        self._num_contexts = sum(len(group.facts) for group in chunk.rewriting) // chunk.num_facts
        self._kept: Tensor | None = None
        self._weight = chunk.initial.new_ones(chunk.num_facts)

    def evaluate(self, deltas: Tensor, chunk: Chunk) -> Evaluation:
        """One forward and backward pass over the rows in a chunk."""
        options, count = self._options, chunk.num_facts
        leaf = deltas.detach().requires_grad_()
        decay = options.weight_decay * (leaf.norm(dim=-1) / self._lengths.square()).sum(-1)
        (gradient,) = torch.autograd.grad(decay.sum(), leaf)
        nll, divergence = torch.zeros_like(self._weight), torch.zeros_like(self._weight)
        is_said = torch.ones(count, dtype=torch.bool, device=nll.device)
        for group in chunk.rewriting:
            logits = group.logits(leaf[group.facts])
            picked = logits.gather(-1, group.labels[:, None])[:, 0] - logits.logsumexp(-1)
            per_row = group.per_row(-picked) / group.lengths() / self._num_contexts
            gradient += torch.autograd.grad((per_row * self._weight[group.facts]).sum(), leaf)[0]
            nll.index_add_(0, group.facts, per_row.detach())
            is_said[group.facts[group.rows[logits.argmax(-1) != group.labels]]] = False
        for group in chunk.essence:
            log_probs = group.logits(leaf[group.facts]).log_softmax(-1)
            per_row = (log_probs.exp() * (log_probs - self._undisturbed(log_probs, group.facts))).sum(-1)
            gradient += torch.autograd.grad(options.kl_factor * per_row.sum(), leaf)[0]
            divergence.index_add_(0, group.facts, per_row.detach())
        total = self._weight * nll + options.kl_factor * divergence + decay.detach()
        return Evaluation(total, nll, divergence, is_said, gradient)

    def is_reached(self, found: Evaluation) -> Tensor:
        """Which facts may stop, (facts,); with PMET's rule, also how much the likelihood weighs in the next pass."""
        options = self._options
        reached = (found.total if options.stop_on == "total" else found.nll) < options.stop_loss
        if options.relax_when_said:
            self._weight = torch.where(found.is_said, RELAXED_WEIGHT, torch.ones_like(self._weight))
            reached = reached | (found.is_said & (found.divergence <= RELAXED_DIVERGENCE))
        return reached

    def _undisturbed(self, log_probs: Tensor, facts: Tensor) -> Tensor:
        """The essence prompts' predictions in the first pass, when no vector had moved: (rows, vocabulary)."""
        if self._kept is None or len(self._kept) != len(self._weight):
            self._kept = log_probs.new_full((len(self._weight), log_probs.shape[-1]), math.nan)
        fresh = self._kept[facts, 0].isnan()
        self._kept[facts[fresh]] = log_probs.detach()[fresh]
        return self._kept[facts]


@torch.no_grad()
def _clamp(masters: list[nn.Parameter], bounds: Tensor) -> None:
    """Shortens each vector, (sites, width), to its bounds, (facts, sites, 1)."""
    for master, bound in zip(masters, bounds, strict=True):
        length = master.norm(dim=-1, keepdim=True)
        master.copy_(torch.where(length > bound, master * (bound / length), master))
