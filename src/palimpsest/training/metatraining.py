"""The one loop that trains what edits: steps, validation, early stopping, checkpoints that go on bit for bit.

It knows nothing of models and edits. What is trained is an `Objective`: a module, and a function from examples to named
losses of which `loss` is minimised; the others are shown in the curve.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from palimpsest.config import Config
from palimpsest.errors import ConfigError, DataError
from palimpsest.stopwatch import Progress, silent
from palimpsest.training.checkpoints import (
    CHECKPOINT,
    TrainingCheckpoint,
    read_checkpoint,
    require_course,
    require_dtypes,
    require_moments,
    write_checkpoint,
)
from palimpsest.training.rounding import TrueZeros

# Of the step size, what is left at the end of one that decays.
_LAST_RATE = 0.02

T = TypeVar("T")
Losses = Callable[[Sequence[T], random.Random], Mapping[str, Tensor]]


class MetaTrainingOptions(Config):
    """How to train an editor, whatever it is made of."""

    steps: int = Field(default=100_000, ge=0)
    """Steps of the optimiser, at most."""
    examples_per_step: int = Field(default=10, ge=1)
    """Edits whose gradients make one step."""
    forward_batch_size: int = Field(default=10, ge=1)
    """Edits in one forward pass; smaller needs less memory and gives the same step (gradients accumulate)."""
    learning_rate: float = Field(default=1e-6, ge=0)
    """Step size of Adam, constant over training unless it `decays`."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the step size rises from nothing."""
    decays: bool = False
    """Whether the step size falls linearly, to a fiftieth at the last step."""
    clip_norm: float = Field(default=100.0, gt=0)
    """Largest norm of a step's gradient; a longer one is shortened."""
    validate_every: int = Field(default=500, ge=1)
    """Steps from one validation, and one checkpoint, to the next."""
    patience: int = Field(default=4, ge=1)
    """Validations in a row without a better one after which training ends."""
    validation_examples: int = Field(default=200, ge=1)
    """Edits, at most, that are kept out of training for validation; never more than a tenth of them."""


@dataclass(frozen=True)
class Objective(Generic[T]):
    """The trained module, and its objective.

    Arguments:
        module: all that changes in training, parameters and buffers.
        losses: named scalars of some examples, means over them; the generator is for draws, and for nothing else may
            the function depend on chance. In validation it is called without gradients, the module in evaluation mode.
        groups: parameters with optimiser options of their own (`lr`, ...); left out, all with those of the options.
            Groups with `is_clipped` false take no part in the clipping.
        watched: the loss whose validation decides which parameters are kept and when to end.
        after_step: called after the optimiser's update.
        after_validation: called with the validation's means.
    """

    module: nn.Module
    losses: Losses[T]
    groups: Sequence[dict[str, Any]] | None = None
    watched: str = "loss"
    after_step: Callable[[], None] = lambda: None
    after_validation: Callable[[Mapping[str, float]], None] = lambda _means: None


@dataclass
class Course:
    """How far training has come.

    Arguments:
        step: steps taken.
        best_step: the step after which validation was best.
        best: the watched loss there.
        curve: one entry a validation: `step`, `seconds`, and the means `training` (since the last one; none at the
            start) and `validation` by name.
    """

    step: int = 0
    best_step: int = 0
    best: float = math.inf
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds of training as far as the last validation."""
        return float(self.curve[-1]["seconds"]) if self.curve else 0.0


def metatrain(
    objective: Objective[T],
    training: Sequence[T],
    validation: Sequence[T],
    options: MetaTrainingOptions,
    *,
    seed: int,
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> Course:
    """Trains until validation gets no better; then the module has the parameters that validated best.

    Arguments:
        training: examples; every pass has another order, which follows from the seed.
        validation: examples that training never sees.
        checkpoint: a file for everything that is needed to go on, rewritten at every validation.
        identity: what must be the same to go on: data, model, options.
        resume: go on from the checkpoint, with the bits that an uninterrupted run would have; from the start where
            there is none yet.

    Raises `DataError` when there is nothing to train on or to validate with, `ConfigError` when a loss or gradient is
    not finite any more (the checkpoint stays that of the last validation), and for a checkpoint of something else.
    """
    _require_examples(training, validation)
    run = _Run(objective, options, checkpoint, dict(identity or {}))
    course = (run.restored() if resume else None) or Course()
    start = time.perf_counter() - course.seconds

    def validated(means: Mapping[str, float] | None) -> None:
        found = run.means(validation, random.Random(f"{seed}|validation"))
        if not math.isfinite(found[objective.watched]):
            raise _diverged(course.step, f"validation loss {objective.watched!r}", run, options)
        course.curve.append(
            {"step": course.step, "seconds": time.perf_counter() - start, "training": means, "validation": found}
        )
        if found[objective.watched] < course.best:
            course.best, course.best_step = found[objective.watched], course.step
            run.keep_best()
        objective.after_validation(found)
        run.write(course)

    def report() -> None:
        latest = ", ".join(f"{name} {value:.3g}" for name, value in course.curve[-1]["validation"].items())
        progress(f"training ({latest})", course.step, options.steps)

    if not course.curve:
        validated(None)
    sums: dict[str, float] = {}
    while course.step < options.steps and not _has_stalled(course, options):
        report()
        for name, value in run.step(_drawn(training, options, course.step, seed), course.step, seed).items():
            sums[name] = sums.get(name, 0.0) + value
        course.step += 1
        if course.step % options.validate_every == 0 or course.step == options.steps:
            since = course.step - course.curve[-1]["step"]
            validated({name: value / since for name, value in sums.items()})
            sums = {}
    report()
    run.take_best()
    return course


class _Run:
    """One training: the optimiser, and what a checkpoint holds."""

    def __init__(
        self, objective: Objective[Any], options: MetaTrainingOptions, checkpoint: Path | None, identity: dict[str, Any]
    ) -> None:
        from accelerate import Accelerator

        self.objective, self.module, self.options = objective, objective.module, options
        self.checkpoint, self.identity = checkpoint, identity
        groups = objective.groups or [{"params": list(self.module.parameters())}]
        self.optimizer = torch.optim.Adam([dict(group) for group in groups], lr=options.learning_rate)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        is_on_cpu = all(one.device.type == "cpu" for one in self.module.parameters())
        self.accelerator = Accelerator(cpu=is_on_cpu, device_placement=False)
        self.best: dict[str, Tensor] = {}

    def step(self, examples: Sequence[Any], step: int, seed: int) -> dict[str, float]:
        """One step of the optimiser; returns the means of the losses."""
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        means: dict[str, float] = {}
        with TrueZeros(self.module) as zeros:
            for number, chunk in enumerate(_chunks(examples, self.options.forward_batch_size)):
                share = len(chunk) / len(examples)
                losses = self.objective.losses(chunk, random.Random(f"{seed}|{step}|{number}"))
                for name, value in losses.items():
                    seen = self._finite(float(value.detach()), f"loss {name!r}", step)
                    means[name] = means.get(name, 0.0) + share * seen
                self.accelerator.backward(share * losses["loss"])
            zeros.clean()
        self._clip(step)
        factor = _rate_factor(self.options, step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = factor * rate
        self.optimizer.step()
        self.objective.after_step()
        return means

    @torch.no_grad()
    def means(self, examples: Sequence[Any], draw: random.Random) -> dict[str, float]:
        """Means of the losses in evaluation mode."""
        self.module.eval()
        means: dict[str, float] = {}
        for chunk in _chunks(examples, self.options.forward_batch_size):
            for name, value in self.objective.losses(chunk, draw).items():
                means[name] = means.get(name, 0.0) + float(value) * len(chunk) / len(examples)
        return means

    def keep_best(self) -> None:
        """Remembers the present parameters and buffers."""
        self.best = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def take_best(self) -> None:
        """Goes back to those that validated best."""
        self.module.load_state_dict(self.best)
        self.module.eval()

    def write(self, course: Course) -> None:
        """Writes the checkpoint, instead of the former one."""
        if self.checkpoint is not None:
            present = dict(self.module.state_dict())
            write_checkpoint(
                self.checkpoint,
                TrainingCheckpoint(
                    present, self.best, self.optimizer.state_dict(), torch.get_rng_state(), vars(course)
                ),
                self.identity,
            )

    def restored(self) -> Course | None:
        """Puts the checkpoint's state in place; `None` if there is no checkpoint yet."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return None
        found = read_checkpoint(self.checkpoint, self.identity)
        with CHECKPOINT.reading(self.checkpoint):
            course = TypeAdapter(Course).validate_python(found.course)
            require_course(course.curve, course.step, course.best_step)
            require_dtypes([found.best, found.present], self.module.state_dict())
            require_moments(found.optimizer["state"], self.optimizer)
            self.module.load_state_dict(found.best)
            self.module.load_state_dict(found.present)
            self.best = found.best
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": found.optimizer["state"], "param_groups": groups})
            torch.set_rng_state(found.random_state)
        return course

    def _clip(self, step: int) -> None:
        for name, parameter in self.module.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                raise _diverged(step, f"the gradient of {name}", self, self.options)
        clipped = [group["params"] for group in self.optimizer.param_groups if group.get("is_clipped", True)]
        self.accelerator.clip_grad_norm_([one for group in clipped for one in group], self.options.clip_norm)

    def _finite(self, value: float, what: str, step: int) -> float:
        if not math.isfinite(value):
            raise _diverged(step, what, self, self.options)
        return value


def _drawn(training: Sequence[T], options: MetaTrainingOptions, step: int, seed: int) -> list[T]:
    """The examples of a step: pass after pass in orders of their own, so that a step knows its examples by itself."""
    size, count = options.examples_per_step, len(training)
    places = range(step * size, (step + 1) * size)
    return [training[_order(seed, place // count, count)[place % count]] for place in places]


@lru_cache(maxsize=4)
def _order(seed: int, lap: int, count: int) -> list[int]:
    return random.Random(f"{seed}|order|{lap}").sample(range(count), count)


def _rate_factor(options: MetaTrainingOptions, step: int) -> float:
    """Returns the factor of the step sizes at a step."""
    warm = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    return warm * max(_LAST_RATE, 1.0 - step / options.steps) if options.decays else warm


def _has_stalled(course: Course, options: MetaTrainingOptions) -> bool:
    later = [point for point in course.curve if point["step"] > course.best_step]
    return len(later) >= options.patience


def _chunks(examples: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (examples[start : start + size] for start in range(0, len(examples), size))


def _require_examples(training: Sequence[T], validation: Sequence[T]) -> None:
    for name, examples in (("training", training), ("validation", validation)):
        if not examples:
            raise DataError(
                f"There are no {name} examples.",
                expected="edits to train on, and others to validate with",
                found=f"{len(training)} to train on, {len(validation)} to validate with",
                remedy="give a larger file of edits; a tenth of them is kept for validation",
            )


def _diverged(step: int, what: str, run: _Run, options: MetaTrainingOptions) -> ConfigError:
    kept = run.checkpoint if run.checkpoint is not None and run.checkpoint.exists() else None
    return ConfigError(
        f"Training diverged at step {step}.",
        expected="finite losses and gradients",
        found=f"NaN or infinity in {what}",
        where=f"step {step} of {options.steps}",
        remedy=f"lower learning_rate (it is {options.learning_rate:g}) or clip_norm, or load the model in float32"
        + (f"; the last good checkpoint is {kept}" if kept else ""),
    )
