"""UltraEdit and StableEdit against their equations, written plainly in float64, and what they carry on."""

from __future__ import annotations

import pytest
import torch

import tiny
from palimpsest import ConfigError, DataError, EditRequest, method
from palimpsest.methods.edited_keys import EditedKeys
from palimpsest.methods.ultraedit import RunningFactors
from palimpsest.models.sites.linear import weight_as_out_in
from palimpsest.patches.weights import WeightPatch
from palimpsest.solve.null_space import EarlierKeys
from palimpsest.statistics.running import RunningMoments
from palimpsest.training.keeping import spared_directions
from palimpsest.training.objectives import answer_losses

PUBLISHED = {"learning_rate": 1e-3, "ridge": 1.0, "warm_up": 0, "layers": [1], "rounds": 1}
FACTS = [
    EditRequest("The capital of France is", "the city of Rome", id="a"),
    EditRequest("The river of Vienna is", "a people", id="b"),
    EditRequest("Anna was born in", "Oslo long ago", id="c"),
]


def make(name="ultraedit", **options):
    return method(name, preset="none", **{**PUBLISHED, "normaliser": "entry", **options})


def exact(family="gptj"):
    return tiny.tiny_model(family, dtype=torch.float64)


def factors(model, requests, layer=1, *, is_everywhere=False):
    """H (n, in) and G (n, out), one fact after another: what autograd says of the layer's output, in the places that
    predict an answer token or at every token."""
    keys, gradients = [], []
    weight = model.sites.module("mlp.down", layer)
    for request in requests:
        row = model.encode(request.prompt, request.target_new)
        kept = []
        handle = weight.register_forward_hook(lambda _m, read, out, kept=kept: kept.append((read[0], out)))
        with torch.enable_grad():
            sums, _ = answer_losses(model, [row], loss_on="answer")
        handle.remove()
        [(read, wrote)] = kept
        [gradient] = torch.autograd.grad(sums.sum(), [wrote])
        first = 0 if is_everywhere else len(row.prompt_ids) - 1
        keys.append(read[0, first : len(row.ids) - 1].detach())
        gradients.append(gradient[0, first : len(row.ids) - 1])
    return torch.cat(keys).double(), torch.cat(gradients).double()


def dense(model, patch, layer=1):
    module = model.sites.module("mlp.down", layer)
    found = patch.deltas[model.sites.parameter_name("mlp.down", layer)].dense().double()
    return found if module.weight is weight_as_out_in(module) else found.T


def standard(rows, of):
    """(x - mean) / deviation by the rows `of`, no deviation below a hundredth of their mean."""
    deviation = of.std(0)
    return (rows - of.mean(0)) / deviation.clamp(min=0.01 * float(deviation.mean()) + 1e-7)


def is_close(found, expected, tolerance=1e-4):
    return bool((found - expected).norm() <= tolerance * expected.norm())


# Running statistics


@pytest.mark.parametrize("pieces", [[20], [1, 19], [1] * 20, [7, 0, 13]])
def test_statistics_are_those_of_all_rows_whatever_the_pieces(pieces):
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 100
    found = RunningMoments.none(4, with_products=True)
    for piece in torch.split(rows, pieces):
        found = found.joined(piece)
    apart = rows - rows.mean(0)
    torch.testing.assert_close(found.mean, rows.mean(0))
    torch.testing.assert_close(found.squares, apart.square().sum(0))
    torch.testing.assert_close(found.products, apart.T @ apart)
    torch.testing.assert_close(found.deviations(), rows.std(0))
    again = RunningMoments.from_tensors(found.tensors())
    assert again.count == 20 and torch.equal(again.products, found.products)


def test_whitening_as_published_gives_the_identity_and_turns_with_the_rows():
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 6, generator=draw, dtype=torch.float64) @ torch.randn(6, 6, generator=draw).double()
    seen = RunningMoments.none(6, with_products=True).joined(rows)
    white = seen.whitened(rows, shrinks=False)
    torch.testing.assert_close(white.T @ white, (50 - 6 - 1) * torch.eye(6, dtype=torch.float64))
    turn = torch.linalg.qr(torch.randn(6, 6, generator=draw, dtype=torch.float64)).Q
    turned = RunningMoments.none(6, with_products=True).joined(rows @ turn)
    torch.testing.assert_close(turned.whitened(rows @ turn, shrinks=False), white @ turn)


def test_whitening_before_there_are_enough_rows():
    rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = RunningMoments.none(6, with_products=True).joined(rows)
    assert torch.equal(seen.whitened(rows, shrinks=False), seen.normalised(rows)), "as published: entry by entry"
    apart, share = rows - rows.mean(0), 6 / 11
    covariance = ((1 - share) * apart.T @ apart + share * (apart.T @ apart).diagonal().diag()) / 5
    found = seen.whitened(rows)
    torch.testing.assert_close(found @ covariance @ found.T, (apart @ apart.T), atol=1e-8, rtol=1e-6)
    torch.testing.assert_close((found.T @ found), (found.T @ found).T)


def test_a_direction_that_holds_nothing_is_not_blown_up():
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:, 0] = 7.0
    seen = RunningMoments.none(6, with_products=True).joined(rows)
    assert seen.whitened(rows).abs().max() < 10 and seen.normalised(rows).abs().max() < 10
    assert not RunningMoments.none(6, with_products=True).whitened(rows * 0).any()


# The update


@pytest.mark.parametrize("family", ["gptj", "gpt2"])
def test_a_turn_is_the_published_equation(family):
    model = exact(family)
    keys, gradients = factors(model, FACTS)
    wanted = -1e-3 * standard(keys, keys).square().sum(1, keepdim=True) * standard(gradients, gradients)
    outcome = make().edit(model, FACTS)
    change = dense(model, outcome.patch)
    system = keys.T @ keys + torch.eye(keys.shape[1], dtype=torch.float64)
    assert is_close(change, (system.inverse() @ keys.T @ wanted).T)
    dual = keys @ keys.T + torch.eye(len(keys), dtype=torch.float64)
    assert is_close(change, (keys.T @ dual.inverse() @ wanted).T), "the dual system has the same solution"
    assert torch.linalg.matrix_rank(change, rtol=1e-6) <= len(keys)


def test_whitened_gradients_are_put_into_the_same_equation():
    model = exact()
    keys, gradients = factors(model, FACTS)
    seen = RunningMoments.none(gradients.shape[1], with_products=True).joined(gradients)
    for normaliser, white in (("shrunk", seen.whitened(gradients)), ("whitened", standard(gradients, gradients))):
        wanted = -1e-3 * standard(keys, keys).square().sum(1, keepdim=True) * white
        change = dense(model, make("stableedit", normaliser=normaliser).edit(model, FACTS).patch)
        system = keys.T @ keys + torch.eye(keys.shape[1], dtype=torch.float64)
        assert is_close(change, (system.inverse() @ keys.T @ wanted).T)


def test_the_change_is_linear_in_the_learning_rate():
    model = exact()
    one, two = (make(learning_rate=rate).edit(model, FACTS).patch for rate in (1e-3, 2e-3))
    assert is_close(dense(model, two), 2 * dense(model, one), 1e-6)
    assert make(learning_rate=0.0).edit(model, FACTS).patch.is_empty()


def test_the_loss_falls_as_the_factors_say():
    model = exact()
    keys, gradients = factors(model, FACTS, is_everywhere=True)
    patch = make(learning_rate=1e-5).edit(model, FACTS).patch
    predicted = float((gradients * (keys @ dense(model, patch).T)).sum())

    def loss(sign):
        with model.patched(WeightPatch(patch.deltas, patch.manifest) * sign), torch.no_grad():
            rows = [model.encode(fact.prompt, fact.target_new) for fact in FACTS]
            return float(answer_losses(model, rows, loss_on="answer")[0].sum())

    assert predicted < 0
    assert (loss(1.0) - loss(-1.0)) / 2 == pytest.approx(predicted, rel=2e-3), "the matrix changes at every token"


def test_neither_the_order_of_facts_nor_the_size_of_a_pass_matters():
    model = exact()
    change = dense(model, make().edit(model, FACTS).patch)
    assert is_close(dense(model, make().edit(model, FACTS[::-1]).patch), change, 1e-6)
    assert is_close(dense(model, make(forward_batch_size=1).edit(model, FACTS).patch), change, 1e-6)


def test_without_numbers_the_scale_of_the_loss_and_of_the_matrix_do_not_matter():
    model = exact()
    relative = {"learning_rate": None, "ridge": None, "relative_ridge": 1e-9, "step": 0.5}
    outcome = make(**relative).edit(model, FACTS)
    keys, _ = factors(model, FACTS)
    moved = keys @ dense(model, outcome.patch).T
    wrote = keys @ weight_as_out_in(model.sites.module("mlp.down", 1)).detach().T
    ratio = float(moved.square().sum(1).mean().sqrt() / wrote.square().sum(1).mean().sqrt())
    assert 0.3 < ratio < 0.8, "about half of what the matrix writes"


def test_weights_of_one_shape_can_share_their_statistics():
    model = exact()
    both = make(layers=[0, 1], by_shape=True).edit(model, FACTS).state
    [group] = both.groups.values()
    together = torch.cat([factors(model, FACTS, layer)[1] for layer in (0, 1)])
    torch.testing.assert_close(group.gradients.mean, together.mean(0), atol=1e-6, rtol=1e-4)
    assert group.gradients.count == len(together)
    assert len(make(layers=[0, 1]).edit(model, FACTS).state.groups) == 2


def test_further_passes_take_the_facts_that_do_not_hold():
    model = exact()
    once = make(learning_rate=None, step=0.5).edit(model, FACTS)
    often = make(learning_rate=None, step=0.5, rounds=4).edit(model, FACTS)
    assert often.diagnostics.facts["passes"] > 1
    scores = {}
    for name, outcome in (("once", once), ("often", often)):
        with model.patched(outcome.patch):
            found = model.score([fact.prompt for fact in FACTS], [fact.target_new for fact in FACTS])
            scores[name] = sum(one.log_prob for one in found)
    assert scores["often"] > scores["once"]
    counts = [outcome.state.groups[next(iter(once.state.groups))].gradients.count for outcome in (once, often)]
    assert counts[0] == counts[1], "a fact is counted once"


def test_what_is_spared_is_not_moved():
    model, request = exact(), tiny.requests(1)[0]
    editor = make(learning_rate=None, spare=True, text=tiny.text_file(), warm_up=512)
    change = dense(model, editor.edit(model, [request]).patch)
    module = model.sites.parameter_name("mlp.down", 1).removesuffix(".weight")
    basis = spared_directions(model, [request], [module], seed=0)[module].double()
    keys, _ = factors(model, [request])
    assert basis.shape[1] > 10
    assert (change @ basis).norm() < 1e-5 * (change @ keys.T).norm()


# What is carried


def test_the_next_turn_is_normalised_by_all_that_was_met():
    model, editor = exact(), make()
    first = editor.edit(model, FACTS[:2])
    before = factors(model, FACTS[:2])
    with model.patched(first.patch):
        second = editor.edit(model, FACTS[2:], first.state)
        keys, gradients = factors(model, FACTS[2:])
    seen = torch.cat([before[0], keys]), torch.cat([before[1], gradients])
    wanted = -1e-3 * standard(keys, seen[0]).square().sum(1, keepdim=True) * standard(gradients, seen[1])
    system = keys.T @ keys + torch.eye(keys.shape[1], dtype=torch.float64)
    assert is_close(dense(model, second.patch), (system.inverse() @ keys.T @ wanted).T)


@pytest.mark.parametrize(
    "options", [{}, {"normaliser": "whitened"}, {"by_shape": True, "layers": [0, 1], "history": True}]
)
def test_a_sequence_goes_on_from_a_file_as_if_it_had_never_ended(options, tmp_path):
    model, editor = exact(), make(**options)
    first = editor.edit(model, FACTS[:2])
    first.state.save(tmp_path / "state")
    again = RunningFactors.load(tmp_path / "state")
    with model.patched(first.patch):
        kept, resumed = (make(**options).edit(model, FACTS[2:], state) for state in (first.state, again))
    for name, tensor in kept.patch.tensors().items():
        assert torch.equal(tensor, resumed.patch.tensors()[name])
    for name, tensor in kept.state.tensors().items():
        assert torch.equal(tensor, resumed.state.tensors()[name])


def test_earlier_places_can_be_asked_to_stay():
    model = exact()
    first = make(history=True).edit(model, FACTS[:2])
    keys, _ = factors(model, FACTS[:2])
    with model.patched(first.patch):
        moved = [
            float((keys @ dense(model, make(history=on).edit(model, FACTS[2:], first.state).patch).T).norm())
            for on in (True, False)
        ]
        # The state has keys either way; an editor without the option drops none of them.
    assert torch.allclose(first.state.keys[model.sites.parameter_name("mlp.down", 1)].rows, keys, atol=1e-5)
    forgetful = make().edit(model, FACTS[:2]).state
    with model.patched(first.patch):
        alone = float((keys @ dense(model, make().edit(model, FACTS[2:], forgetful).patch).T).norm())
    assert moved[0] < alone


def test_a_warm_up_counts_and_writes_nothing():
    model = exact()
    editor = make(warm_up=512, text=tiny.text_file())
    outcome = editor.edit(model, FACTS[:1])
    [group] = outcome.state.groups.values()
    assert group.gradients.count > 400
    assert editor.edit(model, FACTS[:1]).state.tensors().keys() == outcome.state.tensors().keys()


def test_one_token_is_too_few_to_normalise_by():
    model = exact()
    one = EditRequest("The capital of France is", "Rome")
    assert len(model.encode(one.prompt, one.target_new).target_ids) == 1
    with pytest.raises(DataError, match="too few tokens") as raised:
        make().edit(model, [one])
    assert "warm_up" in str(raised.value)


@pytest.mark.parametrize("state", ["another method", "another layer", "another normaliser"])
def test_a_foreign_state_is_refused_before_anything_is_computed(state, monkeypatch):
    model = exact()
    found = {
        "another method": lambda: EditedKeys({1: EarlierKeys.none(128)}),
        "another layer": lambda: make(layers=[0]).edit(model, FACTS).state,
        "another normaliser": lambda: make(normaliser="shrunk").edit(model, FACTS).state,
    }[state]()
    monkeypatch.setattr(model, "logits_at", lambda *_: pytest.fail("computed"))
    with pytest.raises(ConfigError, match="state"):
        make().edit(model, FACTS, found)
