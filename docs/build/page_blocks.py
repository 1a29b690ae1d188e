"""The parts that generated pages are made of: committed results, tables, numbers for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "bench" / "results"
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


def read(name: str) -> dict[str, Any]:
    """A committed result file."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def rule(record: dict[str, Any], scoring: str = "generate") -> str:
    """The present name of the scoring that a result was measured under.

    Results without `scoring_version` are of version 1, whose `generate` was what is `exact` now.
    """
    return "exact" if scoring == "generate" and record.get("scoring_version", 1) < 2 else scoring


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def percent(score: dict[str, Any] | None, *, with_interval: bool = False) -> str:
    """A share as a percentage, with its interval if asked for."""
    if score is None or score["mean"] is None:
        return "-"
    text = f"{100 * score['mean']:.0f}"
    return f"{text} ({100 * score['low']:.0f}-{100 * score['high']:.0f})" if with_interval else text


def size(num_bytes: float) -> str:
    """Bytes for people."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.0f} kB"
