"""One change on a model's stack: what it computes, what it hooks in, and what lies below it while it is on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Compute = Callable[[Tensor], Tensor]
Install = Callable[[], Sequence[Any]]
"""Puts hooks on a model's modules and returns their handles."""
KeptRouter = Callable[[Sequence[str]], Sequence[Any]]
"""A `models.routing.Router`, which the stack keeps for whoever asks and never calls."""


@dataclass(eq=False)
class StackedChange:
    """One change on the stack: how each touched parameter's new value follows from the one below it.

    Arguments:
        label: what to call it.
        compute: canonical name to the function that gives the new value.
        branches: name of a quantised layer to the function that gives, from its input, what is added to its output.
        origin: the object that put it there.
        install: puts on what runs beside the modules.
        router: decides which prompts are answered otherwise; see `models.routing`.
        below: the values underneath, while it is on.
        hooks: what holds the branches and what `install` put on, while it is on.
    """

    label: str
    compute: Mapping[str, Compute]
    branches: Mapping[str, Compute] = field(default_factory=dict)
    origin: object = None
    install: Install | None = None
    router: KeptRouter | None = None
    below: dict[str, Tensor] = field(default_factory=dict)
    hooks: list[Any] = field(default_factory=list)

    def unhook(self) -> None:
        """Takes off what holds the branches and what `install` put on."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
