"""KE's own identities: the gates, the bounds, the rank, and the constraint that training keeps."""

from __future__ import annotations

import random

import pytest
import torch

import tiny
from palimpsest import DataError, EditRequest, method
from palimpsest.methods.ke import condition_text
from palimpsest.training.objectives import answer_losses

SMALL = {"layers": [1], "lstm_width": 4, "condition_width": 6, "hidden_width": 5, "initial_share": 0.3}


def build(model, **options):
    """An editor's network in a state as after some training, and its method and options."""
    made = method("ke", preset="none")
    training, _ = made.resolve_training(model, {**SMALL, **options})
    torch.manual_seed(0)
    network = made.build(model, training)
    for conditioner in network.conditioners:
        torch.nn.init.normal_(conditioner.output.parametrizations.weight.original0, std=0.5)
        torch.nn.init.normal_(conditioner.output.bias, std=0.5)
    return made, network, training


def true_gradients(model, request, names):
    sums, counts = answer_losses(model, [model.encode(request.prompt, request.target_new)], loss_on="answer")
    return torch.autograd.grad((sums / counts).sum(), [model.weights.parameters(name)[0] for name in names])


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart"])
def test_a_fresh_editor_is_one_step_of_gradient_descent(family):
    model, request = tiny.tiny_model(family), tiny.requests(1)[0]
    patch = method("ke", preset="none", editor="fresh", strength=0.1).edit(model, [request]).patch
    names = patch.touched()
    assert names and not any(word in name for name in names for word in ("bias", "norm", "shared", "wte"))
    for name, gradient in zip(names, true_gradients(model, request, names), strict=True):
        step = -0.1 * 0.5 * gradient
        assert step.abs().max() > 0
        torch.testing.assert_close(patch.deltas[name].dense(), step, atol=1e-5 * float(step.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("family", ["gptj", "bart"])
def test_the_change_is_the_gated_gradient(family):
    model, requests = tiny.tiny_model(family), tiny.requests(2)
    _, network, _ = build(model, max_scale=2.0)
    updates = network.propose(model, requests)
    h = network.read(model, requests)
    for index, request in enumerate(requests):
        gradients = true_gradients(model, request, [place.name for place in network.places])
        for place, gradient, conditioner in zip(network.places, gradients, network.conditioners, strict=True):
            row, column, other_row, other_column, share = (part[index] for part in conditioner.gates(h))
            a, b = torch.outer(row, column), torch.outer(other_row, other_column)
            # The softmax over rows: each column of A adds up to m times its q.
            torch.testing.assert_close(a.sum(0), len(row) * column, atol=1e-4, rtol=1e-4)
            truth = (2.0 * share * (gradient * a + b)).detach()
            update = updates[place.name]
            found = update.left[index].t() @ update.right[index]
            torch.testing.assert_close(found, truth, atol=1e-4 * float(truth.abs().max()), rtol=1e-3)
            assert bool((found.abs() <= 2.0 * (gradient * a).abs() + 2.0 * b.abs() + 1e-6).all())
            tokens = len(model.encode(request.prompt, request.target_new))
            assert torch.linalg.matrix_rank(found.double(), rtol=1e-5) <= tokens + 1


def test_what_is_read_depends_on_the_old_answer_and_on_no_padding():
    model = tiny.tiny_model("gptj")
    _, network, _ = build(model)
    first, longer = tiny.requests(1)[0], tiny.requests(4)[3]
    assert condition_text(first) == "Paris >> Lyon || The capital of France is"
    together, alone = network.read(model, [first, longer]), network.read(model, [first])
    torch.testing.assert_close(together[:1], alone)
    other = EditRequest(first.prompt, first.target_new, subject=first.subject, target_old="Rome")
    assert (network.read(model, [other]) - alone).abs().max() > 1e-4
    with pytest.raises(DataError, match="target_old"):
        method("ke", preset="none", editor="fresh").edit(model, [EditRequest(first.prompt, "Lyon")])


def test_a_scale_of_zero_changes_nothing():
    model = tiny.tiny_model("gptj")
    _, network, _ = build(model, max_scale=0.0)
    assert not any(update.left.any() for update in network.propose(model, tiny.requests(1)).values())


def test_the_multiplier_rises_while_the_constraint_is_violated_and_is_never_negative():
    model = tiny.tiny_model("gptj")
    examples = method("ke", preset="none").examples(model, tiny.trainable_requests(2))
    for margin, direction in ((0.0, 1), (1e3, -1)):
        made, network, training = build(model, margin=margin)
        objective = made.objective(model, network, training)
        losses = objective.losses(examples, random.Random(0))
        losses["loss"].backward()
        excess = losses["locality"].item() - margin
        assert excess * direction > 0
        assert network.multiplier.grad.item() == pytest.approx(-excess, rel=1e-5)
        # To the network the penalty is the multiplier times the divergence, and the multiplier a constant.
        assert losses["loss"].item() == pytest.approx(losses["edit"].item())
        optimizer = torch.optim.Adam([network.multiplier], lr=2.0)
        optimizer.step()
        objective.after_step()
        assert (network.multiplier.item() > 1.0) if direction > 0 else network.multiplier.item() == 0.0
        assert objective.groups[0]["params"] == [network.multiplier] and not objective.groups[0]["is_clipped"]


def test_the_margin_only_shrinks_and_stops_at_its_least():
    _, network, _ = build(tiny.tiny_model("gptj"), margin=1e-3, least_margin=5e-4)
    margins = []
    for answered in (0.5, 0.95, 0.2, 1.0, 1.0, 1.0, 1.0):
        network.shrink_margin({"answered": answered})
        margins.append(float(network.margin))
    assert margins == pytest.approx([1e-3, 8e-4, 8e-4, 6.4e-4, 5.12e-4, 5e-4, 5e-4])


def test_embeddings_that_are_not_trained_are_not_saved():
    model = tiny.tiny_model("gptj")
    assert "embedding" in build(model)[1].state_dict()
    assert "embedding" not in build(model, trains_embeddings=False)[1].state_dict()


def test_training_makes_the_edits_take():
    model = tiny.tiny_model("gptj")
    options = {**SMALL, "steps": 6, "examples_per_step": 4, "validate_every": 3, "initial_share": 0.01}
    curve = method("ke", preset="none").train(model, tiny.trainable_requests(), options).record.curve
    assert curve[-1]["validation"]["edit"] < curve[0]["validation"]["edit"]
    assert {"multiplier", "margin", "plain"} < set(curve[0]["validation"])
