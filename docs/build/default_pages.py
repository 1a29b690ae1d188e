"""The blocks of docs/defaults.md and docs/measuring.md: what methods do to pretrained models without any option."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from page_blocks import read, size, table

SCORES = ("says_it", "paraphrases", "paraphrases_ceiling", "neighbours_kept", "leaks", "degenerate")
HEADER = ("model", "method", "facts", "says it", "paraphrases", "(ceiling)", "neighbours kept", "leaks", "degenerate")


def pretrained_defaults(_argument: str) -> str:
    """One row per model and method, of the facts that are reported."""
    lines = []
    for (model, method), rows in _groups().items():
        seconds = f"{median(row['seconds'] for row in rows):.1f}"
        shares = [_share(rows, score) for score in SCORES]
        lines.append(
            [model, f"`{method}`", str(len(rows)), *shares, seconds, size(max(row["patch_bytes"] for row in rows))]
        )
    return table([*HEADER, "CPU s per fact", "patch"], lines)


def scored_both_ways(_argument: str) -> str:
    """The same edits by the definition of an answer, and by the strictest one."""
    lines = [
        [model, f"`{method}`", str(len(rows)), _share(rows, "says_it"), _share(rows, "exact")]
        for (model, method), rows in _groups().items()
    ]
    return table(["model", "method", "facts", "`generate`", "`exact`"], lines)


def _groups() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Single edits of the split that is reported, without options, by model and method."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in read("pretrained_defaults")["rows"]:
        if row["split"] == "edit" and not row["options"] and len(row["edit"]) == 1:
            groups.setdefault((row["model"], row["method"]), []).append(row)
    return groups


def _share(rows: Sequence[dict[str, Any]], score: str) -> str:
    part, whole = (sum(row[score][place] for row in rows) for place in (0, 1))
    return f"{100 * part / whole:.0f}" if whole else "-"


BLOCKS: dict[str, Callable[[str], str]] = {
    "pretrained_defaults": pretrained_defaults,
    "scored_both_ways": scored_both_ways,
}
