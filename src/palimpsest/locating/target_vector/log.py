"""The record of each fact during the search for its vector, and which facts are still active."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from palimpsest.errors import ModelError

Stop = Literal["reached", "steps", "diverged"]
"""Why a fact stopped: its threshold, the number of steps, or a loss that was no longer finite."""


class Log:
    """The passes over some facts.

    Arguments:
        ids: the facts' ids.
        device: where `active` lives.
    """

    def __init__(self, ids: Sequence[str], device: torch.device) -> None:
        self.ids = list(ids)
        self.active = torch.ones(len(self.ids), dtype=torch.bool, device=device)
        self.losses: list[list[float]] = [[] for _ in self.ids]
        self.nlls: list[list[float]] = [[] for _ in self.ids]
        self.stopped: list[Stop] = ["steps"] * len(self.ids)

    def record(self, losses: Tensor, nlls: Tensor, gradients: Tensor) -> None:
        """Keeps one pass of the active facts; those whose numbers are not finite stop.

        Arguments:
            losses: (facts,), what the search minimises.
            nlls: (facts,), negative log-likelihood per answer token, mean over contexts.
            gradients: (facts, ...), looked at only for being finite.

        Raises `ModelError` when the very first pass gives no finite numbers.
        """
        good = losses.isfinite() & nlls.isfinite() & gradients.flatten(1).isfinite().all(1)
        if self.losses and not any(self.losses):
            self._require(good)
        self.stop(~good, "diverged")
        for index, (loss, nll) in enumerate(zip(losses.tolist(), nlls.tolist(), strict=True)):
            if self.active[index]:
                self.losses[index].append(loss)
                self.nlls[index].append(nll)

    def stop(self, which: Tensor, reason: Stop) -> None:
        """Stops those of the active facts for which `which`, (facts,), holds."""
        for index in (which & self.active).nonzero()[:, 0].tolist():
            self.stopped[index] = reason
        self.active = self.active & ~which

    @property
    def is_done(self) -> bool:
        return not bool(self.active.any())

    def _require(self, good: Tensor) -> None:
        bad = [identity for identity, is_good in zip(self.ids, good.tolist(), strict=True) if not is_good]
        if bad:
            raise ModelError(
                "The model gives an answer no finite likelihood, before anything was changed.",
                expected="a finite negative log-likelihood and gradient",
                found="NaN or infinity",
                where=f"edit {', '.join(bad[:5])}",
                remedy="set compute_dtype = 'float32', or load the model in float32",
            )
