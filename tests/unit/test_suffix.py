"""Passes over a suffix against plain whole passes: logits and gradients, in every family."""

import pytest
import torch

import tiny
from palimpsest import ModelError
from palimpsest.models import suffix as suffixes
from palimpsest.models.bypass import cast_above, frozen_parameters
from palimpsest.models.hooks import Point
from palimpsest.models.suffix import prepare_suffix

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
    suffix, _ = prepare_suffix(model, ids, own, layer + 1)
    assert suffix.prefix is not None, "this family goes on from a cache"
    rows, columns = places(ids, own)
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(len(ids), 32, generator=generator).requires_grad_()
    weights = torch.randn(len(rows), len(tiny.tokenizer()), generator=generator)
    with frozen_parameters(model.module):
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


def forgetful(stored, added):
    return torch.cat([torch.zeros_like(stored), added], dim=2)


BROKEN_CACHES = {
    "one token too long": ("get_seq_length", lambda self: self.length + 1),
    "forgotten": ("update", lambda self, k, v, *_: tuple(map(forgetful, (self.keys, self.values), (k, v)))),
}


@pytest.mark.parametrize("broken", BROKEN_CACHES)
@pytest.mark.parametrize("family", ["gptj", "opt", "gemma2", "falcon"])
def test_a_model_that_cannot_go_on_from_a_cache_is_run_whole_with_the_same_result(family, broken, monkeypatch):
    model = tiny.tiny_model(family)
    ids, own = rows_and_columns(model)
    monkeypatch.setattr(suffixes._Prefix, *BROKEN_CACHES[broken])
    whole, _ = prepare_suffix(model, ids, own, 1)
    assert whole.prefix is None
    monkeypatch.undo()
    right, _ = prepare_suffix(model, ids, own, 1)
    assert prepare_suffix(model, ids, own, 1, from_cache=False)[0].prefix is None
    rows, tokens = places(ids, own)
    deltas = torch.randn(len(ids), 32, generator=torch.Generator().manual_seed(0))
    expected = right.logits(rows, tokens, added(right, deltas))
    assert torch.allclose(whole.logits(rows, tokens, added(whole, deltas)), expected, rtol=1e-5, atol=1e-4)
    assert whole.first_columns.tolist() == own
    assert right.first_columns.tolist() == [0, 0, 0]


def test_that_a_model_goes_on_rightly_is_found_out_once_and_again_for_longer_rows(monkeypatch):
    asked, model = [], tiny.tiny_model("gptj")
    check = suffixes._goes_on_rightly
    monkeypatch.setattr(
        suffixes, "_goes_on_rightly", lambda suffix: asked.append(int(suffix.lengths.max())) or check(suffix)
    )
    ids, own = rows_and_columns(model)
    for rows in (ids, ids, [row[:-1] for row in ids], [row + row[-1:] for row in ids]):
        prepare_suffix(model, rows, own, 1)
    longest = max(map(len, ids))
    assert asked == [longest, longest + 1]
    prepare_suffix(model, ids, own, 2)
    assert asked == [longest, longest + 1, longest]


@pytest.mark.parametrize("family", ["gptj", "falcon", "gemma2", "bloom"])
@pytest.mark.parametrize("entry", [0, 1])
def test_some_rows_of_a_suffix_and_changes_inside_its_blocks(family, entry):
    model = tiny.tiny_model(family)
    ids, own = rows_and_columns(model)
    point = Point("mlp.down", entry)
    suffix, found = prepare_suffix(model, ids, own, entry, points=[point])
    for keep in ([0, 1, 2], [2], [1, 2]):
        some = suffix.select(torch.tensor(keep))
        rows = torch.arange(len(keep))
        tokens = torch.tensor([len(ids[row]) - 1 for row in keep])
        with model.intervene({point: lambda out: out.index_put((torch.tensor(0),), out[0] * 2)}):
            logits = some.logits(rows, tokens)
        for place, row in enumerate(keep):

            def double(out, *, is_first=place == 0, start=own[row]):
                return torch.cat([out[:, :start], out[:, start:] * 2], dim=1) if is_first else out

            with model.intervene({point: double}):
                whole = model.module(input_ids=torch.tensor([ids[row]])).logits[0, -1]
            assert torch.allclose(logits[place], whole, rtol=1e-5, atol=1e-4)
    for row, vector in zip(ids, found[point], strict=True):
        _, alone = prepare_suffix(model, [row], [own[ids.index(row)]], entry, points=[point])
        assert torch.allclose(alone[point][0], vector, atol=1e-5)


def test_the_head_can_follow_an_earlier_block():
    model = tiny.tiny_model("llama")
    ids, own = rows_and_columns(model)
    suffix, _ = prepare_suffix(model, ids, own, 1, last_block=1)
    rows, tokens = places(ids, own)
    point = Point("resid", 1)
    expected = []
    for row, start in zip(ids, own, strict=True):
        _, found = prepare_suffix(model, [row] * len(row), range(len(row)), 0, points=[point])
        expected.append(found[point][start:])
    early = model.sites.module("unembed")(model.sites.module("final_norm")(torch.cat(expected)))
    assert torch.allclose(suffix.logits(rows, tokens), early, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "gemma2", "gpt_neox", "falcon-multi-head", "opt"])
def test_upper_weights_in_another_dtype_and_back(family):
    model = tiny.tiny_model(family)
    ids, own = rows_and_columns(model)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    suffix, _ = prepare_suffix(model, ids, own, 1)
    rows, tokens = places(ids, own)
    exact = suffix.logits(rows, tokens)
    with cast_above(model.sites, model.weights, 1, torch.bfloat16):
        lower = model.weights.current(model.sites.parameter_name("mlp.down", 0)).dtype
        upper = model.weights.current(model.sites.parameter_name("mlp.down", 1)).dtype
        rounded = suffix.to(torch.bfloat16).logits(rows, tokens)
    assert (lower, upper, rounded.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    assert 0 < (rounded.float() - exact).norm() < 0.1 * exact.norm()
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_nothing_is_left_behind_also_when_it_raises():
    model = tiny.tiny_model("gptj")
    ids, own = rows_and_columns(model)
    suffix, _ = prepare_suffix(model, ids, own, 1)
    with pytest.raises(IndexError):
        suffix.logits(torch.tensor([99]), torch.tensor([0]))
    for module in model.module.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize(("entry", "last"), [(4, None), (-1, None), (2, 0), (0, 7)])
def test_layers_out_of_range(entry, last):
    model = tiny.tiny_model("gptj")
    with pytest.raises(ModelError, match="out of range"):
        prepare_suffix(model, [[1, 2, 3]], [1], entry, last_block=last)
