import copy
import math

import pytest
import torch

import tiny
from palimpsest import ConfigError, EditRequest, load, method
from palimpsest.models.layers import layer_numbers
from palimpsest.training.constraint import Ball, project
from palimpsest.training.copies import TrainingCopies
from palimpsest.training.finetune import SHORTENING, SLACK, FinetuneOptions, _Pace, finetune
from palimpsest.training.objectives import answer_losses

DOWN = "transformer.h.1.mlp.fc_out.weight"


def ft(**options):
    """Plain fine-tuning, of all weights unless told otherwise."""
    return method("ft", preset="none", **{"parameters": "all", "spare": False, "rank": 0, **options})


def plain_loss(module, requests, *, mask_prompt=True):
    """The objective written out with transformers' own labels, one fact at a time."""
    tokenizer, losses = tiny.tokenizer(), []
    for request in requests:
        prompt = tokenizer(request.prompt)["input_ids"]
        ids = torch.tensor([tokenizer(f"{request.prompt} {request.target_new}")["input_ids"]])
        labels = ids.clone()
        if mask_prompt:
            labels[0, : len(prompt)] = -100
        losses.append(module(ids, attention_mask=torch.ones_like(ids), labels=labels).loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_the_loss_is_transformers_own(loss_on):
    model = tiny.tiny_model("gptj")
    requests = tiny.requests()
    encoded = [model.encode(r.prompt, r.target_new) for r in requests]
    sums, counts = answer_losses(model, encoded, loss_on=loss_on)
    expected = plain_loss(model.module, requests, mask_prompt=loss_on == "answer")
    assert (sums / counts).mean().item() == pytest.approx(expected.item(), abs=1e-5)


def test_one_sgd_step_is_minus_the_gradient():
    model = tiny.tiny_model("gptj")
    requests = tiny.requests()
    plain_loss(model.module, requests).backward()
    gradients = {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}
    model.module.zero_grad()
    deltas = ft(optimizer="sgd", learning_rate=0.5, epochs=1).edit(model, requests).patch.deltas
    assert set(deltas) == {name for name, gradient in gradients.items() if gradient.any()}
    for name, delta in deltas.items():
        # Read off as a difference of weights, a small step carries their rounding.
        assert torch.allclose(delta.dense(), -0.5 * gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 3])
def test_gradients_accumulate_to_the_same_step(size):
    model = tiny.tiny_model("gptj")
    whole = ft(optimizer="sgd", learning_rate=0.5, epochs=2).edit(model, tiny.requests()).patch
    parts = ft(optimizer="sgd", learning_rate=0.5, epochs=2, forward_batch_size=size).edit(model, tiny.requests()).patch
    assert torch.allclose(whole.deltas[DOWN].dense(), parts.deltas[DOWN].dense(), atol=1e-5)


def test_token_reduction_weighs_long_answers_more():
    model = tiny.tiny_model("gptj")
    requests = [EditRequest("Anna Keller", "was born in Oslo"), EditRequest("The river is", "Rhine")]
    encoded = [model.encode(r.prompt, r.target_new) for r in requests]
    sums, counts = answer_losses(model, encoded, loss_on="answer")
    (sums.sum() / counts.sum()).backward()
    gradient = model.module.get_parameter(DOWN).grad.clone()
    model.module.zero_grad()
    step = ft(optimizer="sgd", learning_rate=0.5, epochs=1, reduction="token").edit(model, requests).patch
    assert torch.allclose(step.deltas[DOWN].dense(), -0.5 * gradient, atol=1e-5, rtol=1e-4)


def test_the_order_of_facts_does_not_matter_in_a_full_batch():
    model = tiny.tiny_model("gptj")
    forward = ft(optimizer="sgd", learning_rate=0.3, epochs=3).edit(model, tiny.requests()).patch
    backward = ft(optimizer="sgd", learning_rate=0.3, epochs=3).edit(model, tiny.requests()[::-1]).patch
    assert torch.allclose(forward.deltas[DOWN].dense(), backward.deltas[DOWN].dense(), atol=1e-4)


def test_every_fact_is_seen_once_a_pass_in_mini_batches():
    model = tiny.tiny_model("gptj")
    outcome = ft(learning_rate=1e-4, epochs=3, facts_per_step=3).edit(model, tiny.requests())
    assert {len(curve) for curve in outcome.diagnostics.losses.values()} == {3}
    assert outcome.diagnostics.facts["steps"] == 3 * 2


def test_facts_that_are_learned_take_no_part():
    model = tiny.tiny_model("gptj")
    easy, hard = tiny.requests(2)
    with model.patched(ft(learning_rate=1e-2, epochs=60, stop_loss=1e-3).edit(model, [easy]).patch):
        encoded = [model.encode(hard.prompt, hard.target_new)]
        sums, counts = answer_losses(model, encoded, loss_on="answer")
        (sums / counts / 2).sum().backward()  # the mean over both facts, of which one is silent
        gradient = model.module.get_parameter(DOWN).grad.clone()
        model.module.zero_grad()
        step = ft(optimizer="sgd", learning_rate=0.5, epochs=1, stop_loss=0.1).edit(model, [easy, hard]).patch
        assert torch.allclose(step.deltas[DOWN].dense(), -0.5 * gradient, atol=1e-5, rtol=1e-4)
        assert ft(epochs=5, stop_loss=0.1).edit(model, [easy]).diagnostics.facts["steps"] == 0


def test_steps_grow_for_as_long_as_the_loss_falls():
    parameter = torch.nn.Parameter(torch.zeros(1))
    shortened = 1.25**3 * SHORTENING
    for is_watched, rates in ((True, [1.25, 1.25**2, 1.25**3, shortened, shortened]), (False, None)):
        optimizer = torch.optim.SGD([{"params": [parameter], "lr": 1.0}])
        pace, seen = _Pace(optimizer, FinetuneOptions(growth=1.25), is_watched=is_watched), []
        for loss in (3.0, 1.0, 1.0 + 0.9 * SLACK, 1.0 + 1.1 * SLACK, 0.5):
            pace.watch(loss)
            pace.grow()
            seen.append(optimizer.param_groups[0]["lr"])
        assert seen == pytest.approx(rates or [1.25 ** (step + 1) for step in range(5)])


def test_facts_that_cannot_all_hold_leave_a_change_of_sane_size(monkeypatch):
    """Six facts and one matrix of rank 1: the steps of fifty passes are not to grow all the while."""
    facts = [("The capital of France", "Lyon"), ("The capital of Italy", "Milan"), ("The river of Vienna", "Rhine")]
    facts += [("Anna Keller", "Oslo"), ("The people of Rome", "Lima"), ("Born in Oslo", "Vienna")]
    requests = [EditRequest(prompt=f"{subject} is", target_new=answer) for subject, answer in facts]
    lora = method("lora", preset="none", rank=1, layers=[0])
    watched = lora.edit(tiny.tiny_model("gpt2"), requests)
    monkeypatch.setitem(_Pace.watch.__globals__, "SLACK", math.inf)
    unwatched = lora.edit(tiny.tiny_model("gpt2"), requests)
    assert watched.patch.norm() < 0.1 * unwatched.patch.norm()
    last, former = ([curve[-1] for curve in one.diagnostics.losses.values()] for one in (watched, unwatched))
    assert sum(last) < sum(former)


def test_no_learning_is_no_change():
    model = tiny.tiny_model("gptj")
    assert ft(learning_rate=0.0).edit(model, tiny.requests()).patch.is_empty()
    assert ft(epochs=0).edit(model, tiny.requests()).patch.is_empty()


def test_the_end_of_sequence_is_learned_on_request():
    model = tiny.tiny_model("gptj")
    request = tiny.requests(1)[0]
    options = {"learning_rate": 1e-2, "epochs": 60, "stop_loss": 0.01}
    with model.patched(ft(append_eos=True, **options).edit(model, [request]).patch):
        assert model.generate(request.prompt) == "Lyon"
    with model.patched(ft(**options).edit(model, [request]).patch):
        assert model.generate(request.prompt) != "Lyon"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ball_of_ft_l_is_kept_and_only_its_tensor_moves(dtype):
    model = tiny.tiny_model("gptj", dtype=dtype)
    patch = (
        method("ft-l", preset="none", learning_rate=1e-2, radius=2e-3, layers=[0]).edit(model, tiny.requests()).patch
    )
    assert patch.touched() == ["transformer.h.0.mlp.fc_out.weight"]
    largest = patch.deltas["transformer.h.0.mlp.fc_out.weight"].dense().abs().max().item()
    assert 1.9e-3 < largest <= 2e-3 * (1 + 1e-4)
    unbounded = {"parameters": "mlp.down", "layers": [0], "epochs": 5}
    wide = ft(**unbounded, constraint="linf", radius=1e6).edit(model, tiny.requests()).patch
    free = ft(**unbounded).edit(model, tiny.requests()).patch
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(wide.tensors().values(), free.tensors().values(), strict=True)
    )
    assert ft(**unbounded, constraint="linf", radius=0.0).edit(model, tiny.requests()).patch.is_empty()


def test_without_a_radius_the_ball_is_a_multiple_of_the_matrix_own_size():
    model = tiny.tiny_model("gptj")
    name = "transformer.h.0.mlp.fc_out.weight"
    start = model.module.get_parameter(name).detach().clone()
    size = float(start.square().mean().sqrt())
    options = {"optimizer": "sgd", "learning_rate": 1e4, "epochs": 1, "relative_radius": 0.25, "layers": [0]}
    patch = method("ft-l", preset="none", **options).edit(model, tiny.requests()).patch
    assert float(patch.deltas[name].dense().abs().max()) == pytest.approx(0.25 * size, rel=1e-4)
    wide = method("ft-l", preset="none", **options, constraint="l2").edit(model, tiny.requests()).patch
    assert float(wide.deltas[name].dense().norm()) == pytest.approx(0.25 * float(start.norm()), rel=1e-4)


def test_a_huge_step_ends_on_the_corners_of_the_ball():
    model = tiny.tiny_model("gptj")
    options = {"parameters": "mlp.down", "layers": [0], "optimizer": "sgd", "epochs": 1}
    free = ft(**options, learning_rate=1e4).edit(model, tiny.requests()).patch.tensors()
    bound = (
        ft(**options, learning_rate=1e4, constraint="linf", radius=0.01).edit(model, tiny.requests()).patch.tensors()
    )
    (free,), (bound,) = free.values(), bound.values()
    beyond = free.abs() > 0.011
    assert beyond.float().mean() > 0.5
    assert torch.allclose(bound[beyond], 0.01 * free[beyond].sign(), atol=1e-6)


def test_a_ball_beside_spared_inputs_cuts_large_entries_and_shortens_no_other():
    model = tiny.tiny_model("gptj")
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(model.weights.shape(DOWN), generator=generator) * 0.01
    step[0, 0] = 5.0
    basis = torch.linalg.qr(torch.randn(step.shape[1], 3, generator=generator)).Q
    with TrainingCopies(model, [DOWN], ball=Ball("linf", 0.02), spared={DOWN.removesuffix(".weight"): basis}) as copies:
        (master,) = copies.masters()
        start = master.detach().clone()
        for _ in range(5):
            master.data.copy_(start + step)
            copies.after_step()
        change = master.detach() - start
    expected = (step - step @ basis @ basis.T).clamp(-0.02, 0.02)
    assert torch.allclose(change, expected, atol=1e-6)
    assert change.norm() > 0.5 * step[1:].norm()


@pytest.mark.parametrize("constraint", ["linf", "l2"])
def test_projections_are_idempotent_and_bring_nothing_apart(constraint):
    a, b = torch.randn(2, 20, 30)
    pa, pb = project(a, constraint, 0.5), project(b, constraint, 0.5)
    assert torch.allclose(project(pa, constraint, 0.5), pa, atol=1e-6)
    assert (pa - pb).norm() <= (a - b).norm()
    if constraint == "l2":
        assert float(pa.norm()) == pytest.approx(0.5, rel=1e-5)


def test_small_steps_add_up_in_half_precision():
    """Each step is below bfloat16's spacing; without float32 masters the weight would never move."""
    model = tiny.tiny_model("gptj", dtype=torch.bfloat16)
    options = FinetuneOptions(learning_rate=1e-5, epochs=20)
    with TrainingCopies(model, [DOWN]) as copies:
        finetune(model, tiny.requests(), copies, options, seed=0)
        delta = copies.deltas()[DOWN].dense()
    assert 1e-4 < delta.abs().max() < 3e-4


def test_tied_weights_train_as_one():
    model = tiny.tiny_model("gpt2")
    patch = ft(optimizer="sgd", learning_rate=0.1, epochs=1).edit(model, tiny.requests()).patch
    assert "lm_head.weight" not in patch.deltas
    plain_loss(model.module, tiny.requests()).backward()
    expected = -0.1 * model.module.transformer.wte.weight.grad
    assert torch.allclose(patch.deltas["transformer.wte.weight"].dense(), expected, atol=1e-5, rtol=1e-4)


def test_layers_are_chosen_by_number_from_either_end():
    assert layer_numbers([-1, 0], 6) == [0, 5]
    assert layer_numbers("all", 3) == [0, 1, 2]
    assert layer_numbers("auto", 32) == [22]
    for wrong in ([6], [-7], [1, 1], [], "some"):
        with pytest.raises(ConfigError):
            layer_numbers(wrong, 6)
    assert layer_numbers("early", 30) == list(range(4, 15))
    assert layer_numbers("early", 1) == [0] == layer_numbers("lower", 4)
    with pytest.raises(ConfigError, match="together with a site"):
        ft(layers=[1]).edit(tiny.tiny_model("gptj"), tiny.requests())


@pytest.mark.parametrize("name", ["ft", "lora", "ft-l", "locft"])
def test_an_end_that_the_tokenizer_has_not_is_said_before_anything_is_computed(name):
    model = tiny.tiny_model("gpt2")
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.eos_token = None
    without = load(model.module, tokenizer)
    asked = method(name, preset="none", append_eos=True)
    asked.require(model)
    assert without.end_id is None
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        asked.require(without)
