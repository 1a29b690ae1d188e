"""The attempts of `auto`, in order: each goes further than the one before, and costs more or keeps less."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from palimpsest.config import Config
from palimpsest.errors import ConfigError, ModelError
from palimpsest.methods.base import Method
from palimpsest.methods.catalogue import method
from palimpsest.models import EditableModel
from palimpsest.provenance import digest
from palimpsest.requests import EditRequest

AUTO = "auto"
SEARCH = {"search": "gauss-newton"}


class Attempt(Config):
    """A method with options."""

    method: str
    """A registered name. Changes of weights add up, and so does what stands beside them; the better of the two is
    handed over."""
    options: dict[str, Any] = {}
    """Its options beyond preset and defaults."""
    preset: str = "auto"
    """Its preset."""
    only_untrue: bool = False
    """Whether it is for facts whose own prompt does not get the new answer, not for those that lack in `elsewhere`."""

    def make(self, seed: int) -> Method[Any]:
        """The method, ready to edit; `auto` looks at every patch itself.

        Raises `ConfigError` for a method or an option that there is not.
        """
        if self.method == AUTO:
            raise ConfigError(
                "The method 'auto' cannot be an attempt of `auto`.",
                expected="another method, such as memit or lora",
                found="`auto` itself, which would try the whole ladder again",
                where="option ladder",
                remedy="take it out of the ladder",
            )
        return method(self.method, preset=self.preset, **{"seed": seed, "look_again": False, **self.options})


LADDER = (
    # Each fact behind a gate of its own, so that many do not add up to much.
    Attempt(method="subject-neurons"),
    # Aims further, through gates that open later: for what the first ones do not say, or let too little stay with.
    Attempt(
        method="subject-neurons",
        options={
            "targets": {**SEARCH, "log_odds": 9.0, "stop_loss": 0.001},
            "gate": {"opens": 0.6, "full": 0.9},
        },
        only_untrue=True,
    ),
    # Behind other texts too: at the prompt alone, facts are often not said elsewhere.
    Attempt(method="memit", options={"search_in": "all-contexts"}),
    # Aims further.
    Attempt(
        method="memit", options={"search_in": "all-contexts", "targets": {**SEARCH, "log_odds": 6.0, "stop_loss": 0.01}}
    ),
    # Writes each fact exactly, in one layer.
    Attempt(method="r-rome", only_untrue=True),
    # Needs neither a subject nor an MLP that can be read as a memory.
    Attempt(method="lora", only_untrue=True),
)
"""The order that measured best; see docs/methods/auto.md."""


def usable(
    model: EditableModel,
    ladder: Sequence[Attempt],
    seed: int,
    *,
    weights_only: bool = False,
    kept: MutableMapping[str, Method[Any]] | None = None,
) -> list[tuple[Attempt, Method[Any]]]:
    """The attempts that can edit this model, with their methods.

    Arguments:
        weights_only: whether those that stand beside the weights are left out.
        kept: the methods made before, with what each has factorised; those that are made now are put there.

    Raises `ModelError` when none can, with the reason of the last one.
    """
    found: list[tuple[Attempt, Method[Any]]] = []
    reason: ConfigError | ModelError | None = None
    kept = {} if kept is None else kept
    for attempt in ladder:
        key = digest([attempt.model_dump(), seed])
        made = kept[key] = kept.get(key) or attempt.make(seed)
        try:
            if weights_only and not made.capabilities.gives_weight_patch:
                raise _beside_weights(attempt.method)
            made.require(model)
        except (ConfigError, ModelError) as error:
            reason = error
            continue
        found.append((attempt, made))
    if not found and reason is not None:
        raise ModelError(
            "None of the methods that `auto` tries can edit this model.",
            expected=f"a model that {', '.join(dict.fromkeys(one.method for one in ladder))} can edit",
            found=reason.problem,
            where=f"model {model.name!r}",
            remedy="see `palimpsest doctor` for what can, and name it with --method",
        ) from reason
    return found


def editable_by(made: Method[Any], requests: Sequence[EditRequest]) -> list[EditRequest]:
    """The facts that have what a method needs."""
    return [request for request in requests if request.subject or not made.needs_subject]


def _beside_weights(name: str) -> ConfigError:
    return ConfigError(
        f"The method {name!r} stands beside the weights.",
        expected="a method that changes weights, such as memit or lora",
        found=name,
        where="options ladder and weights_only",
        remedy="set weights_only = false, or take it out of the ladder",
    )
