"""A row of the site table: where a family keeps its parts, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """A module, or one slice of its output features where it fuses several projections.

    The output is `groups` runs of equal length, one after another, and each run holds the slices in order. So three
    equal thirds have one group; queries, keys and values that alternate head by head have one group a head.

    Arguments:
        path: dotted path; the empty string is the block itself.
        index: which slice, from 0.
        of: how many equal slices the module fuses; 1 for a module of its own.
        shares: for slices of unequal size what their sizes are in proportion to, numbers or names of config fields;
            takes the place of `of`.
        groups: how often the slices repeat, a number or the name of a config field.
        is_experts: whether the module holds the experts of a mixture, whose down-projections side by side are the
            matrix; see `sites.experts`.
        otherwise: path in those blocks of a mixture that have an MLP instead of experts.
    """

    path: str
    index: int = 0
    of: int = 1
    shares: tuple[int | str, ...] = ()
    groups: int | str = 1
    is_experts: bool = False
    otherwise: str | None = None

    @property
    def is_slice(self) -> bool:
        """Whether the module holds more than this part."""
        return self.of > 1 or bool(self.shares)


@dataclass(frozen=True)
class Stack:
    """One stack of blocks, an encoder or a decoder; the fields are those of `Architecture`."""

    blocks: str
    embed: str
    final_norm: str | None
    sites: Mapping[str, Part]


@dataclass(frozen=True)
class Architecture:
    """One row of the site table. Of an encoder-decoder its fields say where the decoder keeps its parts.

    Arguments:
        name: the family's name.
        model_types: values of `config.model_type` that this row is for.
        blocks: path of the list of blocks.
        embed: path of the token embedding.
        final_norm: path of the norm before the head; `None` where the last block's own norm is the last.
        unembed: path of the head.
        sites: site name to its place in a block. A site that the family does not have as a module is left out.
        when: config fields and the values they must have for this row; for model types of several layouts.
        mlp_writes_residual: whether what `mlp.down` writes is added to the residual stream as it is. False where a
            norm or a factor stands in between: there, a change of the MLP's output is not the same change of the
            block's.
        is_mixture: whether a router sends each token to a few of a layer's experts, so that there are no `mlp.up` and
            `mlp.gate`, and `mlp.down` is a `Part` that says `is_experts`, or is left out.
        linear_types: qualified names of subclasses of `nn.Linear` that hold a plain weight, to be taken as one. Other
            subclasses are refused: most of them are quantised layers or adapters.
        encoder: the encoder of an encoder-decoder; `None` for a decoder-only model.

    To use a family of your own, pass such a row to `palimpsest.load(model, architecture=...)`, or register it
    through the entry-point group `palimpsest.architectures`.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    embed: str
    final_norm: str | None
    unembed: str
    sites: Mapping[str, Part]
    when: Mapping[str, object] = field(default_factory=dict)
    mlp_writes_residual: bool = True
    is_mixture: bool = False
    linear_types: tuple[str, ...] = ()
    encoder: Stack | None = None

    @property
    def stacks(self) -> dict[str, Stack]:
        """`encoder`, if there is one, and `decoder`."""
        encoder = {} if self.encoder is None else {"encoder": self.encoder}
        return {**encoder, "decoder": Stack(self.blocks, self.embed, self.final_norm, self.sites)}


SITE_NAMES = (
    "mlp.up",
    "mlp.gate",
    "mlp.down",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.qkv",
    "attn.out",
    "cross.q",
    "cross.k",
    "cross.v",
    "cross.out",
    "mlp",
    "attn",
    "cross",
    "resid",
)

MLP_DOWN = "mlp.down"
"""The linear layer that facts are written into: its inputs are the keys, what it writes are the values."""
