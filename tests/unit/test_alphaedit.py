"""AlphaEdit against its equation, written plainly in float64, and what it carries from batch to batch."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import tiny
from palimpsest import ConfigError, EditRequest, method
from palimpsest.locating.target_vector import TargetOptions, find_target_vectors
from palimpsest.methods.base import MethodState
from palimpsest.methods.edited_keys import EditedKeys
from palimpsest.models.hooks import Point
from palimpsest.models.sites.linear import weight_as_out_in
from palimpsest.models.tokens import subject_last_token
from palimpsest.solve.null_space import EarlierKeys

STRENGTH = 10.0
EVERYTHING = {"null_space": "threshold", "threshold": 1e9}
"""A null space that is the whole space, so that P = I."""
SEARCH = {"search": "adam", "steps": 5}
TOLERANCE = 1e-4


def make(**options):
    shared = {"layers": [1], "contexts": {"given": []}, "targets": SEARCH, "strength": STRENGTH, "site": "resid"}
    return method("alphaedit", preset="none", **{**shared, **tiny.second_moments(), **options})


def exact():
    return tiny.tiny_model("gptj", dtype=torch.float64)


def weight(model, layer):
    return weight_as_out_in(model.sites.module("mlp.down", layer)).detach()


def dense(model, patch, layer=1):
    return patch.deltas[model.sites.parameter_name("mlp.down", layer)].dense().double()


def is_close(found, expected, tolerance=TOLERANCE):
    return bool((found - expected).norm() <= tolerance * expected.norm())


def vectors(model, requests, point):
    """(facts, width), what flows at a point at the subjects' last tokens."""
    found = []
    for request in requests:
        _, captured = model.capture([request.prompt], [point])
        found.append(captured[point][0, subject_last_token(model.tokenizer, request, chat=None)].double())
    return torch.stack(found)


def keys_of(model, requests, layer=1):
    return vectors(model, requests, Point("mlp.down", layer, "input"))


@cache
def second_moment():
    """E[k k^T] at layer 1 over the first 1,024 tokens of the text, one row after another."""
    model, layer, keys = exact(), 1, []
    for text in tiny.text_lines():
        _, found = model.capture([text], [Point("mlp.down", layer, "input")])
        keys.append(found[Point("mlp.down", layer, "input")][0].double())
    every = torch.cat(keys)[: tiny.statistics()["max_tokens"]]
    return every.T @ every / len(every)


def projector(*, energy=None, threshold=None):
    """P of the eigenvectors that hold the least, one after another."""
    values, eigenvectors = torch.linalg.eigh(second_moment())
    kept, held = [], 0.0
    for value, vector in zip(values.clamp(min=0), eigenvectors.T, strict=True):
        held += float(value)
        if float(value) < threshold if threshold is not None else held <= energy * float(values.sum()):
            kept.append(vector)
    basis = torch.stack(kept)
    return basis.T @ basis


def equation_14(projection, keys, residuals, earlier):
    """Delta = R K^T P ((K_p K_p^T + K K^T) P + strength I)^-1; facts are rows here."""
    both = keys.T @ keys + earlier.T @ earlier
    return residuals.T @ keys @ projection @ (both @ projection + STRENGTH * torch.eye(len(both))).inverse()


def residuals_of(model, requests):
    return find_target_vectors(model, requests, layer=1, site="resid", options=TargetOptions(**SEARCH)).deltas


@pytest.mark.parametrize("choice", [{"energy": 0.05}, {"energy": 0.3}, {"threshold": 0.5}])
def test_an_edit_is_equation_14_and_the_preserved_directions_do_not_see_it(choice):
    model, requests = exact(), tiny.requests(3)
    (name,) = choice
    projection = projector(**choice)
    outcome = make(null_space=name, **choice).edit(model, requests)
    change = dense(model, outcome.patch)
    keys = keys_of(model, requests)
    expected = equation_14(projection, keys, residuals_of(model, requests), keys[:0])
    assert is_close(change, expected)
    dimension = outcome.diagnostics.facts["null_dimensions"]["1"]
    assert dimension == round(float(projection.trace())) and 0 < dimension < 128
    assert (change @ (torch.eye(128) - projection)).norm() < 1e-5 * change.norm(), "Delta P = Delta"
    moved = torch.trace(change @ second_moment() @ change.T)
    largest = torch.linalg.eigvalsh(projection @ second_moment() @ projection)[-1]
    assert 0 < moved <= largest * change.square().sum() * (1 + 1e-6), "what a key of the text is moved by, on average"


def test_with_nothing_to_preserve_it_is_ridge_regression():
    model, requests = exact(), tiny.requests(3)
    outcome = make(**EVERYTHING).edit(model, requests)
    keys, residuals = keys_of(model, requests), residuals_of(model, requests)
    expected = residuals.T @ keys @ (keys.T @ keys + STRENGTH * torch.eye(128)).inverse()
    assert outcome.diagnostics.facts["null_dimensions"] == {"1": 128}
    assert is_close(dense(model, outcome.patch), expected)


def test_a_strength_that_is_not_given_is_what_a_key_of_the_text_has_in_the_null_space():
    model, requests = exact(), tiny.requests(3)
    projection = projector(energy=0.3)
    own = float(torch.trace(projection @ second_moment() @ projection))
    one, other = (make(energy=0.3, strength=given).edit(model, requests).patch for given in (None, own))
    assert is_close(dense(model, one), dense(model, other))


@pytest.mark.parametrize("choice", [{"null_space": "energy", "energy": 0.3}, EVERYTHING])
def test_the_next_batch_asks_the_keys_of_those_before_to_stay(choice):
    model, requests = exact(), tiny.requests(4)
    editor = make(**choice)
    first = editor.edit(model, requests[:2])
    whole = torch.eye(128, dtype=torch.float64)
    projection = whole if choice is EVERYTHING else projector(energy=0.3)
    with model.patched(first.patch):
        earlier = keys_of(model, requests[:2])
        assert is_close(first.state.keys[1].rows, earlier @ projection)
        before = first.state.keys[1].rows.clone()
        second = editor.edit(model, requests[2:], first.state)
        keys, residuals = keys_of(model, requests[2:]), residuals_of(model, requests[2:])
    assert is_close(dense(model, second.patch), equation_14(projection, keys, residuals, earlier))
    assert not is_close(dense(model, second.patch), equation_14(projection, keys, residuals, earlier[:0]), 1e-2)
    with model.patched(first.patch), model.patched(second.patch):
        every = torch.cat([earlier, keys_of(model, requests[2:])])
    assert is_close(second.state.keys[1].rows, every @ projection)
    assert torch.equal(first.state.keys[1].rows, before), "the state that was passed in is as it was"
    with model.patched(first.patch):
        forgetful = editor.edit(model, requests[2:])
    old = keys_of(model, requests[:2])
    moved = [float((old @ dense(model, one.patch).T).norm()) for one in (second, forgetful)]
    assert moved[0] < moved[1], "earlier facts are moved less than without their keys"


def test_several_layers_and_contexts_keep_their_keys():
    model, requests = exact(), tiny.requests(3)
    given = {"given": ["Rome. {}", "It was written long ago. {}"]}
    for pooling, rows in (("columns", 9), ("half-clean", 3)):
        editor = make(layers=[1, 2], contexts=given, pooling=pooling, **EVERYTHING)
        outcome = editor.edit(model, requests)
        assert {layer: tuple(keys.rows.shape) for layer, keys in outcome.state.keys.items()} == {
            1: (rows, 128),
            2: (rows, 128),
        }
        with model.patched(outcome.patch):
            again = editor.edit(model, requests, outcome.state)
        assert len(again.state.keys[2].rows) == 2 * rows
        if pooling == "columns":
            # Three keys of one fact weigh as much as one, so products add up to the mean over contexts.
            with model.patched(outcome.patch):
                prompts = keys_of(model, requests, 2)
            assert is_close(outcome.state.keys[2].rows[::3] * 3**0.5, prompts)


def test_a_batch_that_is_there_already_changes_nothing():
    model = tiny.tiny_model("gpt2", dtype=torch.float64)
    requests = [
        EditRequest(f"It is about {subject}", subject=subject, target_new=target, id=f"closing-{index}")
        for index, (subject, target) in enumerate([("France", "Paris"), ("Italy", "Oslo")])
    ]
    editor = make(strength=1e-6, site="mlp.down", targets={"search": "gauss-newton"}, **EVERYTHING)
    first = editor.edit(model, requests)
    with model.patched(first.patch):
        again = editor.edit(model, requests, first.state)
    assert first.diagnostics.facts["targets"][0]["stopped"] == ["reached", "reached"]
    assert again.patch.norm() < 1e-6 * first.patch.norm()
    assert again.diagnostics.facts["targets"][0]["passes"] == [1, 1]


class AnotherState(MethodState):
    def tensors(self):
        return {}

    @classmethod
    def from_tensors(cls, tensors):
        return cls()


@pytest.mark.parametrize(
    ("state", "found"), [(EditedKeys({0: EarlierKeys.none(128)}), r"layers \[0\]"), (AnotherState(), "AnotherState")]
)
def test_the_state_of_others_is_refused_before_the_search(state, found, monkeypatch):
    model = exact()
    monkeypatch.setattr("palimpsest.methods.problem.find_target_vectors", lambda *_, **__: pytest.fail("searched"))
    with pytest.raises(ConfigError, match=found):
        make().edit(model, tiny.requests(1), state)


def test_a_null_space_of_nothing_is_an_error():
    with pytest.raises(ConfigError, match="is empty") as raised:
        make(null_space="threshold", threshold=1e-12).edit(exact(), tiny.requests(1))
    assert "layer 1" in str(raised.value)


def test_no_requests_keep_the_state():
    state = EditedKeys({1: EarlierKeys.none(128)})
    outcome = make().edit(exact(), [], state)
    assert outcome.patch.is_empty() and outcome.state is state


def test_more_keys_than_dimensions_are_saved_as_what_they_add_up_to(tmp_path):
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(200, 128, generator=generator, dtype=torch.float64)
    nothing = torch.zeros(128, 0, dtype=torch.float64)
    EditedKeys({1: EarlierKeys.none(128).joined(keys[:150], nothing).joined(keys[150:], nothing)}).save(tmp_path / "s")
    found = EditedKeys.load(tmp_path / "s").keys[1]
    assert len(found.rows) == 0
    torch.testing.assert_close(found.moment, keys.T @ keys)
