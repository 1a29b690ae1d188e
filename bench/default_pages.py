"""The block of docs/defaults.md: what methods do to pretrained models without any option."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from page_blocks import read, size, table

SCORES = ("says_it", "paraphrases", "paraphrases_ceiling", "neighbours_kept", "leaks", "degenerate")
HEADER = ("model", "method", "facts", "says it", "paraphrases", "(ceiling)", "neighbours kept", "leaks", "degenerate")


def pretrained_defaults(argument: str) -> str:
    """One row per model and method, of the facts that are reported.

    Arguments:
        argument: facts per edit, `1` if left out.
    """
    size_of_batch = int(argument or 1)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in read("pretrained_defaults")["rows"]:
        if row["split"] == "edit" and not row["options"] and (len(row["edit"]) > 1) == (size_of_batch > 1):
            groups.setdefault((row["model"], row["method"]), []).append(row)
    lines = []
    for (model, method), rows in groups.items():
        facts = sum(len(row["edit"]) for row in rows)
        shares = [_share(*(sum(row[score][place] for row in rows) for place in (0, 1))) for score in SCORES]
        seconds = f"{median(row['seconds'] / len(row['edit']) for row in rows):.1f}"
        lines.append(
            [model, f"`{method}`", str(facts), *shares, seconds, size(max(row["patch_bytes"] for row in rows))]
        )
    return table([*HEADER, "CPU s per fact", "patch"], lines)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}" if whole else "-"


BLOCKS: dict[str, Callable[[str], str]] = {"pretrained_defaults": pretrained_defaults}
