"""Generated tables of what the recipes came to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from default_pages import BLOCKS as DEFAULTS
from page_blocks import RESULTS, read, table


def recipes(_argument: str) -> str:
    """Every committed run of a recipe: its units, how they ended, and the workers' minutes."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((RESULTS / "recipes").glob("*.json"))]
    lines = [_line(record) for record in sorted(records, key=lambda one: (_size(one) != "world", one["recipe"]))]
    return table(["recipe", "units", "ok", "refused", "failed", "cancelled", "worker minutes", "results"], lines)


def two_workers(_argument: str) -> str:
    """Two workers' wall time against one's."""
    record = read("two_workers")
    lines = [
        [name, f"{ratio:.2f}", ", ".join(f"{one[name]:.0f}" for one in record["rounds"])]
        for name, ratio in record["ratios"].items()
    ]
    two = ", ".join(f"{one['two workers']:.0f}" for one in record["rounds"])
    units, goal = record["settings"]["units"], record["settings"]["goal"]
    caption = f"{units} units, seconds of each round; two workers took {two}. Goal: at most {goal}.\n\n"
    return caption + table(["against", "two workers take", "its seconds"], lines)


def _line(record: dict[str, Any]) -> list[str]:
    states = record["states"]
    minutes = sum(row.get("unit_seconds") or 0.0 for row in record["rows"]) / 60
    name = record["recipe"]
    ended = [str(states.get(state, 0)) for state in ("ok", "refused", "failed", "cancelled")]
    return [f"`{name}`", str(len(record["rows"])), *ended, f"{minutes:.0f}", f"`bench/results/recipes/{name}.json`"]


def _size(record: dict[str, Any]) -> str:
    return str(record["recipe"]).rpartition(".")[2]


BLOCKS: dict[str, Callable[[str], str]] = {"recipes": recipes, "two_workers": two_workers, **DEFAULTS}
