"""MEND's own identities: what an untrained network does, what it must never do, and that training makes it edit."""

from __future__ import annotations

import random

import pytest
import torch

import tiny
from palimpsest import method
from palimpsest.methods.mend import SeenInTraining
from palimpsest.training.gradient_factors import Factors
from palimpsest.training.objectives import answer_losses

TRAINING = {"layers": [1, 2], "rank": 8}


def network(model, **options):
    return build(model, {**TRAINING, **options})


def build(model, options):
    made = method("mend", preset="none")
    torch.manual_seed(0)
    return made.build(model, made.resolve_training(model, options)[0])


@pytest.mark.parametrize("family", ["gpt2", "gptj", "t5"])
def test_a_fresh_editor_is_one_step_of_gradient_descent(family):
    model, request = tiny.tiny_model(family), tiny.requests(1)[0]
    patch = method("mend", preset="none", editor="fresh", strength=50.0).edit(model, [request]).patch
    names = patch.touched()
    assert len(names) == (8 if family == "t5" else 6)
    weights = [model.weights.parameters(name)[0] for name in names]
    sums, counts = answer_losses(model, [model.encode(request.prompt, request.target_new)], loss_on="answer")
    for name, gradient in zip(names, torch.autograd.grad((sums / counts).sum(), weights), strict=True):
        step = -50.0 * 1e-4 * gradient
        assert step.abs().max() > 0
        torch.testing.assert_close(patch.deltas[name].dense(), step, atol=1e-5 * float(step.abs().max()), rtol=1e-4)


def test_the_change_has_at_most_one_rank_for_every_token_and_edits_add_up():
    model, facts = tiny.tiny_model("gptj"), tiny.requests(3)
    editor = method("mend", preset="none", editor="fresh")
    alone = [editor.edit(model, [fact]).patch for fact in facts]
    together = editor.edit(model, facts).patch
    lengths = [len(model.encode(fact.prompt, fact.target_new)) for fact in facts]
    for name in together.touched():
        assert all(patch.deltas[name].rank <= length for patch, length in zip(alone, lengths, strict=True))
        torch.testing.assert_close(together.deltas[name].dense(), sum(patch.deltas[name].dense() for patch in alone))


def test_running_moments_are_those_of_all_tokens_at_once():
    draw = torch.Generator().manual_seed(0)
    batches = [100.0 + torch.randn(size, 5, generator=draw) for size in (1, 7, 0, 30)]
    moments = SeenInTraining(5)
    assert torch.equal(moments.normalised(batches[1]), batches[1])
    for batch in batches:
        moments.update(batch)
    whole = torch.cat(batches).double()
    torch.testing.assert_close(moments.mean, whole.mean(0))
    torch.testing.assert_close((moments.squares / (moments.count - 1)).sqrt(), whole.std(0))
    torch.testing.assert_close(
        moments.normalised(batches[1]), ((batches[1] - whole.mean(0)) / whole.std(0)).float(), atol=1e-4, rtol=1e-4
    )


def test_an_entry_that_never_moved_is_not_blown_up_when_it_moves():
    moments = SeenInTraining(2)
    moments.update(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    assert moments.normalised(torch.tensor([[2.0, 1.0]])).abs().max() < 500


def test_tokens_that_take_no_part_get_and_give_nothing():
    shape = network(tiny.tiny_model("gptj"), step_size=0.1).shapes["32x128"]
    torch.nn.init.normal_(shape.blocks[0].left)
    torch.nn.init.normal_(shape.blocks[0].shift)
    draw = torch.Generator().manual_seed(0)
    inputs, gradients = torch.randn(1, 4, 128, generator=draw), torch.randn(1, 4, 32, generator=draw)
    mask = torch.tensor([[True, True, True, False]])
    outputs = shape(Factors(inputs * mask[..., None], gradients * mask[..., None], mask), 0)
    short = build_again(shape)(Factors(inputs[:, :3], gradients[:, :3], mask[:, :3]), 0)
    for with_padding, without in zip(outputs, short, strict=True):
        assert not with_padding[:, 3].any()
        torch.testing.assert_close(with_padding[:, :3], without)


def build_again(shape):
    """The same parameters with statistics that have seen nothing."""
    for moments in (shape.inputs, shape.gradients):
        for buffer in moments.buffers():
            buffer.zero_()
    return shape


def test_weights_of_one_shape_share_the_network_but_not_its_scales():
    made = network(tiny.tiny_model("gptj"))
    assert sorted(made.shapes) == ["128x32", "32x128"]
    shape = made.shapes["32x128"]
    torch.nn.init.normal_(shape.blocks[0].left)
    factors = Factors(torch.randn(1, 3, 128), torch.randn(1, 3, 32), torch.ones(1, 3, dtype=torch.bool))
    shape.eval()
    first, second = (torch.cat(shape(factors, row), -1) for row in (0, 1))
    assert torch.equal(first, second)
    with torch.no_grad():
        shape.blocks[0].scales[1] *= 2
    assert not torch.equal(first, torch.cat(shape(factors, 1), -1))


def test_a_step_of_zero_changes_nothing():
    model = tiny.tiny_model("gptj")
    made = method("mend", preset="none", editor="fresh")
    made._modules[("fresh", model.fingerprint()["weights"], 0)] = network(model, step_size=0.0).eval()
    assert made.edit(model, tiny.requests(1)).patch.is_empty()


@pytest.mark.parametrize("family", ["gptj", "t5"])
def test_the_networks_gradient_is_that_of_finite_differences(family):
    model = tiny.tiny_model(family)
    made = method("mend", preset="none")
    options = {**TRAINING, "layers": [1], "step_size": 0.01, "normalise": False, "initial_deviation": 0.3}
    training, _ = made.resolve_training(model, options)
    module = made.build(model, training)
    for block in (block for shape in module.shapes.values() for block in shape.blocks):
        torch.nn.init.normal_(block.left, std=0.05)
        torch.nn.init.normal_(block.shift, std=0.5)
    objective = made.objective(model, module, training)
    examples = made.examples(model, tiny.trainable_requests(2))

    def loss():
        return objective.losses(examples, random.Random(0))["loss"]

    loss().backward()
    for name, parameter in module.named_parameters():
        norm = float(parameter.grad.norm())
        direction, size = parameter.grad / norm, 1e-3 / max(norm, 1.0)
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter += sign * size * direction
                values.append(float(loss()))
                parameter -= sign * size * direction
        assert (values[0] - values[1]) / (2 * size) == pytest.approx(norm, rel=0.05, abs=5e-3), name
