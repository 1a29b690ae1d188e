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

from palimpsest.models import AttentionCall


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
        if func is scaled_dot_product_attention and _is_plain(call := AttentionCall(*args, **given)):
            return attended(call)
        return func(*args, **given)


def attended(call: AttentionCall) -> Tensor:
    """Attention of one token a row to all of its keys, (rows, heads, 1, width of a value).

    Arguments:
        call: with a query of (rows, heads, 1, width) and keys of (rows, key heads, tokens, width), each of which serves
            as many heads that stand together; its other arguments are not looked at, but for the scale.
    """
    query, key, value = call[:3]
    rows, heads, _, width = query.shape
    shared = key.shape[1]
    products = torch.bmm(
        query.reshape(rows * shared, heads // shared, width), key.flatten(0, 1).transpose(1, 2)
    ).float()
    weights = (products * call.factor).softmax(-1).to(value.dtype)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, heads, 1, value.shape[-1])


def _is_plain(call: AttentionCall) -> bool:
    """Whether a call is of the kind that `attended` answers."""
    query, key, value = call[:3]
    is_one = query.ndim == key.ndim == value.ndim == 4 and query.shape[2] == 1 and len(query) == len(key) == len(value)
    is_shared = is_one and key.shape[1] == value.shape[1] and query.shape[1] % key.shape[1] == 0
    is_whole = call.attn_mask is None and not call.dropout_p and not call.is_causal
    return is_shared and is_whole and query.device.type == "cpu"
