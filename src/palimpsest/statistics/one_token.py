"""Attention over one new token of many rows at a time, by plain products.

The fused kernels for a CPU are made for many new tokens. With one, SmolLM2's 256 rows behind 48 tokens take them 12 ms
a layer in bfloat16, and plain products 1: heads that share their keys are the rows of one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class OneTokenAttention(TorchFunctionMode):
    """Inside the block attention over one new token a row on a CPU is `attended`'s, where nothing is masked."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls the function, or what stands for it here."""
        del types
        given = kwargs or {}
        if func is scaled_dot_product_attention and len(args) >= 3 and _is_plain(*args, **given):
            query, key, value = args[:3]
            return attended(query, key, value, given.get("scale"))
        return func(*args, **given)


def attended(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Attention of one token a row to all of its keys, (rows, heads, 1, width of a value).

    Arguments:
        query: (rows, heads, 1, width).
        key: (rows, key heads, tokens, width); each serves as many heads that stand together.
        value: (rows, key heads, tokens, width of a value).
        scale: of the products; left out, one over the root of the width.
    """
    rows, heads, _, width = query.shape
    shared = key.shape[1]
    products = torch.bmm(
        query.reshape(rows * shared, heads // shared, width), key.flatten(0, 1).transpose(1, 2)
    ).float()
    weights = (products * (width**-0.5 if scale is None else scale)).softmax(-1).to(value.dtype)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, heads, 1, value.shape[-1])


def _is_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> bool:
    """Whether a call is of the kind that `attended` answers."""
    is_one = query.ndim == key.ndim == value.ndim == 4 and query.shape[2] == 1 and len(query) == len(key) == len(value)
    is_shared = is_one and key.shape[1] == value.shape[1] and query.shape[1] % key.shape[1] == 0
    return is_shared and query.device.type == "cpu" and attn_mask is None and not dropout_p and not is_causal
