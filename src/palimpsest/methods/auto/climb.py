"""The way up the ladder of `auto`: attempts at some facts, and what is taken of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from palimpsest.methods.auto.config import AutoConfig
from palimpsest.methods.auto.examination import Examination, Standing
from palimpsest.methods.base import EditRun, Method
from palimpsest.models import EditableModel
from palimpsest.patches import Manifest, ModulePatch, Patch, WeightPatch
from palimpsest.requests import EditRequest
from palimpsest.stopwatch import Progress

FACTORS: tuple[float, ...] = (1.0, 0.75, 0.55)
"""What an attempt's change is multiplied by until enough stays as it was."""


_LABEL = Manifest(label="auto")


class OutOfTime(Exception):
    """The time is over; raised inside an attempt, which leaves the model as it was."""


@dataclass(frozen=True)
class Reached:
    """A patch, and how the facts stand under it."""

    patch: Patch
    standing: Standing


@dataclass
class Climb:
    """The attempts at the facts of one call, and the best that came of them so far.

    Arguments:
        best: the best so far.
        weights: the changes of weights so far, on top of which further ones are made.
        beside: what stands beside the weights so far.
        rejected: how the facts stood under the first whole change of weights that let too little stay.
    """

    model: EditableModel
    examination: Examination
    config: AutoConfig
    run: EditRun
    deadline: float | None
    best: Reached
    weights: Reached
    beside: Reached
    tried: list[dict[str, Any]] = field(default_factory=list)
    rejected: Standing | None = None

    @property
    def is_beside_weights(self) -> bool:
        """Whether the best so far is no change of weights."""
        return not isinstance(self.best.patch, WeightPatch)

    def attempt(
        self, name: str, made: Method[Any], requests: Sequence[EditRequest], factors: Sequence[float] = FACTORS
    ) -> bool:
        """Takes an attempt's change, as much of it as lets enough stay, if more facts hold with it than without.

        Returns whether any of the factors lets enough stay.
        """
        if not made.capabilities.gives_weight_patch:
            return self._beside(name, made, requests)
        with self.model.patched(self.weights.patch), self.run.clock.stage("editing"):
            outcome = made.edit(self.model, requests, progress=_until(self.deadline, self.run.progress))
        self.run.diagnostics.losses |= outcome.diagnostics.losses
        before, change = self.weights.patch, outcome.weight_patch
        for factor in factors:
            patch = WeightPatch((factor * change if before.is_empty() else before + factor * change).deltas, _LABEL)
            reached, fits = self._examined(name, patch, factor, len(requests))
            if fits:
                self.weights = max(self.weights, reached, key=self._worth)
                return True
            if factor == 1.0 and self.rejected is None:
                self.rejected = reached.standing
        return False

    def _beside(self, name: str, made: Method[Any], requests: Sequence[EditRequest]) -> bool:
        """The same for what stands beside the weights: in place of what its facts had there, as a whole or not."""
        kept = self.beside.patch if isinstance(self.beside.patch, ModulePatch) else ModulePatch([])
        owners = {owner for branch in kept.branches for owner in branch.owners()}
        kept = kept.without(*(request.id for request in requests if request.id in owners))
        with self.model.patched(kept), self.run.clock.stage("editing"):
            outcome = made.edit(self.model, requests, progress=_until(self.deadline, self.run.progress))
        self.run.diagnostics.losses |= outcome.diagnostics.losses
        patch = kept + outcome.patch if isinstance(outcome.patch, ModulePatch) else outcome.patch
        reached, fits = self._examined(name, patch, 1.0, len(requests))
        if fits:
            self.beside = max(self.beside, reached, key=self._worth)
        return fits

    def _examined(self, name: str, patch: Patch, factor: float, num_facts: int) -> tuple[Reached, bool]:
        """How the facts stand under a patch, and whether it lets enough stay; the best one is kept."""
        _require_time(self.deadline)
        with self.run.clock.stage("examining"), self.model.patched(patch):
            standing = self.examination.standing()
        self.tried.append({"method": name, "factor": factor, "facts": num_facts, **self._summary(standing)})
        fits = standing.keeps(self.config.keep) and standing.moved <= self.config.most_moved
        reached = Reached(patch, standing)
        if fits:
            self.best = max(self.best, reached, key=self._worth)
        return reached, fits

    def with_fewer(self, name: str, made: Method[Any], requests: Sequence[EditRequest]) -> None:
        """Attempts half of the facts, and half of those, until enough stays: what many facts change adds up.

        Those come first that changed least about other subjects when all were attempted; nothing is done where no
        attempt let too little stay.
        """
        if self.rejected is None:
            return
        standing = zip(self.examination.trials, self.rejected.verdicts, strict=True)
        damage = {trial.request.id: verdict.kept.count(False) for trial, verdict in standing}
        by_damage = sorted((request.id for request in requests), key=damage.__getitem__)
        count = len(requests) // 2
        while count:
            least = set(by_damage[:count])
            chosen = [request for request in requests if request.id in least]
            # Fewer facts are gentler than a part of each change, and every look takes its time.
            if self.attempt(name, made, chosen, FACTORS[:1]):
                return
            count //= 2

    def _summary(self, standing: Standing) -> dict[str, Any]:
        return {
            "true": sum(verdict.is_true for verdict in standing.verdicts),
            "hold": sum(verdict.holds(self.config.elsewhere) for verdict in standing.verdicts),
            "elsewhere": standing.elsewhere,
            "kept": standing.kept,
            "keeps": standing.keeps(self.config.keep),
            "moved": standing.moved,
        }

    def _worth(self, reached: Reached) -> tuple[float, ...]:
        """Ranks states: first by facts that are true, then by facts that also hold elsewhere, then by what stays."""
        found = self._summary(reached.standing)
        return found["true"], found["hold"], found["elsewhere"] + found["kept"]


def _until(deadline: float | None, progress: Progress) -> Progress:
    """A progress that ends an attempt when the time is over."""

    def told(stage: str, done: int, total: int) -> None:
        _require_time(deadline)
        progress(stage, done, total)

    return told


def _require_time(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise OutOfTime
