"""The training loop on a problem whose answer is known: checkpoints, early stopping, what is not finite."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from palimpsest import ConfigError, DataError
from palimpsest.training.metatraining import MetaTrainingOptions, Objective, metatrain

OPTIONS = MetaTrainingOptions(
    steps=60, examples_per_step=3, forward_batch_size=2, learning_rate=0.05, validate_every=10
)
EXAMPLES = [float(number) for number in range(10)]


class Line(nn.Module):
    """y = slope * x, with a buffer that counts the batches of training."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(2))
        self.register_buffer("batches", torch.zeros(()))

    def losses(self, batch, draw):
        if self.training:
            self.batches += 1
        x = torch.tensor(batch)
        # Chance from both generators, that a resumed run must meet again.
        noise = draw.random() + torch.rand(())
        error = ((self.slope.sum() - 2.0) * x + 0.01 * noise).square().mean()
        return {"loss": error, "slope": self.slope.detach().sum()}


def run(module, options=OPTIONS, training=EXAMPLES, validation=(4.5,), **more):
    torch.manual_seed(0)
    return metatrain(Objective(module, module.losses), training, list(validation), options, seed=1, **more)


def test_it_finds_the_slope_and_keeps_the_best():
    module = Line()
    course = run(module)
    assert module.slope.sum().item() == pytest.approx(2.0, abs=0.02)
    assert course.step == 60 and [point["step"] for point in course.curve] == [0, 10, 20, 30, 40, 50, 60]
    best = min(course.curve, key=lambda point: point["validation"]["loss"])
    assert course.best_step == best["step"] and course.best == best["validation"]["loss"]
    assert best["validation"]["slope"] == pytest.approx(module.slope.sum().item())
    assert course.curve[0]["training"] is None and course.curve[1]["training"]["loss"] > 0


def test_it_ends_when_validation_gets_no_better():
    module = Line()
    options = OPTIONS.model_copy(update={"patience": 2, "learning_rate": 0.0})
    course = metatrain(
        Objective(module, lambda batch, draw: {"loss": module.slope.sum()}), EXAMPLES, [1.0], options, seed=1
    )
    assert course.step == 20 and course.best_step == 0
    assert module.slope.tolist() == [0.0, 0.0]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [0, 10, 27, 59])
def test_a_killed_training_goes_on_with_the_same_bits(tmp_path, at):
    def kill(_stage, done, _total):
        if done == at:
            raise Killed

    whole = Line()
    course = run(whole)
    first, second = Line(), Line()
    with pytest.raises(Killed):
        run(first, checkpoint=tmp_path / "c", progress=kill)
    torch.rand(5)
    resumed = run(second, checkpoint=tmp_path / "c", resume=True)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())
    plain = [{key: value for key, value in point.items() if key != "seconds"} for point in course.curve]
    assert plain == [{key: value for key, value in point.items() if key != "seconds"} for point in resumed.curve]
    with safe_open(tmp_path / "c", framework="pt") as stored:
        assert json.loads(stored.metadata()["checkpoint"])["course"]["step"] == 60


def test_accumulating_in_smaller_batches_gives_the_same_step():
    def losses(module):
        return lambda batch, draw: {"loss": ((module.slope.sum() - 2.0) * torch.tensor(batch)).square().mean()}

    slopes = []
    for size in (1, 2, 3):
        module = Line()
        options = OPTIONS.model_copy(update={"forward_batch_size": size, "steps": 5})
        metatrain(Objective(module, losses(module)), EXAMPLES, [1.0], options, seed=1)
        slopes.append(module.slope.detach())
    torch.testing.assert_close(slopes[0], slopes[1])
    torch.testing.assert_close(slopes[0], slopes[2])


def test_every_pass_shows_every_example_once_in_another_order():
    seen = []

    def losses(batch, draw):
        if module.training:
            seen.extend(batch)
        return {"loss": module.slope.sum()}

    module = Line()
    metatrain(Objective(module, losses), EXAMPLES, [0.0], OPTIONS.model_copy(update={"steps": 10}), seed=1)
    passes = [seen[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(one) == EXAMPLES for one in passes) and passes[0] != passes[1] != passes[2]


def test_a_loss_or_gradient_that_is_not_finite_ends_at_the_last_good_checkpoint(tmp_path):
    module = Line()

    def losses(batch, draw):
        found = module.losses(batch, draw)
        return {**found, "loss": found["loss"] * (float("nan") if module.batches > 34 else 1.0)}

    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=r"step 17(.|\n)*'loss'(.|\n)*last good checkpoint"):
        metatrain(Objective(module, losses), EXAMPLES, [4.5], OPTIONS, seed=1, checkpoint=tmp_path / "c")
    with safe_open(tmp_path / "c", framework="pt") as stored:
        assert json.loads(stored.metadata()["checkpoint"])["course"]["step"] == 10
        assert stored.get_tensor("present/slope").isfinite().all()

    def infinite(batch, draw):
        return {"loss": module.slope.clamp(min=0).sqrt().sum()}

    module = Line()
    with pytest.raises(ConfigError, match="gradient of slope"):
        metatrain(Objective(module, infinite), EXAMPLES, [4.5], OPTIONS, seed=1)
    assert module.slope.tolist() == [0.0, 0.0]


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    run(Line(), checkpoint=tmp_path / "c", identity={"data": "a"})
    with pytest.raises(ConfigError, match="data = b"):
        run(Line(), checkpoint=tmp_path / "c", identity={"data": "b"}, resume=True)
    with safe_open(tmp_path / "c", "pt") as stored:
        tensors, record = {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata()["checkpoint"]  # noqa: SIM118
    save_file(tensors, tmp_path / "c", {"checkpoint": json.dumps({**json.loads(record), "format": 99})})
    with pytest.raises(DataError, match="later version"):
        run(Line(), checkpoint=tmp_path / "c", identity={"data": "a"}, resume=True)
    (tmp_path / "c").write_bytes(b"{}")
    with pytest.raises(DataError, match="cannot be read"):
        run(Line(), checkpoint=tmp_path / "c", identity={"data": "a"}, resume=True)


def test_nothing_to_train_on_is_an_error_before_anything_is_computed():
    module = Line()
    module.losses = None
    for training, validation in (([], [1.0]), ([1.0], [])):
        with pytest.raises(DataError, match="There are no"):
            run(module, training=training, validation=validation)


def test_groups_have_rates_of_their_own_and_may_stay_out_of_the_clipping():
    class Two(Line):
        def __init__(self):
            super().__init__()
            self.free = nn.Parameter(torch.zeros(()))

    module, norms = Two(), []

    def losses(batch, draw):
        return {"loss": 1e3 * module.slope.sum() + 1e3 * module.free}

    def look():
        norms.append((module.slope.grad.norm().item(), module.free.grad.item()))

    groups = [{"params": [module.slope]}, {"params": [module.free], "lr": 0.5, "is_clipped": False}]
    options = OPTIONS.model_copy(update={"steps": 1, "clip_norm": 1.0})
    metatrain(Objective(module, losses, groups, after_step=look), EXAMPLES, [1.0], options, seed=random.randrange(9))
    assert norms == [(pytest.approx(1.0, rel=1e-4), 1e3)]
    assert module.free.item() == pytest.approx(-0.5, rel=1e-3) and module.slope[0].item() == pytest.approx(-0.05)


DAMAGES = {
    "another shape": lambda tensors, _: tensors.update({"optimizer/0/exp_avg": torch.ones(7)}),
    "a moment that is gone": lambda tensors, _: tensors.pop("optimizer/0/exp_avg_sq"),
    "a moment of no parameter": lambda tensors, _: tensors.update({"optimizer/99/step": torch.tensor(1.0)}),
    "a square below zero": lambda tensors, _: tensors["optimizer/0/exp_avg_sq"].sub_(1e9),
    "a step of zero": lambda tensors, _: tensors["optimizer/0/step"].zero_(),
    "another type": lambda tensors, _: tensors.update(
        {name: one.double() for name, one in tensors.items() if name.startswith("best/")}
    ),
    "a point that lacks a field": lambda _, record: record["course"]["curve"][1].pop("validation"),
    "a loss that is a text": lambda _, record: record["course"]["curve"][1]["validation"].update(loss="1.0"),
    "a loss that a point lacks": lambda _, record: record["course"]["curve"][1]["validation"].pop("slope"),
    "no points": lambda _, record: record["course"].update(curve=[]),
    "a step beside the curve": lambda _, record: record["course"].update(step=7),
    "a best step beside the curve": lambda _, record: record["course"].update(best_step=-3),
    "steps that do not rise": lambda _, record: record["course"]["curve"].reverse(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_checkpoint_that_is_damaged_is_refused_before_a_step_is_taken(tmp_path, damage):
    run(Line(), checkpoint=tmp_path / "c")
    with safe_open(tmp_path / "c", "pt") as stored:
        tensors, record = {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata()["checkpoint"]  # noqa: SIM118
    record = json.loads(record)
    damage(tensors, record)
    save_file(tensors, tmp_path / "c", {"checkpoint": json.dumps(record)})
    with pytest.raises(DataError, match="checkpoint cannot be read"):
        run(Line(), checkpoint=tmp_path / "c", resume=True)
