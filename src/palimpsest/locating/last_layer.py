"""The end of a decoder, from its last MLP on: all that runs when something is added to what that MLP writes.

No attention follows, so a vector added at one place changes only the prediction at that place. What the MLP reads
there and what its block hands on are computed once; then a step is the final norm and the head in these places.

    logits = factor * head(norm(h + added))

That form is checked against the model's own logits. Where it does not hold (a norm behind the MLP, capped logits) a
step of one fact runs the last block too, over the answer's places only; of many facts together, and in an
encoder-decoder, it is a pass of the whole model. The result is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from palimpsest.models import (
    SAME_WITHIN,
    EditableModel,
    Encoded,
    Point,
    Suffix,
    by_length,
    captured,
    intervened,
    prepare_suffix,
)


@dataclass(frozen=True)
class AnswerPlaces:
    """The places that predict the answers of some facts, in the order of the facts.

    Arguments:
        model: the model.
        encoded: the facts.
        facts: (places,), index of the fact.
        labels: (places,), the token to be predicted.
        queries: (places, width), what the last MLP reads there, in float32.
        handed: (places, width), what the last block hands on, in float32.
        factor: what stands between the head and the logits; `None` where more than that does.
        suffix: of one fact, the last block over its places, where the factor is `None`.
    """

    model: EditableModel
    encoded: tuple[Encoded, ...]
    facts: Tensor
    labels: Tensor
    queries: Tensor
    handed: Tensor
    factor: float | None
    suffix: Suffix | None = None

    def logits(self, added: Tensor, at: Tensor | None = None) -> Tensor:
        """Logits, (places, vocabulary), in float32, with `added` (places, width) on top of what the MLP writes.

        Arguments:
            added: what is added in each place; differentiable.
            at: (some places,), the places asked for; all of them when left out. Not for whole passes.
        """
        if self.factor is None:
            return self._whole(added) if self.suffix is None else self._from_last_block(self.suffix, added)
        handed = self.handed if at is None else self.handed[at]
        return _logits(self.model, handed + added) * self.factor

    def of_fact(self, index: int) -> AnswerPlaces:
        """The places of one fact."""
        at, row = (self.facts == index).nonzero()[:, 0], self.encoded[index]
        suffix = None
        if self.factor is None and not self.model.is_encoder_decoder:
            ids, first = (*row.prompt_ids, *row.target_ids), len(row.prompt_ids) - 1
            suffix, _ = prepare_suffix(self.model, [ids], [first], self.model.num_layers - 1)
        return replace(
            self,
            encoded=(row,),
            facts=torch.zeros_like(self.facts[at]),
            labels=self.labels[at],
            queries=self.queries[at],
            handed=self.handed[at],
            suffix=suffix,
        )

    def _whole(self, added: Tensor) -> Tensor:
        batch = self.model.batch(self.encoded)
        rows, columns, _ = self.model.answer_places(self.encoded, batch)
        with self._adding(added, rows, columns):
            return self.model.logits_at(batch, rows, columns).float()

    def _from_last_block(self, suffix: Suffix, added: Tensor) -> Tensor:
        reach = torch.arange(len(added), device=suffix.columns.device)
        rows = torch.zeros_like(reach)
        with self._adding(added, rows, suffix.first_columns + reach):
            return suffix.logits(rows, suffix.columns + reach).float()

    def _adding(self, added: Tensor, rows: Tensor, columns: Tensor) -> AbstractContextManager[None]:
        """Inside the block `added` lies on what the last MLP writes at these places of the tensors that flow."""

        def put(written: Tensor) -> Tensor:
            at = (rows.to(written.device), columns.to(written.device))
            return written.index_put(at, added.to(written.device, written.dtype), accumulate=True)

        return intervened(self.model.sites, {Point("mlp.down", self.model.num_layers - 1): put})


@torch.no_grad()
def answer_places(model: EditableModel, encoded: Sequence[Encoded], *, forward_batch_size: int = 64) -> AnswerPlaces:
    """One pass over the facts, prompts with their answers, under whatever patches are on the model."""
    last = model.num_layers - 1
    read, block = Point("mlp.up", last, "input"), Point("resid", last)
    parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    is_exact, factors = model.sites.architecture.mlp_writes_residual, []
    for chunk in by_length([len(row) for row in encoded], forward_batch_size):
        batch = model.batch([encoded[index] for index in chunk])
        rows, columns, labels = model.answer_places([encoded[index] for index in chunk], batch)
        with captured(model.sites, [read, block]) as found:
            true = model.logits_at(batch, rows, columns)
        queries, handed = (found[point][rows, columns].to(model.device).float() for point in (read, block))
        if is_exact:
            factors.append(_factor(model, handed, true))
        for place, index in enumerate(chunk):
            own = rows == place
            parts[index] = (queries[own], handed[own], labels[own])
    ordered = [parts[index] for index in range(len(encoded))]
    facts = torch.tensor([index for index, row in enumerate(encoded) for _ in row.target_ids], device=model.device)
    queries, handed, labels = (torch.cat(column) for column in zip(*ordered, strict=True))
    agreed = factors[0] if factors and None not in factors else None
    return AnswerPlaces(model, tuple(encoded), facts, labels, queries, handed, agreed)


@torch.no_grad()
def queries_of(
    model: EditableModel, rows: Sequence[Encoded], *, skips_first: bool, layer: int | None = None
) -> list[Tensor]:
    """Returns the inputs of a decoder's MLP, (tokens, width) in float32 for each row, without padding.

    Arguments:
        rows: texts, or prompts with their answers.
        skips_first: whether the first token of a row is left out.
        layer: of which layer; left out, the last.
    """
    point = Point("mlp.up", model.num_layers - 1 if layer is None else layer, "input")
    kept: dict[int, Tensor] = {}
    for chunk in by_length([len(row) for row in rows], 64):
        batch = model.batch([rows[index] for index in chunk])
        with captured(model.sites, [point], stops=True) as found:
            model.forward(batch)
        mask = (batch.decoder or batch).attention_mask.bool()
        for place, index in enumerate(chunk):
            own = found[point][place][mask[place].to(found[point].device)]
            kept[index] = own[1:].to(model.device).float() if skips_first else own.to(model.device).float()
    return [kept[index] for index in range(len(rows))]


def _logits(model: EditableModel, handed: Tensor) -> Tensor:
    """Head(norm(h)), in float32; each computes in the model's own dtype."""
    head: nn.Module = model.sites.module("unembed")
    norm = _final_norm(model)
    weight = next(head.parameters())
    hidden = handed.to(weight.device, weight.dtype)
    logits: Tensor = head(hidden if norm is None else norm(hidden))
    return logits.to(handed.device).float()


def _final_norm(model: EditableModel) -> nn.Module | None:
    has_norm = model.sites.architecture.stacks["decoder"].final_norm is not None
    return model.sites.module("final_norm") if has_norm else None


def _factor(model: EditableModel, handed: Tensor, true: Tensor) -> float | None:
    """The number c with logits = c * head(norm(h)), if there is one."""
    try:
        ours, wanted = _logits(model, handed), true.float()
    except (RuntimeError, TypeError):
        # Some heads read another width, behind a projection of their own.
        return None
    factor = float((ours * wanted).sum() / ours.square().sum())
    # A head alone gives exactly one; rounding must not turn that into something else.
    factor = 1.0 if abs(factor - 1) < 1e-3 else factor
    limit = SAME_WITHIN[handed_dtype(model)] * float(wanted.abs().max())
    return factor if float((factor * ours - wanted).abs().max()) <= limit else None


def handed_dtype(model: EditableModel) -> torch.dtype:
    """Returns the dtype that the model computes in."""
    dtype: torch.dtype = next(model.sites.module("unembed").parameters()).dtype
    return dtype
