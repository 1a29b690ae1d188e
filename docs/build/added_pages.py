"""Tables of methods that add parameters or memories: sequences, CaliNET's batch, the speed of T-Patcher's step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from page_blocks import SHORT, percent, read, rule, size, table


def added_parameters(model: str) -> str:
    """Sequences at each checkpoint, and batches; the model is the bundled decoder unless named."""
    record = read("_".join(["added_parameters", *([model] if model else [])]).replace("-", "_"))
    lines = []
    for row in sorted(record["rows"], key=lambda row: (row["protocol"], row["method"])):
        if row["protocol"] == "batch":
            lines.append(_line(row, row["edits"], row["scores"]["generate"], None, is_last=True, way="in one batch"))
            continue
        at_once = percent(row["immediate"]["generate"]["reliability"])
        for point in row["checkpoints"]:
            number, is_last = point["num_edits"], point is row["checkpoints"][-1]
            scores = point["scores"]["generate"]
            lines.append(_line(row, number, scores, at_once if is_last else None, is_last=is_last, way="in sequence"))
    kept = [name for name in SHORT if name != "reliability"]
    header = ["method", "", "edits", "reliability at once", "at the end", *(SHORT[name] for name in kept)]
    counts = record["settings"]["probes_per_kind"]
    caption = (
        f"`world-counterfact`, `{rule(record)}`, percent; every edit is asked again, with at most "
        f"{counts['sequence']} question of each kind for an edit in a sequence and {counts['batch']} in a batch.\n\n"
    )
    return caption + table([*header, "s / edit", "added"], lines)


def _line(
    row: dict[str, Any], number: int, scores: dict[str, Any], at_once: str | None, *, is_last: bool, way: str
) -> list[str]:
    cells = [percent(scores.get(name)) for name in SHORT]
    cost = [f"{row['seconds_per_edit']:.2f}", f"{row['patch_bytes'] // 4:,} ({size(row['patch_bytes'])})"]
    return [f"`{row['method']}`", way, f"{number:,}", at_once or "-", *cells, *(cost if is_last else ["", ""])]


def t_patcher_speed(shape: str) -> str:
    """Processor time of a step, the three ways, and its parts. Argument: the model's dimensions, see `speed.SHAPES`."""
    record = read("t_patcher_speed" if shape == "gpt2-small" else f"t_patcher_speed_{shape.replace('-', '_')}")
    rows = {row["way"]: row for row in record["rows"]}
    parts = rows.pop("parts")
    cached = _per_step(rows["cached"])
    lines = [
        [way, f"{1000 * _per_step(row):.0f}", f"{_per_step(row) / cached:.1f}", f"{_per_edit(row):.1f}"]
        for way, row in rows.items()
    ]
    told = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in parts.items() if name != "way")
    settings = record["settings"]
    size_of_it = f"{settings['steps']} steps an edit, {settings['edits']} edits"
    caption = f"Dimensions of `{shape}`, {size_of_it}. Parts of a cached step of one answer token: {told}.\n\n"
    return caption + table(["a step", "CPU ms", "times the cached one", "CPU s / edit"], lines)


def _per_step(row: dict[str, Any]) -> float:
    return float(sum(row["seconds"]) / sum(row["steps"]))


def _per_edit(row: dict[str, Any]) -> float:
    return float(sum(row["seconds"]) / len(row["seconds"]))


BLOCKS: dict[str, Callable[[str], str]] = {"added_parameters": added_parameters, "t_patcher_speed": t_patcher_speed}
