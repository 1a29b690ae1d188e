"""Further measures of an edited model: numbers that belong to no probe, by the measure's name.

token-time        seconds that a written token takes, asked for the edited prompts one at a time
weight-distance   Euclidean distance of each layer's attention and MLP from the unedited model's
task:NAME[@N]     scores on a task of lm-evaluation-harness, asked at most N questions of it
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from palimpsest.errors import ConfigError

if TYPE_CHECKING:
    from palimpsest.models import EditableModel
    from palimpsest.patches import Patch

Measure = Callable[["EditableModel", "Patch | None", Sequence[str]], dict[str, float]]
"""From the model with a patch on it, that patch (`None` for the unedited model) and the edited prompts to numbers."""

TASK = "task:"
"""What the name of a measure begins with that is a task of lm-evaluation-harness."""
_PROMPTS, _TOKENS, _REPEATS = 4, 8, 3


def token_seconds(model: EditableModel, _patch: Patch | None, prompts: Sequence[str]) -> dict[str, float]:
    """Seconds a token of answers, the first one's prompt included; the best of three, since others use the machine."""
    asked = list(prompts[:_PROMPTS])
    best, written = math.inf, 1
    for _ in range(_REPEATS):
        start = perf_counter()
        answers = [model.generate(prompt, max_new_tokens=_TOKENS) for prompt in asked]
        best = min(best, perf_counter() - start)
        written = sum(max(1, len(model.tokenizer(text, add_special_tokens=False)["input_ids"])) for text in answers)
    return {"token_seconds": best / written}


def weight_distances(model: EditableModel, patch: Patch | None, _prompts: Sequence[str]) -> dict[str, float]:
    """Frobenius norm of what a patch adds to each layer's attention and MLP (F-Learning, figures 4 and 5).

    Weights outside of both, such as norms, are under `other`. Nothing for patches that add to no weights.
    """
    from palimpsest.patches import WeightPatch

    if not isinstance(patch, WeightPatch):
        return {}
    sites = model.sites
    places = {
        sites.path(site, layer): f"{site.rpartition('.')[0]}.{layer}"
        for site in sites.names()
        if sites.has_weight(site)
        for layer in range(sites.layers_of(site))
    }
    squares: dict[str, float] = defaultdict(float)
    for name, delta in patch.deltas.items():
        squares[places.get(name.rpartition(".")[0], "other")] += delta.squared_norm()
    return {f"weight_distance.{place}": math.sqrt(total) for place, total in sorted(squares.items())}


def task_measure(name: str) -> Measure:
    """The measure `task:NAME` or `task:NAME@N`. Raises `ConfigError` where the name names no task."""
    task, _, limit = name.removeprefix(TASK).partition("@")
    if not task or (limit and not limit.isdigit()) or limit == "0":
        raise ConfigError(
            "A measure names no task.",
            expected="task:NAME, or task:NAME@N for at most N questions",
            found=repr(name),
        )

    def scores(model: EditableModel, _patch: Patch | None, _prompts: Sequence[str]) -> dict[str, float]:
        from palimpsest.evaluation.other_tasks import run_tasks

        found = run_tasks(model, [task], limit=int(limit) if limit else None)
        return {f"task.{one}.{metric}": value for one, metrics in found.items() for metric, value in metrics.items()}

    return scores
