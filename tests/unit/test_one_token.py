"""Attention over one new token: the same numbers as the fused kernel's, and left alone where it is another thing."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import tiny
from palimpsest.statistics import one_token, writing
from palimpsest.statistics.one_token import OneTokenAttention
from palimpsest.statistics.writing import sample_rows


def tensors(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def counted(monkeypatch):
    calls, real = [], one_token.attended

    def attended(call):
        calls.append(call.query.dtype)
        return real(call)

    monkeypatch.setattr(one_token, "attended", attended)
    return calls


@pytest.mark.parametrize("shared", [1, 2, 6])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_it_is_what_the_fused_kernel_gives(monkeypatch, shared, scale, dtype, within):
    query, key, value = tensors((5, 6, 1, 8), (5, shared, 7, 8), (5, shared, 7, 4), dtype=dtype)
    expected = scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=scale, enable_gqa=True)
    calls = counted(monkeypatch)
    with OneTokenAttention():
        found = scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=True)
    assert calls == [dtype] and found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=within)


@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        (2, {}),
        (1, {"attn_mask": torch.tensor([[True, False, True]])}),
        (1, {"is_causal": True}),
    ],
)
def test_other_calls_are_left_alone(monkeypatch, tokens, options):
    query, key, value = tensors((2, 4, tokens, 8), (2, 4, 3, 8), (2, 4, 3, 8))
    expected = scaled_dot_product_attention(query, key, value, **options)
    calls = counted(monkeypatch)
    with OneTokenAttention():
        assert torch.equal(scaled_dot_product_attention(query, key, value, **options), expected)
    assert not calls


def test_rows_are_sampled_with_it(monkeypatch):
    model = tiny.tiny_model("llama")
    # Else the dtype would depend on the machine.
    monkeypatch.setattr(writing, "fast_dtype", lambda model: None)
    calls = counted(monkeypatch)
    sample_rows(model, 2, 4)
    assert calls == [torch.float32] * 3 * model.num_layers
