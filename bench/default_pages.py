"""The block of docs/defaults.md: what methods do to pretrained models without any option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from page_blocks import read, size, table


def pretrained_defaults(_argument: str) -> str:
    """One row a model and method, of the facts that are reported."""
    record = read("pretrained_defaults")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        if row["split"] == "edit" and not row["options"]:
            groups.setdefault((row["model"], row["method"]), []).append(row)
    lines = []
    for (model, method), rows in groups.items():
        lines.append(
            [
                model,
                f"`{method}`",
                str(len(rows)),
                _share(sum(row["holds"] for row in rows), len(rows)),
                _share(*(sum(row["paraphrases"][place] for row in rows) for place in (0, 1))),
                _share(*(sum(row["neighbours"][place] for row in rows) for place in (0, 1))),
                _share(sum(row["leaks"] for row in rows), sum(row["neighbours"][1] for row in rows)),
                _share(sum(row["degenerate"] for row in rows), len(rows)),
                f"{sum(row['seconds'] for row in rows) / len(rows):.1f}",
                size(max(row["patch_bytes"] for row in rows)),
            ]
        )
    header = [
        "model",
        "method",
        "facts",
        "holds",
        "paraphrases",
        "neighbours kept",
        "leak",
        "degenerate",
        "CPU s",
        "patch",
    ]
    caption = (
        "Single edits of CounterFact facts of the split `edit` that the model knows, no option, percent; by "
        "the rules of `bench/pretrained_defaults.py`, CPU seconds on a busy core.\n\n"
    )
    return caption + table(header, lines)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}" if whole else "-"


BLOCKS: dict[str, Callable[[str], str]] = {"pretrained_defaults": pretrained_defaults}
