"""The vectors of a second moment, token by token: the keys that a linear layer reads, or other vectors there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.models import PaddedBatch, Point, captured
from palimpsest.models.sites import experts_per_token, features, is_experts, number_of_experts
from palimpsest.statistics.cache import points_identity

if TYPE_CHECKING:
    from palimpsest.models import EditableModel


class Found(NamedTuple):
    """The vectors of one batch at a point, (tokens, width), and what to call each of them in a message."""

    vectors: Tensor
    where: Callable[[int], str]


class Vectors(Protocol):
    """Vectors at points of a model that reads texts. Add a class of this form for a second moment of something else."""

    side: Literal["input", "output"]
    """The side of a linear layer that they are at."""

    def width(self, model: EditableModel, point: Point) -> int:
        """Their length. Raises `ConfigError` for a point without them."""

    def blocks(self, model: EditableModel, point: Point) -> int:
        """Of how many blocks on its diagonal their second moment is kept; 1 for all of it."""

    def dimensions(self, model: EditableModel, point: Point) -> int:
        """How many dimensions they count as where it is reckoned how many tokens are read."""

    def determined_by(self, model: EditableModel, point: Point) -> dict[str, Any]:
        """Their kind and everything of the model that determines them, JSON-ready."""

    def tokens_per_batch(self, model: EditableModel, most: int) -> int:
        """Tokens of one pass, padding included; `most` where a forward pass is all that is needed."""

    def read(
        self, model: EditableModel, rows: Sequence[tuple[int, ...]], points: Sequence[Point]
    ) -> Mapping[Point, Found]:
        """Those of some rows of token ids, one for every token that counts."""


class Keys:
    """The inputs of linear layers; a pass ends at the deepest of them."""

    side: Literal["input", "output"] = "input"

    def width(self, model: EditableModel, point: Point) -> int:
        """See `Vectors`. Raises `ConfigError` for a point without keys, or of a decoder with an encoder."""
        module = model.sites.module(point.site, point.layer)
        if model.is_encoder_decoder and model.sites.locate(point.site)[0] == "decoder":
            raise ConfigError(
                "The decoder of an encoder-decoder reads answers, and a plain text has none.",
                expected="a site of the encoder: encoder.mlp.down",
                found=point.site,
            )
        if point.side != "input" or not (model.sites.is_linear(module) or is_experts(module)):
            raise ConfigError(
                "There are no keys at this point.",
                expected="the input of a linear site: mlp.down, attn.out, ...",
                found=f"the {point.side} of {point.site}",
            )
        return features(module)[1]

    def blocks(self, model: EditableModel, point: Point) -> int:
        """One for every expert of a mixture; see `solve.blocks`."""
        return number_of_experts(model.sites.module(point.site, point.layer))

    def dimensions(self, model: EditableModel, point: Point) -> int:
        """A key's; of experts that over the number of them that a token is sent to.

        So each expert reads, on average, as many keys for every dimension of its own as any other layer.
        """
        width, blocks = self.width(model, point), self.blocks(model, point)
        return width if blocks == 1 else -(-width // experts_per_token(model.module.config))

    def determined_by(self, model: EditableModel, point: Point) -> dict[str, Any]:
        """See `Vectors`."""
        return points_identity(model, point)

    def tokens_per_batch(self, model: EditableModel, most: int) -> int:
        """See `Vectors`."""
        del model
        return most

    def read(
        self, model: EditableModel, rows: Sequence[tuple[int, ...]], points: Sequence[Point]
    ) -> Mapping[Point, Found]:
        """See `Vectors`."""
        batch = model.batch(rows)
        with captured(model.sites, list(points), stops=True) as found:
            model.forward(batch)
        places = batch.attention_mask.nonzero()
        return {
            point: Found(found.pop(point)[places[:, 0], places[:, 1]], _namer(model, point, batch, places))
            for point in points
        }


KEYS = Keys()


def _namer(model: EditableModel, point: Point, batch: PaddedBatch, places: Tensor) -> Callable[[int], str]:
    """From a row of keys to where it comes from, for a message."""

    def name(row: int) -> str:
        line, column = places[row].tolist()
        ids = batch.input_ids[line, max(0, column - 5) : column + 1].tolist()
        token, around = model.tokenizer.decode(ids[-1:]), model.tokenizer.decode(ids)
        return f"site {point.site}, layer {point.layer}, token {token!r} at the end of {around!r}"

    return name
