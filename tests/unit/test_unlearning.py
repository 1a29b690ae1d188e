"""Losses that forget against hand-computed values and autograd, and F-Learning with them as its first learner."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

import tiny
from palimpsest import ConfigError, method
from palimpsest.methods import unlearning
from palimpsest.methods.catalogue import FORGETTERS, forgetter
from palimpsest.models.hooks import Point
from palimpsest.training.unlearning import npo, rmu, simnpo, undial, unlearning_of

V = 1000
PLAIN = {"spare": False, "keep_weight": 0.0}
LEARN = {"learning_rate": 1e-2, "epochs": 5, "parameters": "mlp.down", "layers": [1], "spare": False}


def logits_of(probability):
    """(1, V), the first word with that probability, all others alike."""
    rest = math.log((1 - probability) / (V - 1))
    return torch.tensor([math.log(probability)] + [rest] * (V - 1), dtype=torch.float64)[None]


def slope(loss, probability):
    """|dF/dz| at one place whose old answer has that probability."""
    z = logits_of(probability).requires_grad_()
    [gradient] = torch.autograd.grad(loss(z), [z])
    return gradient


def nll(z):
    return -z.log_softmax(-1)[:, 0]


# The losses


def test_npo_where_nothing_has_moved_is_ascent_on_the_sum():
    for sharpness in (0.1, 1.0, 4.5):
        sums = torch.tensor([3.0, 0.5], dtype=torch.float64, requires_grad=True)
        found = npo(sums, sums.detach(), sharpness)
        assert found.tolist() == pytest.approx([2 * math.log(2) / sharpness] * 2)
        assert torch.autograd.grad(found.sum(), [sums])[0].tolist() == pytest.approx([-1.0, -1.0])
    assert 2 * math.log(2) / 0.1 == pytest.approx(13.863, abs=1e-3)


def test_npo_without_sharpness_is_ascent_everywhere():
    sums = torch.tensor([0.1, 5.0, 50.0], dtype=torch.float64, requires_grad=True)
    found = npo(sums, torch.zeros(3, dtype=torch.float64), 1e-6)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), [sums])[0], -torch.ones(3).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sharpness", [0.5, 4.5])
def test_simnpo_weighs_the_likelihoods_gradient(sharpness):
    means = torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    [found] = torch.autograd.grad(simnpo(means, sharpness, 0.2).sum(), [means])
    torch.testing.assert_close(found, -2 * torch.sigmoid(-sharpness * (means.detach() - 0.2)))
    # The card of the losses: it stops near one nat a token.
    weights = 2 * torch.sigmoid(-4.5 * torch.tensor([0.1, 0.5, 1.0]))
    assert weights.tolist() == pytest.approx([0.78, 0.19, 0.022], abs=0.006)


@pytest.mark.parametrize("probability", [0.999, 0.5, 0.01])
def test_undial_goes_to_the_lowered_distribution_and_stops_there(probability):
    z, before, sharpness = logits_of(probability), logits_of(0.999), 10.0
    z.requires_grad_()
    [found] = torch.autograd.grad(undial(z, before, torch.tensor([0]), sharpness).sum(), [z])
    target = 0.999 * math.exp(-sharpness) / (1 - 0.999 + 0.999 * math.exp(-sharpness))
    assert found[0, 0].item() == pytest.approx(probability - target, abs=1e-9)
    wanted = torch.tensor([target] + [(1 - target) / (V - 1)] * (V - 1), dtype=torch.float64)
    torch.testing.assert_close(found[0], z.detach().softmax(-1)[0] - wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("probability", "ascent", "half", "whole", "per_token", "lowered"),
    [
        (0.999, 0.001, 0.001, 0.001, 0.001, 0.957),
        (0.9, 0.1, 0.1, 0.095, 0.077, 0.858),
        (0.5, 0.5, 0.48, 0.33, 0.042, 0.457),
    ],
)
def test_what_pushes_on_a_fact_that_is_known(probability, ascent, half, whole, per_token, lowered):
    """Only UNDIAL pushes at once where the old answer is sure."""
    reference = torch.tensor([-math.log(0.999)]).double()
    slopes = [
        slope(lambda z: -nll(z), probability),
        slope(lambda z: npo(nll(z), reference, 0.1), probability),
        slope(lambda z: npo(nll(z), reference, 1.0), probability),
        slope(lambda z: simnpo(nll(z), 4.5, 0.0), probability),
        slope(lambda z: undial(z, logits_of(0.999), torch.tensor([0]), 10.0).sum(), probability),
    ]
    for found, wanted in zip(slopes, (ascent, half, whole, per_token, lowered), strict=True):
        assert float(found.norm()) == pytest.approx(wanted, abs=0.006)


def test_rmu_is_a_mean_over_tokens_and_entries():
    hidden, target = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([0.0, 2.0])
    assert rmu(hidden, target).tolist() == [0.5, 2.0]


# On a model


@pytest.mark.parametrize("loss", ["ascent", "npo", "simnpo", "undial", "rmu"])
def test_a_facts_loss_is_that_of_its_own_answer_and_of_nothing_else(loss):
    model, requests = tiny.tiny_model("gptj", dtype=torch.float64), tiny.requests(3)
    encoded = [model.encode(r.prompt, f"{r.target_new} of the old river") for r in requests]
    made = unlearning_of(
        model, encoded, loss, sharpness=2.0, margin=0.1, ceiling=3.0, scale=2.0, layer=1, seed=0, forward_batch_size=2
    )
    facts = [2, 0, 1]
    with torch.no_grad():
        found = made.losses(model, [encoded[at] for at in facts], facts)
    for row, at in enumerate(facts):
        one = encoded[at]
        batch = model.batch([one])
        places = slice(len(one.prompt_ids) - 1, len(one.ids) - 1)
        seen = []
        handle = model.sites.module("resid", 1).register_forward_hook(
            lambda _m, _i, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        with torch.no_grad():
            logits = model.forward(batch).logits[0, places].double()
        handle.remove()
        labels = torch.tensor(one.target_ids)
        nlls = -logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        means = nlls.mean()
        hidden = seen[0][0, places].double()
        if loss == "rmu":
            target = made.target.double()
            wanted = ((hidden - target) ** 2).mean(-1).mean() / (target**2).mean()
        else:
            wanted = {
                "ascent": -means,
                "npo": torch.tensor(2 * math.log(2) / 2.0),
                "simnpo": simnpo(means, 2.0, 0.1),
                "undial": undial(logits, logits, labels, 2.0).mean(),
            }[loss]
        assert float(found.minimised[row]) == pytest.approx(float(wanted), rel=2e-3)
        assert float(found.per_token[row]) == pytest.approx(float(means), rel=1e-5)
        assert bool(found.takes_part[row]) == (float(means) <= 3.0)


def test_rmus_vector_is_as_long_as_what_the_layer_hands_on():
    model, requests = tiny.tiny_model("gptj"), tiny.requests(2)
    encoded = [model.encode(request.prompt, request.target_old) for request in requests]
    made = unlearning_of(
        model, encoded, "rmu", sharpness=1.0, margin=0.0, ceiling=3.0, scale=2.0, layer=2, seed=0, forward_batch_size=8
    )
    _, read = model.capture([request.prompt for request in requests], [Point("resid", 2)])
    lengths = [float(read[Point("resid", 2)][row, len(one.prompt_ids) - 1].norm()) for row, one in enumerate(encoded)]
    assert float(made.target.norm()) == pytest.approx(2 * sum(lengths) / 2, rel=1e-4)
    assert (made.target < 0).any() and (made.target > 0).any()


def test_the_first_step_of_adam_is_the_same_and_minus_that_of_learning_the_old_answer():
    """Adam is odd in the gradient: with few steps ascent is the negative of a fine-tuned patch."""
    model = tiny.tiny_model("gptj")
    old = [tiny.requests(1)[0].reversed_to_old()]
    step = {"learning_rate": 1e-3, "epochs": 1, "parameters": "mlp.down", "layers": [1], "ceiling": 1e9, **PLAIN}
    towards = method("ft", preset="none", stop_loss=0.0, rank=0, **{k: v for k, v in step.items() if k != "ceiling"})
    [wanted] = towards.edit(model, old).patch.deltas.values()
    # A sharp `simnpo` has no slope left where the answer is as rare as in a random model.
    for name, options in (("grad-diff", {}), ("npo", {}), ("simnpo", {"sharpness": 0.1})):
        [delta] = forgetter(name, **step, **options).edit(model, old).patch.deltas.values()
        # Entries whose gradient is at Adam's epsilon may differ.
        apart = (delta.dense() + wanted.dense()).abs()
        assert float(apart.mean()) < 0.02 * float(wanted.dense().abs().mean())


@cache
def taught_patch():
    """A change by which the tiny model knows its first fact."""
    learning = {**LEARN, "learning_rate": 3e-2, "epochs": 30, "stop_loss": 0.05, "look_again": False}
    old = tiny.requests(1)[0].reversed_to_old()
    return method("ft", preset="none", **learning).edit(tiny.tiny_model("gptj"), [old]).patch


@pytest.mark.parametrize("name", list(FORGETTERS))
def test_a_forgetter_makes_the_answer_less_probable_and_leaves_the_model(name):
    model, old = tiny.tiny_model("gptj"), tiny.requests(1)[0].reversed_to_old()
    taught = taught_patch()
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    with model.patched(taught):
        known = model.score([old.prompt], [old.target_new])[0].log_prob
        outcome = forgetter(name, layers=[1], learning_rate=3e-2, epochs=12, ceiling=2.0, **PLAIN).edit(model, [old])
        with model.patched(outcome.patch):
            gone = model.score([old.prompt], [old.target_new])[0].log_prob
    assert known > -0.5
    assert gone < known - 0.1
    assert set(outcome.diagnostics.losses) == {old.id}
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())


def test_a_fact_that_is_gone_takes_no_further_step():
    model, old = tiny.tiny_model("gptj"), tiny.requests(1)[0].reversed_to_old()
    outcome = forgetter("grad-diff", layers=[1], ceiling=1e-3, **PLAIN).edit(model, [old])
    assert outcome.diagnostics.facts["steps"] == 0 and outcome.patch.is_empty()


def test_adapters_can_forget_too():
    model, old = tiny.tiny_model("gptj"), tiny.requests(1)[0].reversed_to_old()
    patch = forgetter("undial", layers=[1], adapter_rank=2, epochs=3, ceiling=1e9).edit(model, [old]).patch
    assert [delta.rank for delta in patch.deltas.values()] == [2]


def test_forgetters_keep_away_from_namesakes_where_asked(monkeypatch):
    model, old = tiny.tiny_model("gptj"), tiny.requests(3)[2].reversed_to_old()
    asked, real = [], unlearning.spared_directions
    monkeypatch.setattr(
        unlearning, "spared_directions", lambda *given, **more: asked.append(more["alike"]) or real(*given, **more)
    )
    options = {"layers": [1], "epochs": 2, "ceiling": 1e9, "spare": True}
    patches = [forgetter("npo", **options, spare_alike=alike).edit(model, [old]).patch for alike in (0.0, 0.5)]
    assert asked == [0.0, 0.5] and not patches[0].is_same(patches[1])


# As the first learner


def composed(**options):
    shared = {"forget": "npo", "only_mastered": False, "learn_options": LEARN}
    away = {"forget_options": {"layers": [1], "epochs": 2, "ceiling": 1e9}}
    return method("f-learning", preset="none", **{**shared, **away, **options})


def test_a_rate_of_zero_is_plain_learning_bit_for_bit():
    model = tiny.tiny_model("gptj")
    patch = composed(rate=0.0, seed=4).edit(model, tiny.requests(2)).patch
    plain = method("ft", preset="none", seed=4, **LEARN).edit(model, tiny.requests(2)).patch
    assert all(torch.equal(value, patch.tensors()[key]) for key, value in plain.tensors().items())


def test_a_change_away_is_added_whole_and_learning_starts_from_there(tmp_path):
    model, requests = tiny.tiny_model("gptj"), tiny.requests(2)
    outcome = composed().edit(model, requests)
    forget = outcome.patch.parts["forget"]
    old = [request.reversed_to_old() for request in requests]
    away = forgetter("npo", layers=[1], epochs=2, ceiling=1e9, look_again=False).edit(model, old).patch
    assert all(torch.equal(value, forget.tensors()[key]) for key, value in away.tensors().items())
    with model.patched(forget):
        learned = method("ft", preset="none", **LEARN).edit(model, requests).patch
    for name, delta in outcome.patch.deltas.items():
        assert torch.allclose(delta.dense(), forget.deltas[name].dense() + learned.deltas[name].dense(), atol=1e-6)
    assert (outcome.diagnostics.facts["direction"], outcome.diagnostics.facts["rate"]) == ("away", 1.0)
    outcome.patch.save(tmp_path / "first")
    # Its sign goes by who made it, whatever the option says now.
    again = composed(forget="ft", forget_options={}, forget_patch=str(tmp_path / "first")).edit(model, requests)
    assert all(torch.equal(v, again.patch.tensors()[k]) for k, v in outcome.patch.tensors().items())
    towards = method("ft", preset="none", **LEARN).edit(model, old).patch
    towards.save(tmp_path / "towards")
    other = composed(forget_patch=str(tmp_path / "towards")).edit(model, requests)
    assert (other.diagnostics.facts["direction"], other.diagnostics.facts["rate"]) == ("towards", 0.3)


def test_misspelt_forgetters_and_learners_are_named():
    model = tiny.tiny_model("gptj")
    with pytest.raises(ConfigError, match="simnpo"):
        composed(forget="sim-npo").edit(model, tiny.requests(1))
    with pytest.raises(ConfigError, match="no method named 'npo'"):
        composed(learn="npo").edit(model, tiny.requests(1))
    with pytest.raises(ConfigError, match="sharpness"):
        composed(forget_options={"sharpnes": 1.0}).edit(model, tiny.requests(1))
    with pytest.raises(ConfigError, match="its name"):
        composed(forget_options={"loss": "rmu"}).edit(model, tiny.requests(1))
