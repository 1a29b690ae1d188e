"""The error of training that has left all bounds."""

from __future__ import annotations

from torch import Tensor

from palimpsest.errors import ConfigError


def require_finite(losses: Tensor, step: int, steps: int, learning_rate: float) -> None:
    """Raises `ConfigError` when a loss is not finite.

    Arguments:
        losses: of any shape.
        step: number of the step, from 0.
        steps: of how many.
        learning_rate: what may have been too large.
    """
    if not bool(losses.isfinite().all()):
        raise ConfigError(
            "Training diverged; the model is as it was before.",
            expected="a finite loss",
            found="NaN or infinity",
            where=f"step {step + 1} of {steps}",
            remedy=f"lower learning_rate (it is {learning_rate:g})",
        )
