"""Gradients of a text's loss at what linear layers write: the vectors of K-FAC's second factor, B = E[g g^T]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.models import EditableModel, Encoded, Point
from palimpsest.models.sites import features
from palimpsest.statistics import Found, whole_identity
from palimpsest.training.gradient_factors import WeightPlace, gradient_factors

_LOGITS_AT_ONCE = 2**26
_LEAST_AT_ONCE = 256


class OutputGradients:
    """Gradients of a text's loss at what linear layers write: one for every token that predicts another."""

    side: Literal["input", "output"] = "output"

    def width(self, model: EditableModel, point: Point) -> int:
        """See `statistics.Vectors`. Raises `ConfigError` for a model or a point without them."""
        module = model.sites.module(point.site, point.layer)
        if model.is_encoder_decoder:
            raise ConfigError(
                "A plain text has no loss in an encoder-decoder, so it has no curvature.",
                expected="a decoder-only model",
                found=f"an encoder-decoder, {model.name!r}",
                where="option project",
                remedy="set project = 'inputs', which an encoder's sites can have, or leave it out",
            )
        if point.side != "output" or not model.sites.is_linear(module):
            raise ConfigError(
                "There are no gradients of a linear layer at this point.",
                expected="the output of a linear site: mlp.down, attn.out, ...",
                found=f"the {point.side} of {point.site}",
            )
        return features(module)[0]

    def blocks(self, model: EditableModel, point: Point) -> int:
        """See `Vectors`: kept whole."""
        del model, point
        return 1

    def dimensions(self, model: EditableModel, point: Point) -> int:
        """See `Vectors`: all."""
        return self.width(model, point)

    def determined_by(self, model: EditableModel, point: Point) -> dict[str, Any]:
        """See `statistics.Vectors`: all weights count, for the loss is behind all of them."""
        return {"kind": "gradients", "format": 1, "site": point.site, "layer": point.layer, **whole_identity(model)}

    def tokens_per_batch(self, model: EditableModel, most: int) -> int:
        """See `statistics.Vectors`: every token has logits, and these a gradient."""
        vocabulary = int(model.module.config.get_text_config().vocab_size)
        return min(most, max(_LEAST_AT_ONCE, _LOGITS_AT_ONCE // vocabulary))

    def read(
        self, model: EditableModel, rows: Sequence[tuple[int, ...]], points: Sequence[Point]
    ) -> Mapping[Point, Found]:
        """See `statistics.Vectors`."""
        factors = text_factors(model, rows, [_place(model, point) for point in points])
        found = {}
        for point in points:
            _, gradients = factors[_place(model, point).name]
            found[point] = Found(
                gradients, f"the gradient at site {point.site}, layer {point.layer}, token {{}}".format
            )
        return found


GRADIENTS = OutputGradients()


def _place(model: EditableModel, point: Point) -> WeightPlace:
    layer = 0 if point.layer is None else point.layer
    return WeightPlace(point.site, layer, model.sites.parameter_name(point.site, layer))


def text_factors(
    model: EditableModel, rows: Sequence[tuple[int, ...]], where: Sequence[WeightPlace]
) -> dict[str, tuple[Tensor, Tensor]]:
    """(n, in) and (n, out) by the weight's name: u and g of the tokens of some texts that predict another.

    The loss is a sum over tokens, so that a token's gradient does not depend on how long its text is.
    """
    texts = [Encoded(row[:1], row[1:]) for row in rows if len(row) > 1]
    if not texts:
        widths = {one.name: features(model.sites.module(one.site, one.layer)) for one in where}
        return {name: (torch.zeros(0, into), torch.zeros(0, out)) for name, (out, into) in widths.items()}
    counts = torch.tensor([len(one.target_ids) for one in texts], device=model.device)[:, None, None]
    factors = gradient_factors(model, texts, where)
    return {
        name: (one.inputs[one.mask], (one.gradients * counts.to(one.gradients.device))[one.mask])
        for name, one in factors.items()
    }
