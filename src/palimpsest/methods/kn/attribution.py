"""Integrated gradients (Sundararajan et al., arXiv:1703.01365): what each neuron of a layer has to do with an answer.

With P(w) the probability of an answer's token when the activations that multiply an MLP's down-projection, at the place
that predicts the token, are w:

    Attr_i = w_i / m * sum over k = 1..m of  dP(a_k w) / dw_i,     a_k = (k - 1/2) / m

All neurons of a layer are scaled together, layers one at a time. With midpoints the error of the sum falls with 1/m^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from palimpsest.errors import ModelError
from palimpsest.models import (
    EditableModel,
    Encoded,
    Point,
    Suffix,
    captured,
    frozen_parameters,
    intervened,
    prepare_suffix,
)
from palimpsest.models.sites import MLP_DOWN


@dataclass(frozen=True)
class Attribution:
    """The attribution of an answer to the neurons of some layers.

    Arguments:
        scores: (layers, neurons), Attr; for an answer of several tokens the mean over them.
        activations: (layers, neurons), w; likewise.
    """

    scores: Tensor
    activations: Tensor


@dataclass(frozen=True)
class WholePasses:
    """Rows that are run whole each time: what `Suffix` is to a decoder, for an encoder-decoder.

    Arguments:
        model: the model.
        rows: each with a target; its last token is the one to be predicted.
        columns: (rows,), where the decoder predicts it.
    """

    model: EditableModel
    rows: tuple[Encoded, ...]
    columns: Tensor

    @property
    def first_columns(self) -> Tensor:
        """The same: nothing is left out in front."""
        return self.columns

    def select(self, rows: Tensor) -> WholePasses:
        """The same for some of the rows, (rows,) of indices."""
        return replace(self, rows=tuple(self.rows[row] for row in rows.tolist()), columns=self.columns[rows])

    def logits(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits at chosen places, (places, vocabulary)."""
        return self.model.logits_at(self.model.batch(self.rows), rows, columns)


def attribute(
    model: EditableModel, prompt: str, answer: str, layers: Sequence[int], steps: int, forward_batch_size: int
) -> Attribution:
    """Integrated gradients for an answer after a prompt.

    An answer of several tokens is the mean over its tokens, each after the prompt and the tokens before it, with the
    activations at the place that predicts it.

    Arguments:
        layers: the decoder's layers to look at.
        steps: m.
        forward_batch_size: rows of one forward pass.

    Raises `ModelError` when a gradient is not finite.
    """
    encoded = model.encode(prompt, answer)
    labels = torch.tensor(encoded.target_ids, device=model.device)
    scores, activations = [], []
    from_cache: bool | None = None
    for layer in layers:
        point = Point(MLP_DOWN, layer, "input")
        passes, states = _passes(model, encoded, point, from_cache)
        from_cache = passes.prefix is not None if isinstance(passes, Suffix) else None
        gradients = mean_gradients(passes, point, states, labels, steps, forward_batch_size)
        scores.append((states * gradients).mean(0))
        activations.append(states.mean(0))
    if not all(one.isfinite().all() for one in scores):
        raise ModelError(
            "The model's probabilities have no finite gradient.",
            expected="finite attributions",
            found="NaN or infinity",
            where=f"prompt {prompt!r}",
            remedy="load the model in float32",
        )
    return Attribution(torch.stack(scores).cpu(), torch.stack(activations).cpu())


def mean_gradients(
    passes: Suffix | WholePasses, point: Point, states: Tensor, labels: Tensor, steps: int, forward_batch_size: int
) -> Tensor:
    """(answer tokens, neurons), dP/dw averaged over the way from zero to the activations, which are of that shape."""
    count, device = len(labels), labels.device
    total = torch.zeros_like(states)
    scales = (torch.arange(steps, device=device) + 0.5) / steps
    every_row, every_scale = torch.arange(count, device=device).repeat(steps), scales.repeat_interleave(count)
    with frozen_parameters(passes.model.module):
        for start in range(0, count * steps, forward_batch_size):
            chunk = slice(start, start + forward_batch_size)
            rows, scale = every_row[chunk], every_scale[chunk]
            scaled = (scale[:, None] * states[rows]).requires_grad_()
            probabilities = answer_probabilities(passes.select(rows), point, scaled, labels[rows])
            (gradients,) = torch.autograd.grad(probabilities.sum(), scaled)
            total.index_add_(0, rows, gradients)
    return total / steps


def answer_probabilities(passes: Suffix | WholePasses, point: Point, states: Tensor, labels: Tensor) -> Tensor:
    """(rows,), P(w): the probability of each row's label when its activations are the given ones."""
    rows = torch.arange(len(labels), device=labels.device)

    def put(tensor: Tensor) -> Tensor:
        return tensor.index_put((rows, passes.first_columns), states.to(tensor.dtype))

    with intervened(passes.model.sites, {point: put}):
        logits = passes.logits(rows, passes.columns)
    return logits.float().softmax(-1)[rows, labels]


@torch.no_grad()
def _passes(
    model: EditableModel, encoded: Encoded, point: Point, from_cache: bool | None
) -> tuple[Suffix | WholePasses, Tensor]:
    """A row for every token of the answer, to be repeated from the point on; and the activations, (tokens, neurons)."""
    prompt, target = encoded.prompt_ids, encoded.target_ids
    if not model.is_encoder_decoder:
        rows = [prompt + target[:count] for count in range(len(target))]
        last = [len(row) - 1 for row in rows]
        suffix, states = prepare_suffix(model, rows, last, point.layer or 0, points=[point], from_cache=from_cache)
        return suffix, states[point].float()
    with captured(model.sites, [point]) as found:
        model.forward(model.batch([encoded]))
    whole = tuple(Encoded(prompt, target[: count + 1]) for count in range(len(target)))
    # The decoder predicts the first token of the answer in its first column, and so on.
    return WholePasses(model, whole, torch.arange(len(target), device=model.device)), found[point][0].float()
