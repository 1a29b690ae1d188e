"""Our search: Gauss-Newton steps to a wanted log-odds of the answer, three or so passes instead of twenty.

For each row (a context with prompt and answer), s = log P(answer), o = s - log(1 - P) and its Jacobian
J = (ds / d delta) / (1 - P). With the rows of one fact stacked,

    step = J^T (J J^T + damping mean(diag J J^T) I)^-1 max(log_odds - o, 0),    |step| <= radius

The radius starts at `max_step` times the length of what delta is added to, and is halved when the likelihood falls. The
Jacobians need one backward pass for all rows of all facts, since no row depends on another's vector. Facts about one
subject have keys that are much alike, so that a weight can only give them one vector: `joint` finds it for all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.locating.target_vector.chunk import Chunk
from palimpsest.locating.target_vector.log import Log
from palimpsest.locating.target_vector.options import TargetOptions


def search_gauss_newton(chunk: Chunk, options: TargetOptions, log: Log) -> Tensor:
    """The vectors, (facts, sites, width): of each fact the one with the highest likelihood that was seen."""
    counts = chunk.num_rows()
    num_ranks = int(counts.max())
    radius = options.max_step * chunk.scale.norm(dim=-1)
    deltas = best = torch.zeros_like(chunk.initial)
    lowest = last = radius.new_full((chunk.num_facts,), torch.inf)
    for step in range(options.steps):
        log_probs, per_token, slopes = linearise(chunk, deltas, num_ranks)
        nll = -log_probs.sum(1) / counts
        log.record(nll, -per_token.sum(1) / counts, slopes)
        is_better = log.active & (nll < lowest)
        best = torch.where(is_better[:, None, None], deltas, best)
        lowest = torch.where(is_better, nll, lowest)
        log.stop(nll < options.stop_loss, "reached")
        if log.is_done or step == options.steps - 1:
            break
        radius = torch.where(nll > last, radius / 2, radius)
        last = nll
        moves = steps_to(options.log_odds, log_probs, slopes, counts=counts, damping=options.damping, radius=radius)
        deltas = torch.where(log.active[:, None, None], deltas + moves.view_as(deltas), deltas)
        chunk = chunk.narrowed(log.active)
    return best


def linearise(chunk: Chunk, deltas: Tensor, num_ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the answers and their derivatives; zeros where the chunk holds no row: they ask for nothing.

    Returns (facts, ranks) for the whole answers, the same per token, and (facts, ranks, sites * width).
    """
    count = chunk.num_facts
    log_probs = deltas.new_zeros(count, num_ranks)
    per_token = torch.zeros_like(log_probs)
    slopes = deltas.new_zeros(count, num_ranks, deltas[0].numel())
    for group in chunk.rewriting:
        vectors = deltas[group.facts].detach().requires_grad_()
        logits = group.logits(vectors)
        picked = logits.gather(-1, group.labels[:, None])[:, 0] - logits.logsumexp(-1)
        per_row = group.per_row(picked)
        (slope,) = torch.autograd.grad(per_row.sum(), vectors)
        place = (group.facts, group.ranks)
        log_probs[place] = per_row.detach()
        per_token[place] = per_row.detach() / group.lengths()
        slopes[place] = slope.flatten(1)
    return log_probs, per_token, slopes


def steps_to(
    log_odds: float, log_probs: Tensor, slopes: Tensor, *, counts: Tensor, damping: float, radius: Tensor
) -> Tensor:
    """One step of every fact, the same whatever other facts are there.

    Arguments:
        log_odds: what to aim at in every row; rows beyond it ask for nothing.
        log_probs: (facts, rows), s.
        slopes: (facts, rows, width), ds / d delta.
        counts: (facts,), how many of the rows are the fact's; behind these there are zeros.
        damping: relative to the mean of the diagonal of J J^T; a single row needs none.
        radius: (facts,), largest length of a step.

    Returns (facts, width).
    """
    log_probs, slopes = log_probs.double(), slopes.double()
    # A row whose answer is certain has no log-odds in floating point; this far beyond any aim it asks for nothing.
    rest = (-torch.expm1(log_probs)).clamp(min=torch.finfo(torch.float64).eps)
    jacobian = slopes / rest[..., None]
    wanted = (log_odds - (log_probs - rest.log())).clamp(min=0)
    # In units of J's own size; where nothing can be moved, a step of zero instead of zero by zero.
    size = (jacobian.square().sum((-1, -2)) / counts).sqrt()[:, None]
    is_flat = size == 0
    size = size.masked_fill(is_flat, 1.0)
    unit = jacobian / size[..., None]
    is_row = torch.arange(log_probs.shape[1], device=counts.device) < counts[:, None]
    own = torch.where(counts > 1, damping, 0.0)[:, None].double()
    square = unit @ unit.mT + torch.diag_embed(torch.where(is_row & ~is_flat, own, 1.0))
    steps: Tensor = (unit.mT @ torch.linalg.solve(square, wanted[..., None]))[..., 0] / size
    lengths = steps.norm(dim=-1)
    shrink = torch.where(lengths > radius, radius / lengths, torch.ones_like(lengths))
    shortened: Tensor = steps * shrink[:, None]
    return shortened.to(radius.dtype)
