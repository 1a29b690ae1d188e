"""What torch's fused attention is called with, for those who stand in for it."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class AttentionCall(NamedTuple):
    """The arguments of `scaled_dot_product_attention`, whether they are given by place or by name.

    Arguments:
        query: (..., heads, tokens, width).
        key: (..., key heads, keys, width).
        value: (..., key heads, keys, width of a value).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def factor(self) -> float:
        """Of the products of queries and keys."""
        return 1 / math.sqrt(self.query.shape[-1]) if self.scale is None else self.scale

    def fused(self) -> Tensor:
        """Returns what torch makes of it."""
        return scaled_dot_product_attention(*self[:6], scale=self.scale, enable_gqa=self.enable_gqa)
