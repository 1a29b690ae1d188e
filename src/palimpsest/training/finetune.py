"""The one fine-tuning loop: which facts, which tokens, which loss, when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

import torch
from pydantic import Field
from torch import nn

from palimpsest import processes
from palimpsest.config import Config
from palimpsest.errors import ConfigError
from palimpsest.models import EditableModel, Encoded, by_length
from palimpsest.provenance import digest
from palimpsest.requests import EditRequest
from palimpsest.stopwatch import Progress, silent
from palimpsest.training.keeping import kept_prompts
from palimpsest.training.objectives import FactLosses, FinetuneObjective, losses_and_margins
from palimpsest.training.rounding import TrueZeros
from palimpsest.training.steps import Normalised

P = ParamSpec("P")
T = TypeVar("T")

SLACK = 0.1
"""Nats per token by which the mean loss may rise, as it does a little where facts that hold wait for the others."""
SHORTENING = 0.25
"""Of the steps, where it has risen by more."""


class FinetuneOptions(Config):
    """How to fine-tune, whatever is being trained."""

    learning_rate: float | None = Field(default=None, ge=0)
    """Step size of the optimiser. Left out, `step` says it in units of each matrix."""
    step: float = Field(default=0.02, gt=0)
    """If there is no `learning_rate`: the largest share by which the first step can change what a matrix writes."""
    growth: float = Field(default=1.0, ge=1)
    """If there is no `learning_rate`: factor by which each step is larger than the one before. From a small first
    step on, the change ends close to the least that is enough, whatever the model's scale. Where steps of all facts
    have made the loss rise, they are shortened and grow no more."""
    epochs: int = Field(default=25, ge=0)
    """Passes over the facts, at most."""
    facts_per_step: int = Field(default=0, ge=0)
    """Facts in one optimiser step; 0 for all of them."""
    forward_batch_size: int = Field(default=64, ge=1)
    """Facts in one forward pass; smaller needs less memory and gives the same step (gradients accumulate)."""
    optimizer: Literal["adamw", "sgd", "normalised"] = "adamw"
    """`adamw`; `sgd` without momentum; or `normalised`: along each tensor's gradient, by a step of a fixed length, so
    that the change keeps the low rank of the gradient."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled from the gradient with `adamw`."""
    loss_on: Literal["answer", "all"] = "answer"
    """`answer`: the prompt is masked. `all`: every token but the first counts; not for encoder-decoders."""
    reduction: Literal["fact", "token"] = "fact"
    """`fact`: mean over a fact's tokens, then over facts. `token`: mean over all tokens, so long answers weigh more."""
    append_eos: bool = False
    """Whether the answer is followed by the end-of-sequence token; in a chat, by the one that ends the turn."""
    stop_loss: float | None = Field(default=None, ge=0)
    """A fact whose loss is below this takes no part in a step; training ends when that holds for all. 0: never. Left
    out, `stop_margin` decides."""
    stop_margin: float = Field(default=1.0, ge=0)
    """If there is no `stop_loss`: a fact is done when each of its answer's tokens is more probable than any other
    token, by this many nats."""
    spare: bool = False
    """Whether the change is kept orthogonal to what each trained matrix reads of the edit's own prompt about other
    subjects and of ordinary text (`training/keeping.py`), so that it writes nothing there. Ours."""
    spare_alike: float = Field(default=0.0, ge=0, lt=1)
    """Of these subjects, the share that begin or end as the edit's own does; one trained matrix has no room for any."""
    keep_weight: float = Field(default=0.0, ge=0)
    """Weight of what is to be left alone: how far the model's next tokens have moved where the edit's own prompt is
    asked about other subjects. 0, as published: without."""
    keep_prompts: int = Field(default=3, ge=1)
    """How many of these prompts one step looks at, drawn anew each time."""


@dataclass(frozen=True)
class FinetuneResult:
    """How training went.

    Arguments:
        losses: request id to its loss (nats per token) in each pass, before that pass's step.
        steps: optimiser steps taken.
    """

    losses: dict[str, list[float]]
    steps: int

    @property
    def final_loss(self) -> float:
        """Mean over facts of the last loss seen."""
        last = [curve[-1] for curve in self.losses.values() if curve]
        return sum(last) / len(last) if last else math.nan


@dataclass(frozen=True)
class Learning:
    """The answers' negative log-likelihoods, until they hold.

    Arguments:
        options: which tokens count, and when a fact is done.
    """

    options: FinetuneOptions

    def losses(self, model: EditableModel, rows: Sequence[Encoded], facts: Sequence[int]) -> FactLosses:
        """See `FinetuneObjective`."""
        del facts
        sums, counts, margins = losses_and_margins(model, rows, loss_on=self.options.loss_on)
        per_fact = sums / counts
        if self.options.stop_loss is None:
            takes_part = margins < self.options.stop_margin
        else:
            takes_part = per_fact.detach() >= self.options.stop_loss
        return FactLosses(per_fact if self.options.reduction == "fact" else sums, per_fact.detach(), takes_part)


class Trainable(Protocol):
    """Something with parameters to train: copies of weights, or an adapter."""

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function that computes with these parameters; every forward pass goes through here."""

    def masters(self) -> list[nn.Parameter]:
        """The parameters that the optimiser updates."""

    def units(self, optimizer: str) -> list[float]:
        """For each of them the learning rate at which one step can change what its matrix writes by all of it."""

    def before_step(self) -> None:
        """Called with gradients in place."""

    def after_step(self) -> None:
        """Called after the optimiser's update: the place for constraints."""


def finetune(
    model: EditableModel,
    requests: Sequence[EditRequest],
    trainable: Trainable,
    options: FinetuneOptions,
    *,
    seed: int,
    objective: FinetuneObjective | None = None,
    progress: Progress = silent,
) -> FinetuneResult:
    """Trains `trainable` until the model answers each prompt with its new target.

    The model is used in evaluation mode (no dropout). Logits are computed at the trained tokens only. Where several
    processes are at work, each takes its share of a step's facts, and the step is that of one process with all.

    Arguments:
        requests: prompts and targets.
        seed: seed of the order of facts; the order matters only when a step does not hold all of them.
        objective: what is minimised; left out, the answers' negative log-likelihoods.

    Raises `ConfigError` for a loss on tokens that the model does not predict, and for one that is not finite.
    """
    _require_predicted(model, options)
    require_end(model, options)
    encoded = [_with_end(model, request, options) for request in requests]
    _require_same(encoded)
    pace = _Pace(optimizer := optimizer_of(trainable, options), options, is_watched=objective is None)
    objective = objective or Learning(options)
    order = torch.Generator().manual_seed(seed)
    losses: dict[str, list[float]] = {request.id: [] for request in requests}
    kept = trainable.run(kept_prompts, model, requests, seed=seed) if options.keep_weight else None
    steps = 0
    with TrueZeros(model.module) as zeros:
        for epoch in range(options.epochs):
            progress("training", epoch, options.epochs)
            active = 0
            for facts in _steps([len(row) for row in encoded], options, order):
                optimizer.zero_grad(set_to_none=True)
                seen, moving = _accumulate(model, trainable, encoded, facts, options, objective)
                for index, loss in zip(facts, seen, strict=True):
                    losses[requests[index].id].append(loss)
                _require_finite(seen, epoch, options)
                if len(facts) == len(encoded):
                    pace.watch(sum(seen) / len(seen))
                if moving and kept is not None:
                    at = torch.randperm(len(kept.encoded), generator=order)[: options.keep_prompts].tolist()
                    apart = options.keep_weight / processes.count() * trainable.run(kept.loss, model, at)
                    apart.backward()  # type: ignore[no-untyped-call]
                zeros.clean()
                if moving:
                    trainable.before_step()
                    optimizer.step()
                    pace.grow()
                    trainable.after_step()
                    steps += 1
                active += moving
            if not active:
                break
    optimizer.zero_grad(set_to_none=True)
    progress("training", options.epochs, options.epochs)
    return FinetuneResult(losses, steps)


class _Pace:
    """The growth of an optimiser's steps, for as long as longer steps do good (the bold driver of back-propagation).

    Many facts need many passes, and steps that grow through all of them end up longer than the matrices themselves.

    Arguments:
        optimizer: whose learning rates grow.
        options: by how much; not at all where the learning rate is given.
        is_watched: whether the loss is to fall.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, options: FinetuneOptions, *, is_watched: bool) -> None:
        self._groups = optimizer.param_groups
        self._growth = options.growth if options.learning_rate is None else 1.0
        self._is_watched = is_watched and self._growth > 1
        self._lowest = math.inf

    def watch(self, loss: float) -> None:
        """Shortens the steps where the mean loss of all facts, before a step, is above the lowest seen by `SLACK`."""
        if loss < self._lowest:
            self._lowest = loss
        elif self._is_watched and loss > self._lowest + SLACK:
            self._growth, self._lowest = 1.0, loss
            for group in self._groups:
                group["lr"] *= SHORTENING

    def grow(self) -> None:
        """Called after each step."""
        for group in self._groups:
            group["lr"] *= self._growth


def _accumulate(
    model: EditableModel,
    trainable: Trainable,
    encoded: Sequence[Encoded],
    facts: Sequence[int],
    options: FinetuneOptions,
    objective: FinetuneObjective,
) -> tuple[list[float], int]:
    """One step's gradients, in forward batches that fit the memory.

    Returns each fact's loss per token, and how many facts took part.
    """
    means, moved = [0.0] * len(facts), [False] * len(facts)
    total = len(facts) if options.reduction == "fact" else sum(len(encoded[fact].target_ids) for fact in facts)
    rank, count = processes.rank(), processes.count()
    for together in by_length([len(encoded[fact]) for fact in facts], options.forward_batch_size * count):
        own = together[rank::count]
        # All processes must make the same passes: one that is left without a fact computes one that does not count.
        chunk = own or together[:1]
        rows, numbers = [encoded[facts[i]] for i in chunk], [facts[i] for i in chunk]
        found = trainable.run(objective.losses, model, rows, numbers)
        takes_part = found.takes_part & bool(own)
        if takes_part.any() or count > 1:
            ((found.minimised * takes_part).sum() / total).backward()  # type: ignore[no-untyped-call]
        for index, value, part in zip(own, found.per_token.tolist(), takes_part.tolist(), strict=False):
            means[index], moved[index] = value, part
    taking = sum(any(flags) for flags in zip(*processes.gathered(moved), strict=True))
    return [sum(values) for values in zip(*processes.gathered(means), strict=True)], taking


def _steps(lengths: Sequence[int], options: FinetuneOptions, order: torch.Generator) -> Iterator[list[int]]:
    """One pass over the facts: shuffled, and cut so that a step holds facts of similar length."""
    count, size = len(lengths), options.facts_per_step
    if size == 0 or size >= count:
        yield list(range(count))
        return
    shuffled = torch.randperm(count, generator=order).tolist()
    # Sorting within windows of a few steps saves padding and leaves the order random at large.
    window = 8 * size
    groups = []
    for start in range(0, count, window):
        near = sorted(shuffled[start : start + window], key=lambda index: lengths[index])
        groups += [near[first : first + size] for first in range(0, len(near), size)]
    for position in torch.randperm(len(groups), generator=order).tolist():
        yield groups[position]


def _require_same(encoded: Sequence[Encoded]) -> None:
    own = digest([row.ids for row in encoded])
    if any(other != own for other in processes.gathered(own)):
        raise ConfigError(
            "The processes have different facts.",
            expected="one program with the same facts in every process; they divide the facts among themselves",
            found=f"other prompts or answers than the {len(encoded)} of process {processes.rank()}",
        )


def _require_predicted(model: EditableModel, options: FinetuneOptions) -> None:
    if options.loss_on == "all" and model.is_encoder_decoder:
        raise ConfigError(
            "An encoder-decoder predicts no token of its prompts.",
            expected="'answer'",
            found="'all'",
            where="option loss_on",
            remedy="set loss_on = 'answer', which counts every token that the decoder predicts",
        )


def require_end(model: EditableModel, options: FinetuneOptions) -> None:
    """Raises `ConfigError` when an end of the answer is to be learned that the tokenizer has not."""
    if options.append_eos and model.end_id is None:
        raise ConfigError(
            "The tokenizer has no end-of-sequence token to append.",
            expected="a tokenizer with eos_token",
            found="none",
            where="option append_eos",
            remedy="set append_eos = false",
        )


def _with_end(model: EditableModel, request: EditRequest, options: FinetuneOptions) -> Encoded:
    encoded, end = model.encode(request.prompt, request.target_new), model.end_id
    if not options.append_eos or end is None:
        return encoded
    return replace(encoded, target_ids=(*encoded.target_ids, end))


def optimizer_of(trainable: Trainable, options: FinetuneOptions) -> torch.optim.Optimizer:
    """The optimiser: one learning rate for everything, or one for each tensor in units of that tensor."""
    masters = trainable.masters()
    groups: list[dict[str, Any]] = [{"params": masters, "lr": options.learning_rate}]
    if options.learning_rate is None:
        units = trainable.units(options.optimizer)
        groups = [{"params": [one], "lr": options.step * unit} for one, unit in zip(masters, units, strict=True)]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=options.weight_decay, fused=True)
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, weight_decay=options.weight_decay)
    return Normalised(groups)


def _require_finite(losses: Sequence[float], epoch: int, options: FinetuneOptions) -> None:
    if not all(map(math.isfinite, losses)):
        raise ConfigError(
            "Training diverged; the model is as it was before.",
            expected="a finite loss",
            found="NaN or infinity",
            where=f"pass {epoch + 1} of {options.epochs}",
            remedy=f"lower {_pace(options)}, or load the model with dtype float32",
        )


def _pace(options: FinetuneOptions) -> str:
    name = "step" if options.learning_rate is None else "learning_rate"
    return f"{name} (it is {getattr(options, name):g})"
