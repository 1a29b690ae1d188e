"""The findings of the papers held against ours: each a claim, what would bear it out, and our figures.

A verdict is computed from the results in `bench/results`, by the criterion that stands beside it in `findings.toml`;
nothing is judged by hand. What has not been measured says so.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import judging
from blocks import Row, table
from judging import METRICS, Missing, Verdict, checkpoints, first, score, verdict

MISSING = "not measured yet"
NAMED = re.compile(
    r"(?P<method>\S+)(?: on (?P<model>\S+))?(?: (?P<how>in|after) (?P<number>\d+))?(?: of (?P<recipe>\S+))?"
)
RECIPES = {
    None: ("single-edits.tables", "trained-editors.tables", "survey-table-2.world"),
    "in": ("many-edits.tables", "trained-editors.tables", "added-parameters.tables", "survey-figure-6.world"),
    "after": ("many-edits.tables", "trained-editors.tables", "added-parameters.tables", "survey-figure-7.world"),
}


def findings(_argument: str) -> str:
    """Every finding with its verdict."""
    lines = []
    for one in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["finding"]:
        (outcome, figures), pretrained = _told(one), "-"
        if "pretrained" in one:
            pretrained = "**{}**: {}".format(*_told(one["pretrained"])).removesuffix(": ")
        lines.append([one["paper"], one["claim"], one["criterion"], f"**{outcome}**", figures, pretrained])
    return table(["paper", "what it found", "held to", "here", "figures", "SmolLM2-135M"], lines)


def _told(one: Mapping[str, Any]) -> Verdict:
    try:
        if "judge" in one:
            outcome: Verdict = getattr(judging, one["judge"])(*filter(None, [one.get("of")]))
            return outcome
        return _judged(one)
    except Missing:
        return MISSING, ""


def _judged(one: Mapping[str, Any]) -> Verdict:
    """A finding by its rows and what must hold of them."""
    shown = "; ".join(_shown(name, one.get("shows")) for name in one.get("rows", ()))
    held = [part for condition in one.get("holds", ()) for part in _parts(condition)]
    return one.get("verdict") or verdict(*held), ": ".join(filter(None, (one.get("note"), shown)))


def _shown(name: str, metric: str | None) -> str:
    found = _labels(name)
    number = f"{int(found['number'] or 1):,}"
    details = [
        {"in": f"in a batch of {number}", "after": f"after {number}"}.get(found["how"]),
        found["model"] and f"on `{found['model']}`",
        found["recipe"] and not found["recipe"].endswith(".pretrained") and f"in `{found['recipe']}`",
    ]
    values = " / ".join(f"{_value(name, one):.0f}" for one in ([metric] if metric else METRICS))
    told = " ".join(filter(None, details))
    return f"`{found['method']}` {told}: {values}" if told else f"`{found['method']}` {values}"


def _parts(condition: Mapping[str, Any]) -> Iterator[bool]:
    """What a condition comes to, for each of its rows and bounds or for all of them together."""
    kind = next(kind for kind in ("at_least", "at_most", "above", "below") if kind in condition)
    bounds = condition[kind] if isinstance(condition[kind], list) else [condition[kind]]
    metrics, by = condition.get("least") or [condition["metric"]], condition.get("by", 0)
    held = []
    for name in condition["of"]:
        for bound in bounds:
            other = {one: _value(bound, one) if isinstance(bound, str) else bound for one in metrics}
            gap = min(_value(name, one) - other[one] for one in metrics)
            is_held = {"at_least": gap >= by, "at_most": gap <= by, "above": gap > by, "below": gap < -by}
            held.append(is_held[kind])
    yield from [all(held)] if condition.get("together") else held


def _value(name: str, metric: str) -> float:
    row = _row(name)
    return 1000 * float(row["seconds_per_edit"]) if metric == "ms" else score(row, metric)


def _labels(name: str) -> dict[str, str]:
    found = NAMED.fullmatch(name)
    if found is None:
        raise ValueError(f"not a row: {name!r}")
    return found.groupdict()


@cache
def _row(name: str) -> Row:
    """The row of that name. Raises `Missing` where it was not measured."""
    found = _labels(name)
    how, number = found["how"], int(found["number"] or 1)
    protocol = {"in": f"batch of {number}", "after": "sequential"}.get(how, "single")
    labels = {"method": found["method"], "protocol": protocol}
    if found["recipe"] is None:
        labels["model"] = found["model"] or "world"
        labels |= {} if how == "after" else {"dataset": "world-counterfact"}
    row = first([found["recipe"]] if found["recipe"] else RECIPES[how], **labels)
    return checkpoints(row)[number] if how == "after" else row
