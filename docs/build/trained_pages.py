"""Generated tables of the methods that are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from page_blocks import SHORT, percent, read, rule, size, table

ORDER = ("mend", "mend for batches", "ke", "serac", "ike")


def trained(argument: str) -> str:
    """Single edits of held-out facts: every metric under one scoring. Argument: model:scoring."""
    model, scoring = argument.split(":")
    record = _record(model)
    rows = _under("single", record)
    metrics = [name for name in SHORT if any(name in row["scores"][scoring] for row in rows)]
    lines = [
        [f"`{row['method']}`", *(percent(row["scores"][scoring].get(name), with_interval=True) for name in metrics)]
        for row in rows
    ]
    settings = record["settings"]
    probes = ", ".join(f"{SHORT[name]} {rows[0]['scores'][scoring][name]['n']}" for name in metrics)
    caption = (
        f"`{model}`, `{settings['dataset']}`, {settings['single']} single edits of test facts, "
        f"`{rule(record, scoring)}`; percent "
        f"with 95% interval; at most {settings['probes_per_kind']} probes of a kind for an edit. Probes: {probes}.\n\n"
    )
    return caption + table(["method", *(SHORT[name] for name in metrics)], lines)


def trained_cost(model: str) -> str:
    """What training and editing cost, and what single edits do to ordinary text where that was measured."""
    record = _record(model)
    edits = {row["method"]: row for row in _under("single", record)}
    texts = {row["method"]: row["perplexity"] for row in _under("perplexity", record)}
    lines = []
    for row in _under("training", record):
        edit, text = edits.get(row["method"]), texts.get(row["method"])
        lines.append(
            [
                f"`{row['method']}`",
                f"{row['seconds'] / 60:.0f}",
                f"{row['best_step']} of {row['steps']}",
                f"{row['edits']:,}",
                f"{row['num_parameters']:,}",
                size(row["bytes"]),
                size(row["peak_memory_bytes"]),
                f"{1000 * edit['seconds_per_edit']:.0f}" if edit else "-",
                size(edit["patch_bytes"]) if edit else "-",
                *([f"{text['median']:.2f} ({text['before']:.2f})" if text else "-"] if texts else []),
            ]
        )
    header = ["method", "training, minutes", "step kept", "edits trained on", "parameters", "editor", "peak memory"]
    return table([*header, "ms / edit", "patch", *(["perplexity (before)"] if texts else [])], lines)


def trained_many(argument: str) -> str:
    """Several edits: batches, then the sequence's checkpoints. Argument: model:method."""
    model, method = argument.split(":")
    rows = [row for row in _record(model)["rows"] if row["method"] == method]
    points: list[tuple[str, dict[str, Any]]] = []
    for row in rows:
        if row["protocol"] == "single":
            points.append(("single", row["scores"]["generate"]))
        elif row["protocol"] == "batch":
            points.append((f"batches of {row['batch']}", row["scores"]["generate"]))
        elif row["protocol"] == "sequential":
            points += [
                (f"after {one['num_edits']} in sequence", one["scores"]["generate"]) for one in row["checkpoints"]
            ]
    metrics = [name for name in SHORT if any(name in scores for _, scores in points)]
    lines = [[what, *(percent(scores.get(name)) for name in metrics)] for what, scores in points]
    return table(["", *(SHORT[name] for name in metrics)], lines)


def memory_time(_argument: str) -> str:
    """How long a prompt waits for SERAC's memory."""
    lines = [
        [
            f"{row['entries']:,}",
            f"{1000 * row['alone']:.1f}",
            f"{1000 * row['together']:.1f}",
            size(row["patch_bytes"]),
        ]
        for row in read("serac_memory")["rows"]
    ]
    return table(["entries", "ms a prompt, alone", "ms a prompt, 64 together", "patch"], lines)


def prefix_time(_argument: str) -> str:
    """What reading the demonstrations once saves."""
    record = read("ike_prefix")
    [row], settings = record["rows"], record["settings"]
    lines = [
        [
            name,
            f"{row[f'{key}_whole']:.1f}",
            f"{row[f'{key}_shared']:.1f}",
            f"{row[f'{key}_whole'] / row[f'{key}_shared']:.0f}",
        ]
        for name, key in (
            ("scoring one answer each", "score"),
            (f"writing {settings['tokens']} tokens each", "generate"),
        )
    ]
    caption = (
        f"{settings['questions']} questions behind the same {row['tokens_before']} tokens, one thread, seconds in all;"
        f" largest difference of a log-probability {row['largest_difference']:.0e}.\n\n"
    )
    return caption + table(["", "read with each", "read once", "times faster"], lines)


def _under(protocol: str, record: Any) -> list[Any]:
    """The rows of a protocol, method by method."""
    rows = [row for row in record["rows"] if row["protocol"] == protocol]
    return sorted(rows, key=lambda row: ORDER.index(row["method"]))


def _record(model: str) -> Any:
    return read("trained_editors" if model == "world" else f"trained_editors_{model.replace('-', '_')}")


BLOCKS: dict[str, Callable[[str], str]] = {
    "trained": trained,
    "trained_cost": trained_cost,
    "trained_many": trained_many,
    "memory_time": memory_time,
    "prefix_time": prefix_time,
}
