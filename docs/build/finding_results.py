"""What findings are judged by: rows of the committed results, scores in percent, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from page_blocks import RESULTS, read

YES, NO, PARTLY, MISSING = "reproduced", "not reproduced", "in part", "not measured yet"
NOT_HERE = "not testable at this scale"
Verdict = tuple[str, str]
"""What became of a claim, and the figures."""


@dataclass(frozen=True)
class Finding:
    """A claim of a paper and how it is judged."""

    paper: str
    claim: str
    criterion: str
    judge: Callable[[], Verdict]


class Missing(Exception):
    """There is no such row yet."""


def rows(name: str) -> list[dict[str, Any]]:
    """All rows of a result file. Raises `Missing` where there is none."""
    if not (RESULTS / f"{name}.json").exists():
        raise Missing
    return list(read(name)["rows"])


def one(name: str, **labels: Any) -> dict[str, Any]:
    """The row with these labels. Raises `Missing` where there is none."""
    for row in rows(name):
        if all(row.get(key) == value for key, value in labels.items()):
            return row
    raise Missing


def score(row: dict[str, Any], metric: str, scoring: str = "generate") -> float:
    """A metric in percent; a family such as `locality` is the plain mean of its kinds."""
    scores = row["scores"].get(scoring, {})
    kinds = [found["mean"] for name, found in scores.items() if name == metric or name.split(".")[0] == metric]
    if not kinds:
        raise Missing
    return 100 * sum(kinds) / len(kinds)


def units(recipe: str, **labels: Any) -> list[dict[str, Any]]:
    """The units of a recipe with these labels that came to a good end. Raises `Missing` where there is none."""
    found = [
        row
        for row in rows(f"recipes/{recipe}")
        if row["state"] == "ok" and all(row.get(key) == value for key, value in labels.items())
    ]
    if not found:
        raise Missing
    return found


def unit_mean(recipe: str, metric: str, scoring: str = "generate", **labels: Any) -> float:
    """A metric's mean over such units, seeds and data sets alike, in percent."""
    found = [score(row, metric, scoring) for row in units(recipe, **labels)]
    return sum(found) / len(found)


def single(method: str, model: str = "world") -> dict[str, Any]:
    """A method's single edits of a bundled model, from whichever recipe has measured it."""
    suffix = "" if model == "world" else "_world_t5"
    for name, labels in (
        (f"single_edits{suffix}", {"dataset": "world-counterfact"}),
        (f"trained_editors{suffix}", {"protocol": "single"}),
    ):
        try:
            return one(name, method=method, **labels)
        except Missing:
            continue
    return units("survey-table-2.world", method=method, model=model, dataset="world-counterfact")[0]


def sequence(method: str) -> dict[int, dict[str, Any]]:
    """A method's checkpoints in a sequence on the bundled decoder: edits so far to the checkpoint."""
    for name, labels in (
        ("many_edits", {"sequence": 100}),
        ("trained_editors", {"protocol": "sequential"}),
        ("added_parameters", {"protocol": "sequence"}),
    ):
        try:
            return {point["num_edits"]: point for point in one(name, method=method, **labels)["checkpoints"]}
        except Missing:
            continue
    (row,) = units("survey-figure-7.world", method=method)[:1]
    return {point["num_edits"]: point for point in row["checkpoints"]}


def batch(method: str, size: int) -> dict[str, Any]:
    """A method's batches of one size on the bundled decoder."""
    for name, labels in (("many_edits", {"subjects": None}), ("trained_editors", {"protocol": "batch"})):
        try:
            return one(name, method=method, batch=size, **labels)
        except Missing:
            continue
    return units("survey-figure-6.world", method=method, protocol=f"batch of {size}")[0]


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
