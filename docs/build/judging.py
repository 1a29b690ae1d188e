"""What findings are judged by: rows of the committed results, scores in percent, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import blocks

YES, NO, PARTLY, MISSING = "reproduced", "not reproduced", "in part", "not measured yet"
NOT_HERE = "not testable at this scale"
Verdict = tuple[str, str]
"""What became of a claim, and the figures."""


class Missing(Exception):
    """There is no such row yet."""


def rows(name: str, **labels: Any) -> list[dict[str, Any]]:
    """The rows of a result file with these labels; of a recipe's, those that came to a good end. Raises `Missing` where
    there is none.
    """
    if not (blocks.RESULTS / f"{name}.json").exists():
        raise Missing
    found = [row for row in blocks.rows(name, **labels) if row.get("state", "ok") == "ok"]
    if not found:
        raise Missing
    return found


def units(recipe: str, **labels: Any) -> list[dict[str, Any]]:
    """The units of a recipe with these labels that came to a good end. Raises `Missing` where there is none."""
    return rows(f"recipes/{recipe}", **labels)


def score(row: dict[str, Any], metric: str, scoring: str = "generate") -> float:
    """A metric in percent; a family such as `locality` is the plain mean of its kinds."""
    scores = row["scores"].get(scoring, {})
    kinds = [found["mean"] for name, found in scores.items() if name == metric or name.split(".")[0] == metric]
    if not kinds:
        raise Missing
    return 100 * sum(kinds) / len(kinds)


def unit_mean(recipe: str, metric: str, scoring: str = "generate", **labels: Any) -> float:
    """A metric's mean over such units, seeds and data sets alike, in percent."""
    found = [score(row, metric, scoring) for row in units(recipe, **labels)]
    return sum(found) / len(found)


def first(recipes: Iterable[str], **labels: Any) -> dict[str, Any]:
    """The first unit with these labels, from whichever recipe has it. Raises `Missing` where there is none."""
    for recipe in recipes:
        try:
            return units(recipe, **labels)[0]
        except Missing:
            continue
    raise Missing


def single(method: str, model: str = "world") -> dict[str, Any]:
    """A method's single edits of a bundled model."""
    recipes = ("single-edits.tables", "trained-editors.tables", "survey-table-2.world")
    return first(recipes, method=method, model=model, dataset="world-counterfact", protocol="single")


def sequence(method: str) -> dict[int, dict[str, Any]]:
    """A method's checkpoints in a sequence on the bundled decoder: edits so far to the checkpoint."""
    recipes = ("many-edits.tables", "trained-editors.tables", "added-parameters.tables", "survey-figure-7.world")
    row = first(recipes, method=method, model="world", protocol="sequential")
    return {point["num_edits"]: point for point in row["checkpoints"]}


def batch(method: str, size: int) -> dict[str, Any]:
    """A method's batches of one size on the bundled decoder."""
    recipes = ("many-edits.tables", "trained-editors.tables", "survey-figure-6.world")
    return first(recipes, method=method, model="world", dataset="world-counterfact", protocol=f"batch of {size}")


def known(names: Iterable[str], find: Callable[[str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows that there are, by name. Raises `Missing` where there is none at all."""
    found = {}
    for name in names:
        try:
            found[name] = find(name)
        except Missing:
            continue
    if not found:
        raise Missing
    return found


def triple(row: dict[str, Any]) -> str:
    """Reliability, generality and locality."""
    return " / ".join(f"{score(row, metric):.0f}" for metric in ("reliability", "generality", "locality"))


def verdict(*held: bool) -> str:
    """What became of a claim, by the parts of its criterion."""
    return YES if all(held) else PARTLY if any(held) else NO
