"""Passes in which a value takes the place of what a layer writes at the end of a prompt, or at all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
