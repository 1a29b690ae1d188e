"""Copies of weights to train on: the model computes with them, the originals are never written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from palimpsest import processes
from palimpsest.models import EditableModel
from palimpsest.models.sites import layer_of
from palimpsest.patches import Dense
from palimpsest.training.constraint import NO_BALL, NOTHING_SPARED, Ball, held, spare
from palimpsest.training.steps import owner, unit_of_step

if TYPE_CHECKING:
    from palimpsest.training.sharded import ShardedCopies

P = ParamSpec("P")
T = TypeVar("T")


def training_copies(
    model: EditableModel, names: Sequence[str], *, ball: Ball = NO_BALL, spared: Mapping[str, Tensor] = NOTHING_SPARED
) -> TrainingCopies | ShardedCopies:
    """Copies of the named parameters to train; where several processes are at work, each holds a share of them."""
    if processes.count() == 1:
        return TrainingCopies(model, names, ball=ball, spared=spared)
    from palimpsest.training.sharded import ShardedCopies

    return ShardedCopies(model, names, ball=ball, spared=spared)


class TrainingCopies:
    """Inside the block the named parameters are float32-mastered copies with gradients, all others are frozen.

    On leaving, by whatever way, the parameters point to their former tensors again and `requires_grad` is as it was.

    Arguments:
        names: canonical names of the parameters to train.
        ball: in which every tensor is kept, after every step.
        spared: name of a linear layer to (in, directions), an orthonormal basis of inputs for which the change of its
            weight is to write nothing; see `training.keeping`.
    """

    def __init__(
        self,
        model: EditableModel,
        names: Sequence[str],
        *,
        ball: Ball = NO_BALL,
        spared: Mapping[str, Tensor] = NOTHING_SPARED,
    ) -> None:
        self._stack = model.weights
        self.module = model.module
        self._names = list(names)
        self._ball = ball
        self._radii: dict[str, float] = {}
        self._spared = spared
        self._start: dict[str, Tensor] = {}
        self._masters: dict[str, nn.Parameter] = {}
        self._flags: list[bool] = []

    def __enter__(self) -> TrainingCopies:
        self._stack.require_present(self._names)
        self._flags = [parameter.requires_grad for parameter in self.module.parameters()]
        try:
            self._put_in_place()
        except BaseException:
            self._take_out()
            raise
        return self

    def _put_in_place(self) -> None:
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        for name in self._names:
            start = self._stack.current(name)
            self._start[name] = start
            self._radii[name] = self._ball.radius_of(start)
            self._stack.point(name, start.clone())
            for parameter in self._stack.parameters(name):
                parameter.requires_grad_(True)
            own = self._stack.parameters(name)[0]
            # Steps of half-precision weights are smaller than their spacing, so they are summed up in float32.
            self._masters[name] = own if start.dtype == torch.float32 else nn.Parameter(start.float())

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function that computes with the trained weights."""
        return function(*args, **kwargs)

    def names(self) -> list[str]:
        """The trained parameters, in the order of their masters."""
        return list(self._masters)

    def masters(self) -> list[nn.Parameter]:
        return list(self._masters.values())

    def units(self, optimizer: str) -> list[float]:
        """See `training.steps`."""
        return [unit_of_step(owner(self.module, name), start, optimizer) for name, start in self._start.items()]

    def before_step(self) -> None:
        """Hands each storage's gradient, summed over its aliases, to its master."""
        for name, master in self._masters.items():
            if master is self._stack.parameters(name)[0] and len(self._stack.parameters(name)) == 1:
                continue
            # One at a time, and let go of at once: no more than one float32 gradient is made beside those kept.
            total = None
            for parameter in self._stack.parameters(name):
                if parameter.grad is not None:
                    total = parameter.grad.float() if total is None else total.add_(parameter.grad)
                parameter.grad = None
            master.grad = total

    def held(self, name: str, delta: Tensor, directions: Callable[[Tensor], Tensor]) -> Tensor:
        """A parameter's change near to this one, in some directions and inside the ball; see `constraint.held`."""
        return held(delta, directions, self._ball, self._radii[name])

    @torch.no_grad()
    def after_step(self) -> None:
        """Applies the constraint and shows the model the new values."""
        for name, master in self._masters.items():
            basis = self._spared.get(layer_of(name))
            if self._ball.constraint != "none" or basis is not None:
                start = self._start[name]
                directions = partial(spare, basis=basis, module=owner(self.module, name))
                torch.add(self.held(name, master - start, directions), start, out=master)
            current = self._stack.current(name)
            if current.dtype != torch.float32:
                current.copy_(master)

    @torch.no_grad()
    def deltas(self) -> dict[str, Dense]:
        """How far each parameter has moved from where it started, in float32; those that have not are left out."""
        moved = {name: master.detach() - self._start[name] for name, master in self._masters.items()}
        return {name: Dense(delta) for name, delta in moved.items() if delta.any()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._take_out()

    def _take_out(self) -> None:
        for name, start in self._start.items():
            self._stack.point(name, start)
            for parameter in self._stack.parameters(name):
                parameter.grad = None
        # Asked for again: an offloaded parameter is another object after every forward pass.
        for parameter, flag in zip(self.module.parameters(), self._flags, strict=True):
            parameter.requires_grad_(flag)
