"""What keeps long sequences whole: earlier keys in every solve, vectors of one length, the null space's rest."""

from __future__ import annotations

import pytest
import torch

import tiny
from palimpsest import ConfigError, method
from palimpsest.locating.target_vector import TargetVectors, anchored_vectors
from palimpsest.methods.edited_keys import EditedKeys, WrittenKeys
from palimpsest.models.hooks import Point
from palimpsest.models.tokens import subject_last_token
from palimpsest.solve import EarlierKeys, Factorised, null_space_projected, ridge

WIDTH, OUT, STRENGTH = 12, 5, 3.0
SEARCH = {"targets": {"search": "gauss-newton"}, "search_in": "prompt", "site": "mlp.down", "contexts": {"given": []}}


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment():
    rows = draw(60, WIDTH, seed=1)
    return rows.T @ rows / 60


def in_turn(weight, batches, *, keeps=True):
    """The weight after some batches of (keys, values), each solved with the keys of those before."""
    factor, earlier = Factorised(moment()), EarlierKeys.none(WIDTH)
    for keys, values in batches:
        metric = factor.plus(earlier.sum() / STRENGTH) if keeps else factor
        weight = weight + ridge(metric, keys, values - keys @ weight.T, strength=STRENGTH).dense()
        earlier = earlier.joined(keys, keys.new_zeros(WIDTH, 0))
    return weight


def batches():
    return [(draw(3, WIDTH, seed=10 + at), draw(3, OUT, seed=20 + at)) for at in range(4)]


# Earlier keys


def test_a_sequence_with_earlier_keys_is_one_edit_of_all_facts_in_any_order():
    start = draw(OUT, WIDTH, seed=2)
    keys, values = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    at_once = start + (values - keys @ start.T).T @ keys @ (STRENGTH * moment() + keys.T @ keys).inverse()
    torch.testing.assert_close(in_turn(start, batches()), at_once)
    torch.testing.assert_close(in_turn(start, batches()[::-1]), at_once)
    first = batches()[0]
    apart = [float((first[0] @ in_turn(start, batches(), keeps=keeps).T - first[1]).norm()) for keeps in (True, False)]
    assert apart[0] < apart[1], "without them the first batch is written over"


def test_a_fact_edited_again_takes_the_place_of_its_former_self():
    start, factor = draw(OUT, WIDTH, seed=2), Factorised(1e-6 * moment())
    key, former, later = draw(1, WIDTH, seed=3), draw(1, OUT, seed=4), draw(1, OUT, seed=5)
    once = start + ridge(factor, key, former - key @ start.T, strength=1.0).dense()
    kept = EarlierKeys.none(WIDTH).joined(key, key.new_zeros(WIDTH, 0))
    assert len(kept.without(key).rows) == 0 and len(kept.without(draw(1, WIDTH, seed=6)).rows) == 1
    ends = {}
    for name, earlier in (("kept", kept), ("dropped", kept.without(key))):
        change = ridge(factor.plus(earlier.sum()), key, later - key @ once.T, strength=1.0).dense()
        ends[name] = key @ (once + change).T
    torch.testing.assert_close(ends["dropped"], later, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ends["kept"], (former + later) / 2, atol=1e-4, rtol=1e-4)


def make(name, **options):
    return method(name, preset="none", **{"layers": [1], **SEARCH, **tiny.second_moments(), **options})


def make_rome(name="rome", **options):
    own = {key: value for key, value in SEARCH.items() if key != "site"}
    return method(name, preset="none", **{"layers": [1], **own, **tiny.second_moments(), **options})


def exact():
    return tiny.tiny_model("gptj", dtype=torch.float64)


def dense(model, patch):
    return patch.deltas[model.sites.parameter_name("mlp.down", 1)].dense().double()


def flow(model, requests, point):
    found = []
    for request in requests:
        _, captured = model.capture([request.prompt], [point])
        found.append(captured[point][0, subject_last_token(model.tokenizer, request, chat=None)].double())
    return torch.stack(found)


def text_moment():
    """E[k k^T] of the text, row after row."""
    model, point, rows = exact(), Point("mlp.down", 1, "input"), []
    for text in tiny.text_lines():
        _, found = model.capture([text], [point])
        rows.append(found[point][0].double())
    every = torch.cat(rows)[: tiny.statistics()["max_tokens"]]
    return every.T @ every / len(every)


def test_memit_with_history_is_its_equation_with_earlier_keys():
    model, requests, point = exact(), tiny.requests(4), Point("mlp.down", 1, "input")
    editor = make("memit", history=True, strength=STRENGTH)
    first = editor.edit(model, requests[:2])
    with model.patched(first.patch):
        earlier = flow(model, requests[:2], point)
        torch.testing.assert_close(first.state.keys[1].rows, earlier, atol=1e-5, rtol=1e-4)
        second = editor.edit(model, requests[2:], first.state)
        keys = flow(model, requests[2:], point)
        before = flow(model, requests[2:], Point("mlp.down", 1))
        plain = make("memit", strength=STRENGTH).edit(model, requests[2:])
    metric = STRENGTH * text_moment() + earlier.T @ earlier + keys.T @ keys
    residuals = torch.tensor(0)
    change = dense(model, second.patch)
    # What was missing is what the change writes at the keys, undone of the ridge.
    residuals = (change @ metric @ torch.linalg.pinv(keys)).T
    torch.testing.assert_close(residuals.T @ keys @ metric.inverse(), change, atol=1e-6, rtol=1e-3)
    assert before.shape == residuals.shape and plain.state is None
    moved = [float((earlier @ dense(model, one.patch).T).norm()) for one in (second, plain)]
    assert moved[0] < moved[1]
    assert len(second.state.keys[1].rows) == 4


@pytest.mark.parametrize("name", ["rome", "r-rome"])
def test_rome_with_history_moves_earlier_facts_less(name):
    model, requests = exact(), tiny.requests(3)
    first = make_rome(name, history=True).edit(model, requests[:2])
    assert len(first.state.keys[1].rows) == 2
    with model.patched(first.patch):
        earlier = flow(model, requests[:2], Point("mlp.down", 1, "input"))
        kept = make_rome(name, history=True).edit(model, requests[2:], first.state)
        plain = make_rome(name).edit(model, requests[2:])
    moved = [float((earlier @ dense(model, one.patch).T).norm()) for one in (kept, plain)]
    assert moved[0] < moved[1]
    assert plain.state is None and len(kept.state.keys[1].rows) == 3


def test_a_sequence_goes_on_from_a_file(tmp_path):
    model, requests = exact(), tiny.requests(3)
    editor = make("emmet", history=True)
    first = editor.edit(model, requests[:2])
    first.state.save(tmp_path / "state")
    with model.patched(first.patch):
        kept, resumed = (
            editor.edit(model, requests[2:], one).patch for one in (first.state, WrittenKeys.load(tmp_path / "state"))
        )
    assert all(torch.equal(tensor, resumed.tensors()[name]) for name, tensor in kept.tensors().items())


def test_alphaedits_state_is_not_memits():
    with pytest.raises(ConfigError, match="EditedKeys"):
        make("memit", history=True).edit(exact(), tiny.requests(1), EditedKeys({1: EarlierKeys.none(128)}))
    with pytest.raises(ConfigError, match=r"layers \[0\]"):
        make("memit", history=True).edit(exact(), tiny.requests(1), WrittenKeys({0: EarlierKeys.none(128)}))


def test_what_is_carried_is_up_to_the_options():
    assert make("memit", history=True).carries_state and not make("memit").carries_state
    assert make_rome(history=True).carries_state and not make_rome().carries_state
    assert make("alphaedit").carries_state


# Vectors of one length


def vectors(deltas):
    names = tuple(f"fact-{at}" for at in range(len(deltas)))
    return TargetVectors(names, deltas, torch.zeros_like(deltas), {}, {}, {}, (), ("{}",))


def test_anchored_vectors_have_the_anchors_length_up_as_well_as_down():
    written, deltas = draw(3, OUT, seed=7), draw(3, OUT, seed=8)
    deltas[1] *= 30
    found, skipped = anchored_vectors(vectors(deltas), written, 4.0, limit=5.0)
    lengths = (written + found.deltas).norm(dim=1)
    torch.testing.assert_close(lengths[[0, 2]], torch.full((2,), 4.0, dtype=torch.float64))
    assert skipped == ("fact-1",) and not found.deltas[1].any()
    same = torch.nn.functional.cosine_similarity((written + found.deltas)[0], (written + deltas)[0], dim=0)
    assert float(same) == pytest.approx(1.0)


@pytest.mark.parametrize("site", ["resid", "mlp.down"])
def test_what_the_mlp_is_to_write_has_the_length_of_the_unedited_model(site):
    model, requests = exact(), tiny.requests(3)
    editor = make("memit", anchor="unedited", anchor_limit=1e9, strength=1e-6, site=site)
    alone = editor.edit(model, requests[:1])
    plain = make("memit", strength=1e-6, site=site).edit(model, requests[:1])
    torch.testing.assert_close(dense(model, alone.patch), dense(model, plain.patch), atol=1e-6, rtol=1e-4)
    [length] = [one["length"] for one in alone.diagnostics.facts["anchored"]]
    with model.patched(make("memit", strength=1e-6, site=site).edit(model, requests[1:]).patch):
        after = editor.edit(model, requests[:1])
        assert after.diagnostics.facts["anchored"][0]["length"] == pytest.approx(length)
        with model.patched(after.patch):
            wrote = flow(model, requests[:1], Point("mlp.down", 1))
    assert float(wrote.norm()) == pytest.approx(length, rel=1e-2)


def test_a_fact_beyond_the_limit_alone_in_its_batch_changes_nothing():
    model = exact()
    outcome = make("memit", anchor=1e-3).edit(model, tiny.requests(1))
    assert outcome.patch.is_empty() or outcome.patch.norm() == 0
    assert any("left out" in note and "fact-0" in note for note in outcome.diagnostics.notes)


# The null space's rest


def test_alphaedit_with_a_leak_is_betaedits_equation():
    model, requests = exact(), tiny.requests(2)
    shared = {"energy": 0.3, "strength": 10.0}
    plain, leaking = (make("alphaedit", **shared, **more).edit(model, requests) for more in ({}, {"leak": 50.0}))
    values, eigenvectors = torch.linalg.eigh(text_moment())
    count = plain.diagnostics.facts["null_dimensions"]["1"]
    inside = eigenvectors[:, :count]
    keys = flow(model, requests, Point("mlp.down", 1, "input"))
    change = dense(model, plain.patch)
    # From AlphaEdit's own solution to what it was to write.
    system = inside.T @ keys.T @ keys @ inside + 10.0 * torch.eye(count, dtype=torch.float64)
    residuals = (change @ inside @ system @ torch.linalg.pinv(keys @ inside)).T
    leaky = system + 50.0 * values[:count].diag()
    expected = residuals.T @ keys @ inside @ leaky.inverse() @ inside.T
    found = dense(model, leaking.patch)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert (found - change).norm() > 1e-2 * change.norm()


def test_a_leak_of_nothing_and_keys_added_up_are_the_plain_solve():
    keys, residuals, basis = draw(3, WIDTH, seed=1), draw(3, OUT, seed=2), torch.zeros(WIDTH, 0, dtype=torch.float64)
    earlier = draw(4, WIDTH, seed=3)
    rows = EarlierKeys.none(WIDTH).joined(earlier, basis)
    added = EarlierKeys.none(WIDTH).plus(earlier.T @ earlier)
    first, second = (null_space_projected(basis, keys, residuals, strength=2.0, previous=one) for one in (rows, added))
    torch.testing.assert_close(first.dense(), second.dense())
    torch.testing.assert_close(rows.sum(), added.sum())
