"""Passes in which a value takes the place of what a layer writes at the end of a prompt, or at all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from palimpsest.config import Config
from palimpsest.models import (
    EditableModel,
    Encoded,
    PaddedBatch,
    Point,
    Suffix,
    captured,
    intervened,
    leads,
    prepare_suffix,
)
from palimpsest.patches import prompt_columns
from palimpsest.training.divergence import require_finite


class ValueOptions(Config):
    """How a value that says an answer is found."""

    start: Literal["random", "written"] = "written"
    """What a value starts from: uniform numbers, as published, or what the layer writes."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Step size of Adam; 1 as published. Left out, `step` says it in units of the residual stream."""
    step: float = Field(default=0.05, gt=0)
    """If there is no `learning_rate`: the first step's, as a share of the mean size of an entry of the residual
    stream."""
    growth: float = Field(default=1.1, ge=1)
    """If there is no `learning_rate`: factor by which each step is larger than the one before."""
    steps: int = Field(default=50, ge=1)
    """Steps, at most; 100 as published."""
    stop_loss: float | None = Field(default=None, ge=0)
    """A value is done once its loss is below this. 0: never, as published. Left out, `stop_margin` decides."""
    stop_margin: float = Field(default=2.0, ge=0)
    """If there is no `stop_loss`: a value is done once each token of its answer is more probable than any other
    token, by this many nats."""
    forward_batch_size: int = Field(default=64, ge=1)
    """Facts in one pass; smaller needs less memory and gives the same values."""


@dataclass(frozen=True)
class ValuePasses:
    """Facts whose answers are asked for with values put in.

    Arguments:
        model: the model.
        passes: the rows from the layer and the prompt's last token on; or whole rows.
        point: the layer's output.
        puts: (rows, tokens), where the value is put in the tensors that flow during a pass.
        places: row and column of each place that predicts an answer token, and the token: (places,) each.
        queries: (rows, in), what the layer reads at the prompt's last token, in float32.
        written: (rows, out), what it writes there, in float32.
        scales: (rows, 1), mean size of an entry of what a value is measured against at the prompt's last token: of the
            residual stream behind the layer's block, or, where a norm follows the MLP, of what the layer writes.
    """

    model: EditableModel
    passes: Suffix | PaddedBatch
    point: Point
    puts: tuple[Tensor, Tensor]
    places: tuple[Tensor, Tensor, Tensor]
    queries: Tensor
    written: Tensor
    scales: Tensor

    def losses(self, values: Tensor) -> Tensor:
        """(rows,), mean negative log-likelihood of each answer's tokens, for values (rows, out); differentiable."""
        return self.losses_and_margins(values)[0]

    def losses_and_margins(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """`losses`, and (rows,) by how many nats each answer's least certain token leads all other tokens."""
        rows, columns, labels = self.places

        def put(tensor: Tensor) -> Tensor:
            at, tokens = (index.to(tensor.device) for index in self.puts)
            return tensor.index_put((at, tokens), values[at].to(tensor.device, tensor.dtype))

        with intervened(self.model.sites, {self.point: put}):
            if isinstance(self.passes, Suffix):
                logits = self.passes.logits(rows, columns)
            else:
                logits = self.model.logits_at(self.passes, rows, columns)
        tokens = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        sums, counts = tokens.new_zeros(len(self.queries)).index_add(0, rows, tokens), torch.bincount(rows)
        with torch.no_grad():
            own = torch.split(leads(logits.float(), labels), counts.tolist())
        return sums / counts, torch.stack([one.min() for one in own])


@torch.no_grad()
def value_passes(
    model: EditableModel, encoded: Sequence[Encoded], site: str, layer: int, replacement: str
) -> ValuePasses:
    """One pass over the facts, prompts with their answers, and what later ones need from it."""
    reads, writes = Point(site, layer, "input"), Point(site, layer)
    stack = "encoder." if model.sites.locate(site)[0] == "encoder" else ""
    stream = Point(f"{stack}resid", layer) if model.sites.architecture.mlp_writes_residual else writes
    if not model.is_encoder_decoder and replacement == "last":
        rows = [row.prompt_ids + row.target_ids[:-1] for row in encoded]
        ends = [len(row.prompt_ids) - 1 for row in encoded]
        suffix, found = prepare_suffix(model, rows, ends, layer, points=[reads, writes, stream])
        device = suffix.columns.device
        triples = [
            (index, end + offset, label)
            for index, (row, end) in enumerate(zip(encoded, ends, strict=True))
            for offset, label in enumerate(row.target_ids)
        ]
        at, columns, labels = torch.tensor(triples, device=device).unbind(1)
        puts = (torch.arange(len(rows), device=device), suffix.first_columns)
        queries, written, sizes = (found[point].float() for point in (reads, writes, stream))
        return ValuePasses(
            model, suffix, writes, puts, (at, columns, labels), queries, written, sizes.abs().mean(-1, keepdim=True)
        )
    batch = model.batch(encoded)
    with captured(model.sites, [reads, writes, stream]) as seen:
        model.forward(batch)
    with model.reads(batch):
        prompts = prompt_columns(model, model.sites.locate(site)[0], seen[reads])
    every = torch.arange(len(encoded), device=prompts.last.device)
    chosen, columns = prompts.chosen(replacement).nonzero(as_tuple=True)
    queries, written, sizes = (seen[point][every, prompts.last].float() for point in (reads, writes, stream))
    places = model.answer_places(encoded, batch)
    scales = sizes.abs().mean(-1, keepdim=True)
    return ValuePasses(model, batch, writes, (chosen, columns), places, queries, written, scales)


def find_values(passes: ValuePasses, config: ValueOptions) -> tuple[Tensor, list[list[float]]]:
    """(facts, out) values that say the answers, and the loss of each fact at each step."""
    start = torch.rand(passes.written.shape).to(passes.written) if config.start == "random" else passes.written
    is_absolute = config.learning_rate is not None
    # Adam's steps have one size for all facts, so that in units of each fact's own stream its coordinates are trained.
    trained = nn.Parameter(start.clone() if is_absolute else torch.zeros_like(start))
    adam = torch.optim.Adam([trained], lr=config.learning_rate or config.step)
    found, is_done = start.clone(), torch.zeros(len(start), dtype=torch.bool)
    losses: list[list[float]] = [[] for _ in start]
    for step in range(config.steps):
        adam.zero_grad()
        values = trained if is_absolute else start + passes.scales * trained
        per_fact, margins = passes.losses_and_margins(values)
        require_finite(per_fact, step, config.steps, config.learning_rate or config.step)
        for curve, loss in zip(losses, per_fact.tolist(), strict=True):
            curve.append(loss)
        is_new = ~is_done.to(found.device)
        found[is_new] = values.detach()[is_new]
        is_done |= _done(per_fact.detach(), margins, config).cpu()
        if is_done.all():
            return found, losses
        per_fact.sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
        for group in adam.param_groups:
            group["lr"] *= 1 if is_absolute else config.growth
    last = trained.detach() if is_absolute else start + passes.scales * trained.detach()
    found[~is_done.to(found.device)] = last[~is_done.to(found.device)]
    return found, losses


def _done(losses: Tensor, margins: Tensor, config: ValueOptions) -> Tensor:
    return margins >= config.stop_margin if config.stop_loss is None else losses < config.stop_loss
