"""Gradients that are zero in mathematics, as zeros.

Rounding leaves some 1e-8 where a gradient is zero. Its sign depends on the processor, and Adam, which does not feel a
gradient's scale, makes a full step of it. It comes from one function, the softmax, whose derivative is a difference:

    dS_j = P_j (dP_j - sum_i P_i dP_i)

    one key       P = 1, so dS = dP - dP: no gradient for the query and the key (a decoder's first token)
    a key's bias  the dS of one query sum to zero, so what all keys have in common has no gradient, unless positions
                  are rotated; the bias's gradient is the sum over the keys
    a router      whose chosen shares are scaled to one: no gradient for the experts that were not chosen

Here the difference is taken from the key with the largest share, dP_j - dP_m, which leaves nothing to cancel; one that
is below its own rounding error is zero. Then the dS of one query sum to zero but for a rounding error of each, also
where one key has nearly all of the attention, and the gradient of a linear layer's bias, sum_t dy_t, is set to zero
where it is below what rounding can leave:

    |sum_t dy_t|  <=  (32 u + 2 u') sum_t |dy_t|          u = 2^-24, float32's; u' that of a half-precision dtype

`u'` is the rounding of each dy_t as it is stored. The first term is measured: at most 19 u for the key biases of a
trained encoder (14,000 numbers, six batches) and 14 u for those of tiny models of thirteen families, whereas of the
biases that have a gradient one in a thousand is below 550 u, and none was seen below 150 u.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from palimpsest import processes
from palimpsest.models import AttentionCall
from palimpsest.models.sites import LINEAR_TYPES

LARGEST = 2**26
"""Shares of attention in one call up to which they are kept for the derivative; beyond, it is torch's fused one."""

_UNIT = torch.finfo(torch.float32).eps / 2
_SOFTMAXES = (nn.functional.softmax, torch.softmax, Tensor.softmax)


class TrueZeros:
    """Inside the block, backward passes leave zeros where there is nothing but rounding; see the module's docstring.

    Forward passes compute what they compute outside of it.

    Arguments:
        module: the biases of its linear layers are the ones looked after.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._layers: list[nn.Module] = []
        self._magnitudes: list[Tensor] = []
        self._hooks: list[Any] = []
        self._mode: Any = _AccurateSoftmax()

    def __enter__(self) -> TrueZeros:
        for layer in self._module.modules():
            bias = getattr(layer, "bias", None) if isinstance(layer, LINEAR_TYPES) else None
            if bias is not None and bias.requires_grad:
                self._hooks.append(layer.register_forward_hook(self._watch(len(self._layers))))
                self._layers.append(layer)
                self._magnitudes.append(torch.zeros(bias.shape, device=bias.device))
        self._mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mode.__exit__(kind, error, trace)
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def clean(self) -> None:
        """Sets to zero what is rounding in the biases' gradients since the last call. Every process calls it."""
        for layer, magnitude in zip(self._layers, self._summed(), strict=True):
            gradient: Any = getattr(layer, "bias").grad  # noqa: B009
            if gradient is None:
                continue
            bound = _relative_bound(gradient.dtype) * magnitude
            if hasattr(gradient, "to_local"):
                bound, gradient = _own_share(bound, gradient), gradient.to_local()
            gradient.masked_fill_(gradient.abs() <= bound.to(gradient.device), 0.0)

    def _watch(self, index: int) -> Any:
        def add(gradient: Tensor) -> None:
            magnitude = gradient.detach().abs().reshape(-1, gradient.shape[-1]).sum(0, dtype=torch.float32)
            self._magnitudes[index] = self._magnitudes[index].to(magnitude.device).add_(magnitude)

        def hook(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            if output.requires_grad:
                output.register_hook(add)

        return hook

    def _summed(self) -> list[Tensor]:
        """The magnitudes over all processes, and from here on zeros."""
        found, self._magnitudes = self._magnitudes, [torch.zeros_like(one) for one in self._magnitudes]
        if processes.count() == 1 or not found:
            return found
        together: Any = torch.cat(found)
        torch.distributed.all_reduce(together)
        return list(together.split([len(one) for one in found]))


def softmax_gradient(shares: Tensor, gradients: Tensor) -> Tensor:
    """The derivative through a softmax over the last axis, without cancellation.

    Arguments:
        shares: P, the softmax's values.
        gradients: dP, of that shape.
    """
    largest = shares.argmax(-1, keepdim=True)
    apart = gradients - gradients.gather(-1, largest)
    weighted = shares * apart
    mean = weighted.sum(-1, keepdim=True)
    rest = apart - mean
    # What a difference of rounded numbers can be off by; a single key, with apart and mean at zero, is at it.
    error = 8 * _unit(rest.dtype) * (apart.abs() + weighted.abs().sum(-1, keepdim=True))
    return shares * rest.masked_fill(rest.abs() <= error, 0.0)


class _AccurateSoftmax(TorchFunctionMode):
    """Every softmax and every attention of torch, with the derivative of `softmax_gradient`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is scaled_dot_product_attention and torch.is_grad_enabled():
            return _attention(AttentionCall(*args, **options))
        if func in _SOFTMAXES and torch.is_grad_enabled():
            return _softmax(*args, **options)
        return func(*args, **options)


def _softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    if dim is None or not input.requires_grad:
        return torch.softmax(input, dim, dtype=dtype) if dim is not None else nn.functional.softmax(input, dtype=dtype)
    result: Tensor = _Softmax.apply(input, dim, dtype)  # type: ignore[no-untyped-call]
    return result


def _attention(call: AttentionCall) -> Tensor:
    query, key, value, mask = call[:4]
    needs_gradient = any(one.requires_grad for one in (query, key, value, mask) if one is not None)
    size = query.shape[:-1].numel() * key.shape[-2]
    if needs_gradient and call.dropout_p:
        # torch has no fused form with dropout on a CPU either.
        keys, values = (one.repeat_interleave(query.shape[-3] // key.shape[-3], -3) for one in (key, value))
        shares = _softmax(_masked((query @ keys.mT) * call.factor, mask, call.is_causal), -1)
        return nn.functional.dropout(shares, call.dropout_p) @ values
    if not needs_gradient or size > LARGEST:
        return call.fused()
    result: Tensor = _Attention.apply(*call)  # type: ignore[no-untyped-call]
    return result


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dim: int, dtype: torch.dtype | None) -> Tensor:
        shares = torch.softmax(values, dim, dtype=dtype)
        ctx.save_for_backward(shares)
        ctx.dim, ctx.dtype = dim, values.dtype
        return shares

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        shares, dim = ctx.saved_tensors[0], ctx.dim
        found = softmax_gradient(shares.movedim(dim, -1), gradients[0].movedim(dim, -1)).movedim(-1, dim)
        return found.to(ctx.dtype), None, None


class _Attention(torch.autograd.Function):
    """softmax(scale Q K^T + mask) V. Forwards it is torch's; backwards the shares are computed again, in float32."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        call = AttentionCall(*arguments)
        ctx.save_for_backward(*call[:4])
        ctx.is_causal, ctx.scale = call.is_causal, call.factor
        return call.fused()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        wide = torch.promote_types(query.dtype, torch.float32)
        queries, written = query.to(wide), gradients[0].to(wide)
        # Several heads of queries may share one of keys.
        count = query.shape[-3] // key.shape[-3]
        keys, values = (one.to(wide).repeat_interleave(count, -3) for one in (key, value))
        scores = _masked((queries @ keys.mT) * ctx.scale, mask, ctx.is_causal)
        # A query that may see nothing at all has no shares.
        shares = scores.softmax(-1).nan_to_num(0.0)
        slopes = softmax_gradient(shares, written @ values.mT)
        to_query, to_key, to_value = (slopes @ keys) * ctx.scale, (slopes.mT @ queries) * ctx.scale, shares.mT @ written
        to_key, to_value = (one.unflatten(-3, (-1, count)).sum(-3) for one in (to_key, to_value))
        to_mask = slopes.sum_to_size(mask.shape).to(mask.dtype) if ctx.needs_input_grad[3] else None
        own = to_query.to(query.dtype), to_key.to(key.dtype), to_value.to(value.dtype), to_mask
        return *own, None, None, None, None


def _masked(scores: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def _unit(dtype: torch.dtype) -> float:
    """Half of the spacing of numbers near one."""
    return torch.finfo(dtype).eps / 2


def _relative_bound(dtype: torch.dtype) -> float:
    own = _unit(dtype)
    return 32 * min(own, _UNIT) + (2 * own if own > _UNIT else 0.0)


def _own_share(bound: Tensor, gradient: Any) -> Tensor:
    """The part of a bound that belongs to this process's share of a gradient, which is the mean over processes."""
    from torch.distributed.tensor import distribute_tensor

    whole = bound.to(gradient.device) / processes.count()
    return distribute_tensor(whole, gradient.device_mesh, gradient.placements, src_data_rank=None).to_local()
