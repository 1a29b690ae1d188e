"""Projections on directions of low curvature against autograd and float64, and what CrispEdit carries on."""

from __future__ import annotations

import pytest
import torch

import tiny
from palimpsest import ConfigError, EditRequest, method
from palimpsest.methods.crispedit import EditFactors
from palimpsest.methods.edited_keys import EditedKeys
from palimpsest.models import Encoded, Point
from palimpsest.patches.weights import LowRank
from palimpsest.statistics import Cache, GivenText, collect, open_text
from palimpsest.statistics.subspaces import Spectrum, decompose, lowest_energy
from palimpsest.training import GRADIENTS, LowCurvatureSteps, WeightPlace, joined, low_curvature, text_factors, united
from palimpsest.training.constraint import Ball
from palimpsest.training.copies import TrainingCopies
from palimpsest.training.objectives import answer_losses

KEYS = tiny.second_moments()
FEW = {**KEYS, "layers": [1], "learning_rate": 1e-2, "epochs": 8, "stop_loss": 0.05, "spare": False, "energy": 0.5}
FACTS = [EditRequest("The capital of France is", "Rome", id="a"), EditRequest("Anna was born in", "Oslo", id="b")]


def make(name="crispedit", **options):
    return method(name, preset="none", **{**FEW, **options})


def moment(width, seed, tokens=200):
    """A second moment with directions of very different energy, in float64."""
    rows = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)).double()
    rows = rows * torch.logspace(0, -3, width).double()
    return rows.T @ rows / tokens


A, B = moment(12, 0), moment(7, 1)
DELTA = torch.randn(7, 12, generator=torch.Generator().manual_seed(2)).double()
OTHER = torch.randn(7, 12, generator=torch.Generator().manual_seed(3)).double()


def projector(energy=0.9, **options):
    return low_curvature(decompose(A), decompose(B), energy, **options)


def test_it_is_an_orthogonal_projection():
    found = projector()
    once = found.apply(DELTA)
    assert 0 < once.norm() < DELTA.norm()
    torch.testing.assert_close(found.apply(once), once, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close((once * OTHER).sum(), (DELTA * found.apply(OTHER)).sum(), rtol=1e-12, atol=1e-12)


def test_the_same_as_the_kronecker_product_written_out():
    """Against the eigenvectors of B (x) A themselves, (84, 84): those below the threshold span the subspace."""
    values, vectors = torch.linalg.eigh(torch.kron(B, A))
    share = values.flip(0).cumsum(0) / values.sum()
    theta = values.flip(0)[int((share < 0.9).sum())]
    low = vectors[:, values < theta - 1e-12]
    found = projector(0.9)
    assert int(found.kept.sum()) == low.shape[1]
    wanted = (low @ (low.T @ DELTA.flatten())).reshape(7, 12)
    torch.testing.assert_close(found.apply(DELTA), wanted, rtol=1e-9, atol=1e-10)
    # Nothing that is kept curves as much as theta, and its cost is that of the quadratic form itself.
    assert torch.trace(B @ wanted @ A @ wanted.T) <= theta * wanted.square().sum()
    assert found.cost(DELTA) == pytest.approx(float(torch.trace(B @ DELTA @ A @ DELTA.T)), rel=1e-10)
    assert found.facts()["curvature_kept"] == pytest.approx(float(values[values < theta - 1e-12].sum() / values.sum()))
    assert found.facts()["curvature_kept"] <= 0.1


def test_equal_gradients_give_the_null_space_of_the_inputs():
    """With B = I it is AlphaEdit's projector on the right."""
    inputs, same = decompose(A), Spectrum(torch.ones(7).double(), torch.eye(7).double())
    found = low_curvature(inputs, same, 0.9)
    kept = inputs.vectors[:, found.kept[0]]
    assert 0 < kept.shape[1] < 12 and (found.kept == found.kept[:1]).all()
    torch.testing.assert_close(found.apply(DELTA), DELTA @ kept @ kept.T)
    basis = lowest_energy(inputs, 0.1).basis
    torch.testing.assert_close(found.apply(DELTA) @ basis, torch.zeros(7, basis.shape[1]).double(), atol=1e-12, rtol=0)


def test_inputs_that_are_spared_are_written_nothing_for():
    spared = torch.linalg.qr(torch.randn(12, 3, generator=torch.Generator().manual_seed(4)).double())[0]
    found = projector(0.5, spared=spared)
    once = found.apply(DELTA)
    torch.testing.assert_close(once @ spared, torch.zeros(7, 3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.apply(once), once)
    assert once.norm() > 0.1
    assert int(projector(0, spared=spared).kept.sum()) == 7 * 9


def test_a_change_of_scale_of_the_loss_moves_nothing():
    scaled = low_curvature(decompose(A), decompose(9.0 * B), 0.9)
    assert torch.equal(scaled.kept, projector(0.9).kept)


def test_everything_or_nothing():
    assert projector(0).kept.all()
    torch.testing.assert_close(projector(0).apply(DELTA), DELTA)
    with pytest.raises(ConfigError, match="No direction is left"):
        low_curvature(Spectrum(torch.ones(3), torch.eye(3)), Spectrum(torch.ones(2), torch.eye(2)), 0.5)
    # All the energy is given up: what is left has none, or is refused.
    dead = Spectrum(torch.tensor([0.0, 1.0]), torch.eye(2))
    assert low_curvature(dead, Spectrum(torch.ones(2), torch.eye(2)), 1.0).kept.tolist() == [[True, False]] * 2


def test_moments_of_texts_and_edits_are_those_of_both_together():
    first, second = (torch.randn(n, 5, generator=torch.Generator().manual_seed(n)).double() for n in (30, 20))
    found = joined(decompose(first.T @ first / 30), 30, second.T @ second, 20)
    rows = torch.cat([first, second])
    torch.testing.assert_close((found.vectors * found.values) @ found.vectors.T, rows.T @ rows / 50)


def test_bases_are_united():
    first, second = (torch.linalg.qr(torch.randn(9, n, generator=torch.Generator().manual_seed(n)))[0] for n in (2, 3))
    both = united({"a": first}, {"a": torch.cat([second[:, :2], first[:, :1]], dim=1), "b": second})
    assert both["a"].shape == (9, 4) and both["b"] is second
    torch.testing.assert_close(both["a"].T @ both["a"], torch.eye(4))
    for basis in (first, second[:, :2]):
        torch.testing.assert_close(both["a"] @ (both["a"].T @ basis), basis)


@pytest.mark.parametrize("family", ["gptj", "gpt2"])
def test_the_factors_are_autograds(family):
    """A is our second moment on the tokens that predict, B that of the gradients of the summed loss."""
    model = tiny.tiny_model(family, dtype=torch.float64)
    rows = [model.encode("The capital of France is Paris and").ids, model.encode("Anna was born in").ids]
    keys, gradients = [], []
    for ids in rows:
        kept = []
        layer = model.sites.module("mlp.down", 1)
        handle = layer.register_forward_hook(lambda _m, read, out, kept=kept: kept.append((read[0], out)))
        with torch.enable_grad():
            sums, _ = answer_losses(model, [Encoded(ids[:1], ids[1:])], loss_on="answer")
        handle.remove()
        [(read, wrote)] = kept
        keys.append(read[0, :-1].detach())
        gradients.append(torch.autograd.grad(sums.sum(), [wrote])[0][0, :-1])
    place = WeightPlace("mlp.down", 1, model.sites.parameter_name("mlp.down", 1))
    found = text_factors(model, rows, [place])[place.name]
    for one, wanted in zip(found, (torch.cat(keys), torch.cat(gradients)), strict=True):
        wanted = wanted.double()
        torch.testing.assert_close(one.double().T @ one.double(), wanted.T @ wanted, rtol=1e-4, atol=1e-7)
        # trace(B) is the mean squared length, whatever the length of the texts.
        assert float(one.square().sum()) == pytest.approx(float(wanted.square().sum()), rel=1e-5)
        assert len(one) == sum(len(ids) - 1 for ids in rows)


def test_gradients_are_collected_and_cached_as_keys_are(tmp_path):
    model, cache = tiny.tiny_model("gptj"), Cache(tmp_path)
    text = GivenText("lines", tiny.text_lines())
    point = Point("mlp.down", 1)
    options = {"max_tokens": 400, "tolerance": None, "vectors": GRADIENTS}
    first = collect(model, [point], text, cache=cache, **options)[point]
    second = collect(model, [point], text, cache=cache, **options)[point]
    assert second.is_cached and torch.equal(first.moment.sum(), second.moment.sum())
    assert first.moment.width == model.sites.d_model and float(first.moment.mean().trace()) > 0
    # Other weights behind the layer are another loss.
    other = tiny.tiny_model("gptj")
    with torch.no_grad():
        other.module.lm_head.weight.mul_(1.5)
    assert not collect(other, [point], text, cache=cache, **options)[point].is_cached


@pytest.mark.parametrize("family", ["gptj", "gpt2"])
def test_no_step_leaves_the_directions(family):
    """In the eigenbasis; Adam on projected gradients, as published, leaves them by half of its first step."""
    model = tiny.tiny_model(family)
    inside = make().edit(model, FACTS).diagnostics.facts["curvature"]
    published = make(adam_in="weights", epochs=1).edit(model, FACTS).diagnostics.facts["curvature"]
    assert set(inside) == set(published) == {model.sites.parameter_name("mlp.down", 1)}
    for one in inside.values():
        assert one["outside"] < 1e-5 and one["cost"] > 0 and 0 < one["directions_kept"] < 1
    assert all(one["outside"] > 0.05 for one in published.values())


@pytest.mark.parametrize("constraint", ["linf", "l2"])
def test_the_ball_and_the_directions_hold_together(constraint):
    model = tiny.tiny_model("gptj")
    outcome = make("ft-l", project="curvature", constraint=constraint, radius=0.004, epochs=6).edit(model, FACTS)
    [delta] = [one.dense() for one in outcome.patch.deltas.values()]
    size = delta.abs().max() if constraint == "linf" else delta.norm()
    assert 0.0008 < float(size) <= 0.004 * (1 + 1e-4)
    [facts] = outcome.diagnostics.facts["curvature"].values()
    assert facts["outside"] < 1e-4


def test_steps_with_all_directions_are_those_of_plain_gradient_descent():
    """A rotation commutes with steps along the gradient; with nothing given up they are the same."""
    model = tiny.tiny_model("gptj")
    options = {"optimizer": "sgd", "learning_rate": 0.05, "epochs": 4}
    plain = make(project="none", **options).edit(model, FACTS).patch
    turned = make(energy=0.0, **options).edit(model, FACTS).patch
    for name, delta in plain.deltas.items():
        torch.testing.assert_close(turned.deltas[name].dense(), delta.dense(), rtol=1e-3, atol=1e-6)


def test_the_loss_of_a_linear_layer_costs_half_of_the_form():
    """Squared loss behind one linear layer: the second-order cost is exact, whatever the change."""
    rows = torch.randn(50, 12, generator=torch.Generator().manual_seed(5)).double()
    # The targets are what is written, so that the gradient is none and the curvature of each output is one.
    spectrum = decompose(rows.T @ rows / 50)
    found = low_curvature(spectrum, Spectrum(torch.ones(7).double(), torch.eye(7).double()), 0.5)
    loss = 0.5 * (rows @ DELTA.T).square().sum(dim=1).mean()
    assert float(loss) == pytest.approx(0.5 * found.cost(DELTA), rel=1e-12)


@pytest.mark.parametrize("name", ["ft-l", "locft", "lora"])
def test_others_write_nothing_for_the_strongest_inputs(name):
    model = tiny.tiny_model("gptj")
    sites = {"sites": ["mlp.down"]} if name == "lora" else {"parameters": "mlp.down", "append_eos": False}
    outcome = make(name, project="inputs", energy=0.5, epochs=4, **sites).edit(model, FACTS)
    spectrum = collect(
        model, [Point("mlp.down", 1, "input")], open_text(KEYS["text"]), **{**tiny.statistics(), "row_length": None}
    )
    [found] = spectrum.values()
    basis = lowest_energy(decompose(found.moment.mean()), 0.5).basis.float()
    [delta] = [one.dense() for one in outcome.patch.deltas.values()]
    assert basis.shape[1] >= 1 and float((delta @ basis).norm() / delta.norm()) < 1e-4
    if name == "lora":
        assert all(isinstance(one, LowRank) for one in outcome.patch.deltas.values())


def test_earlier_edits_are_carried_on():
    model, editor = tiny.tiny_model("gptj"), make()
    first = editor.edit(model, FACTS[:1])
    assert isinstance(first.state, EditFactors)
    [count] = first.state.counts.values()
    assert count == len(model.encode(FACTS[0].prompt, FACTS[0].target_new).ids) - 1
    saved = EditFactors.from_tensors(first.state.tensors())
    with model.patched(first.patch):
        second = editor.edit(model, FACTS[1:], saved)
        without = make(history=0.0).edit(model, FACTS[1:])
    [name] = second.state.counts
    assert second.state.counts[name] > count
    assert not torch.equal(second.patch.deltas[name].dense(), without.patch.deltas[name].dense())
    # With weight enough, what was read at the earlier edit's tokens is hardly written for any more.
    with model.patched(first.patch):
        held = make(history=1e6, energy=0.9).edit(model, FACTS[1:], saved)
        free = make(history=0.0, energy=0.9).edit(model, FACTS[1:])
        ids = model.encode(FACTS[0].prompt, FACTS[0].target_new).ids
        place = WeightPlace("mlp.down", 1, name)
        keys, gradients = text_factors(model, [ids], [place])[name]

    def moved(outcome):
        delta = outcome.patch.deltas[name].dense()
        return float((gradients @ delta @ keys.T).norm() / delta.norm())

    assert moved(held) < 0.5 * moved(free)


def test_states_of_others_are_refused():
    model = tiny.tiny_model("gptj")
    state = make(epochs=1).edit(model, FACTS[:1]).state
    with pytest.raises(ConfigError, match="not of this method"):
        make(layers=[0]).edit(model, FACTS[1:], state)
    with pytest.raises(ConfigError, match="not of this method"):
        make().edit(model, FACTS[1:], EditedKeys({}))


@pytest.mark.parametrize(
    ("name", "family", "options", "message"),
    [
        ("ft", "gptj", {"parameters": "all", "layers": "all", "project": "curvature"}, "Only linear layers"),
        ("ft-l", "t5", {"parameters": "encoder.mlp.down", "project": "curvature"}, "no loss in an encoder-decoder"),
        ("ft-l", "t5", {"project": "inputs"}, "reads answers"),
        ("lora", "gptj", {"project": "curvature"}, "project"),
        ("crispedit", "gptj", {"energy": 1.5}, "energy"),
        ("crispedit", "gptj", {"text": "no/where.txt"}, "text"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(name, family, options, message, monkeypatch):
    model = tiny.tiny_model(family)
    monkeypatch.setattr(model, "forward", None)
    monkeypatch.setattr(model, "logits_at", None)
    with pytest.raises(Exception, match=message):
        make(name, **options).edit(model, FACTS)


def test_steps_begin_and_end_with_the_copies():
    model = tiny.tiny_model("gptj")
    name = model.sites.parameter_name("mlp.down", 1)
    width = model.module.get_parameter(name).shape
    spectra = [decompose(moment(n, n)) for n in (width[1], width[0])]
    with TrainingCopies(model, [name], ball=Ball()) as copies:
        steps = LowCurvatureSteps(copies, {name: low_curvature(*spectra, 0.5)})
        [turned] = steps.masters()
        assert turned.shape == width and not turned.any()
        steps.after_step()
        assert copies.deltas() == {}
