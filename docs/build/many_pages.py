"""Generated parts of the page on many edits and on speed."""

from __future__ import annotations

from typing import Any

from page_blocks import SHORT, percent, read, table

METRICS = (
    "reliability",
    "generality",
    "locality.neighborhood",
    "locality.namesake",
    "locality.other_relation",
    "portability.one_hop",
)


def batches(argument: str) -> str:
    """All methods in batches of one size, or, as in `100:distinct`, in one about as many subjects."""
    size, _, subjects = argument.partition(":")
    wanted = (int(size), subjects or None)
    rows = [row for row in read("many_edits")["rows"] if (row.get("batch"), row.get("subjects")) == wanted]
    lines = [
        [
            f"`{row['method']}`",
            *(percent(row["scores"]["generate"].get(name)) for name in METRICS),
            f"{row['seconds_per_edit']:.2f}",
        ]
        for row in rows
    ]
    return table(["method", *(SHORT[name] for name in METRICS), "s / edit"], lines)


def sequences(_argument: str) -> str:
    """Reliability right after each edit and at the end, and what is left of everything else."""
    lines = []
    for row in (row for row in read("many_edits")["rows"] if row.get("sequence")):
        last = row["checkpoints"][-1]
        perplexity = last["perplexity"]
        lines.append(
            [
                f"`{row['method']}`",
                percent(row["immediate"]["generate"]["reliability"]),
                *(percent(last["scores"]["generate"].get(name)) for name in METRICS),
                "-" if perplexity is None else f"{_value(perplexity):.2f}",
                f"{row['seconds_per_edit']:.2f}",
            ]
        )
    names = [SHORT[name] for name in METRICS]
    return table(["method", "right after each edit", *names, "perplexity", "s / edit"], lines)


def batch_curves(argument: str) -> str:
    """Batches of a result file: reliability, generality, neighbours by size, and by how many subjects where told."""
    rows = [row for row in read(argument)["rows"] if row.get("batch")]
    sizes = list(dict.fromkeys((row["batch"], row.get("subjects")) for row in rows))
    cells = {(row["method"], (row["batch"], row.get("subjects"))): _triple(row["scores"]["generate"]) for row in rows}
    methods = dict.fromkeys(row["method"] for row in rows)
    lines = [[f"`{name}`", *(cells.get((name, size), "-") for size in sizes)] for name in methods]
    titles = [f"{size:,}" + (", shared subjects" if subjects == "shared" else "") for size, subjects in sizes]
    return table(["reliability / generality / neighbours", *titles], lines)


def sequence_curves(argument: str) -> str:
    """Sequences of a result file: all edits so far at every checkpoint, with perplexity and the norm of all changes."""
    rows = [row for row in read(argument)["rows"] if row.get("sequence")]
    points = list(dict.fromkeys(point["num_edits"] for row in rows for point in row["checkpoints"]))
    has_perplexity = any(row["checkpoints"][-1]["perplexity"] is not None for row in rows)
    lines = []
    for row in rows:
        found = {point["num_edits"]: point for point in row["checkpoints"]}
        last = found[points[-1]]
        lines.append(
            [
                f"`{row['method']}`",
                percent(row["immediate"]["generate"]["reliability"]),
                *(_triple(found[point]["scores"]["generate"]) for point in points),
                *([f"{_value(last['perplexity']):.2f}"] if has_perplexity else []),
                f"{last['patch_norm']:.1f}",
                f"{row['seconds_per_edit']:.2f}",
            ]
        )
    ends = [*(["perplexity"] if has_perplexity else []), "norm", "s / edit"]
    return table(["", "right after each edit", *(f"after {point:,}" for point in points), *ends], lines)


def larger_world_model(_argument: str) -> str:
    """What the model of the larger world took and what it knows."""
    (row,) = (row for row in read("larger_world")["rows"] if row.get("what") == "model")
    made, known = row["training"], row["audit"]
    asked = {
        "held_out": "facts in phrasings never read with the subject",
        "two_hop_unseen": "two-hop questions about subjects whose two-hop sentences were never read",
    }
    lines = [[text, f"{100 * known[name]['value']:.1f} ({known[name]['n']:,})"] for name, text in asked.items()]
    lines.append(["passes, million tokens, parameters in millions", _sizes(made)])
    return table(["", ""], lines)


def _sizes(made: dict[str, Any]) -> str:
    return f"{made['recipe']['epochs']:g}, {made['tokens'] / 1e6:.1f}, {made['parameters'] / 1e6:.1f}"


def _triple(scores: dict[str, Any]) -> str:
    names = ("reliability", "generality", "locality.neighborhood")
    return " / ".join(f"{100 * scores[name]['mean']:.0f}" for name in names)


def speed(_argument: str) -> str:
    """Seconds by stage at GPT-2 small's dimensions."""
    record = read("speed_cpu")
    lines = []
    for row in record["rows"]:
        number, stages = row["num_edits"], row["stages"]
        known = ("targets", "solving", "training")
        lines.append(
            [
                f"`{row['case']}`",
                str(number),
                f"{row['cpu_seconds'] / number:.2f}",
                *(f"{stages[name] / number:.2f}" if name in stages else "-" for name in known),
                f"{row['peak_memory_bytes'] / 1e9:.1f}",
                f"{100 * row['share_of_rate']:.0f}",
            ]
        )
    header = ["", "facts", "CPU s / fact", "targets", "solving", "training", "peak memory, GB", "% of matrix rate"]
    return table(header, lines)


def _value(perplexity: Any) -> float:
    return float(perplexity["after"] if isinstance(perplexity, dict) else perplexity)
