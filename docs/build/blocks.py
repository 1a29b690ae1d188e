"""The parts that generated pages are made of: committed results, tables, numbers for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
Row = dict[str, Any]
Columns = dict[str, Callable[[Row], str]]
"""Titles with what a row has under them."""
SHORT = {
    "reliability": "reliability",
    "generality": "generality",
    "locality.neighborhood": "neighbours kept",
    "locality.namesake": "namesakes kept",
    "locality.other_relation": "same subject kept",
    "locality.distracting": "distracting kept",
    "locality.out_of_scope": "out of scope kept",
    "portability.one_hop": "one hop follows",
    "old_answer_rate": "old answer",
}


@cache
def read(name: str) -> dict[str, Any]:
    """A committed result file."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def recipe(name: str) -> dict[str, Any]:
    """What a run of a recipe came to: its `summary.json`, as committed."""
    return read(f"recipes/{name}")


def units(name: str, **labels: Any) -> list[Row]:
    """The units of a recipe that came to a good end and have these labels."""
    return [row for row in recipe(name)["rows"] if row["state"] == "ok" and _has(row, labels)]


def rows(name: str, **labels: Any) -> list[Row]:
    """The rows of a result file that have these labels."""
    return [row for row in read(name)["rows"] if _has(row, labels)]


def rule(record: dict[str, Any], scoring: str = "generate") -> str:
    """The present name of the scoring that a result was measured under.

    Results without `scoring_version` are of version 1, whose `generate` was what is `exact` now.
    """
    return "exact" if scoring == "generate" and record.get("scoring_version", 1) < 2 else scoring


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    text = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*text, *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def listed(found: Iterable[Row], columns: Columns) -> str:
    """A Markdown table with a line for each row."""
    return table(list(columns), [[cell(row) for cell in columns.values()] for row in found])


def method(row: Row) -> str:
    """The row's method as code."""
    return f"`{row['method']}`"


def seconds(row: Row) -> str:
    """Seconds per edit."""
    return f"{row['seconds_per_edit']:.2f}"


def patch(row: Row) -> str:
    """Size of the patch."""
    return size(row["patch_bytes"])


def metrics(names: Iterable[str], scoring: str = "generate", *, with_interval: bool = False) -> Columns:
    """A column for each metric, in percent."""
    return {
        SHORT[name]: lambda row, name=name: percent(  # type: ignore[misc]
            row["scores"][scoring].get(name), with_interval=with_interval
        )
        for name in names
    }


def measured(found: Sequence[Row], scoring: str) -> list[str]:
    """The metrics that any row has, in their order."""
    return [name for name in SHORT if any(name in row["scores"][scoring] for row in found)]


def probes(row: Row, names: Iterable[str], scoring: str) -> str:
    """How many probes each metric is the mean of."""
    return ", ".join(f"{SHORT[name]} {row['scores'][scoring][name]['n']}" for name in names)


def percent(score: dict[str, Any] | None, *, with_interval: bool = False) -> str:
    """A share as a percentage, with its interval if asked for."""
    if score is None or score["mean"] is None:
        return "-"
    text = f"{100 * score['mean']:.0f}"
    return f"{text} ({100 * score['low']:.0f}-{100 * score['high']:.0f})" if with_interval else text


def size(num_bytes: float) -> str:
    """Bytes for people."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.0f} kB"


def _has(row: Row, labels: dict[str, Any]) -> bool:
    return all(row.get(key) == value for key, value in labels.items())
