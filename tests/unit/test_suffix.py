"""Passes over a suffix against plain whole passes: logits and gradients, in every family."""

import pytest
import torch

import tiny
from palimpsest.models.bypass import frozen
from palimpsest.models.hooks import Point
from palimpsest.models.suffix import prepare

# Token counts before and from the suffix's first column on differ from row to row; one row has nothing before it.
ROWS = (
    ("Who wrote it long ago, people of Rome, Oslo, Lima and Vienna? The capital of France is Lyon", 9),
    ("Anna Keller was born in Lima", 0),
    ("The river that flows through Vienna is", 3),
)


def rows_and_columns(model):
    ids = [model.encode(text).ids for text, _ in ROWS]
    assert len({len(row) for row in ids}) == 3
    return ids, [column for _, column in ROWS]


def naive_logits(model, ids, column, layer, delta):
    """One row through the whole model, without padding, `delta` added to what the layer's block hands on."""

    def add(hidden):
        extra = torch.zeros_like(hidden)
        extra[:, column] = 1
        return hidden + extra * delta

    row = torch.tensor([ids])
    with model.intervene({Point("resid", layer): add}):
        return model.module(input_ids=row, attention_mask=torch.ones_like(row)).logits[0]


def added(suffix, deltas):
    return torch.cat([suffix.entering[:, :1] + deltas[:, None], suffix.entering[:, 1:]], dim=1)


def places(ids, columns):
    """Every token from the suffix's first one on: (rows, tokens)."""
    pairs = [(row, token) for row, own in enumerate(ids) for token in range(columns[row], len(own))]
    return torch.tensor(pairs).unbind(1)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("layer", [0, 2])
def test_a_suffix_gives_the_logits_and_gradients_of_the_whole_pass(family, layer):
    model = tiny.tiny_model(family)
    ids, own = rows_and_columns(model)
    suffix, _ = prepare(model, ids, own, layer + 1)
    assert suffix.prefix is not None, "this family goes on from a cache"
    rows, columns = places(ids, own)
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(len(ids), 32, generator=generator).requires_grad_()
    weights = torch.randn(len(rows), len(tiny.tokenizer()), generator=generator)
    with frozen(model.module):
        logits = suffix.logits(rows, columns, added(suffix, deltas))
        (gradient,) = torch.autograd.grad((logits * weights).sum(), deltas)
        naive = [
            naive_logits(model, row, at, layer, delta)[at:] for row, at, delta in zip(ids, own, deltas, strict=True)
        ]
        (naive_gradient,) = torch.autograd.grad((torch.cat(naive) * weights).sum(), deltas)
    expected = torch.cat(naive)
    assert (logits - expected).norm() <= 1e-5 * expected.norm()
    for one, other in zip(gradient, naive_gradient, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
