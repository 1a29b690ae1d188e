"""Draws the figures of the docs from committed results.

python bench/figures.py
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from pages import ROOT, read
from palimpsest.report.heat_maps import save_trace
from palimpsest.tracing import AverageTrace

METRICS = {
    "reliability": "reliability",
    "generality": "generality",
    "locality.neighborhood": "neighbours kept",
    "locality.other_relation": "same subject kept",
    "old_answer_rate": "old answer still given",
}
VARIANTS = {
    "f-learning-ft": "forget by FT, learn by FT",
    "f-learning-lora": "forget by LoRA, learn by LoRA",
    "f-learning-lora-ft": "forget by LoRA, learn by FT",
}


def forgetting() -> None:
    """Metrics over learning passes, one line a rate, one row of panels a variant; bands are the range of the seeds."""
    rows = read("forgetting_before_learning")["rows"]
    epochs = (1, 2, 3, 5)
    rates = sorted({row["rate"] for row in rows})
    colours = ["#222222", *matplotlib.colormaps["viridis"]([0.1, 0.3, 0.5, 0.7, 0.9]).tolist()]
    present = [variant for variant in VARIANTS if any(row["variant"] == variant for row in rows)]
    figure, axes = plt.subplots(
        len(present), len(METRICS), figsize=(13, 2.7 * len(present)), sharex=True, sharey=True, squeeze=False
    )
    for line, variant in zip(axes, present, strict=True):
        for panel, (metric, title) in zip(line, METRICS.items(), strict=True):
            for rate, colour in zip(rates, colours, strict=True):
                # Without forgetting, LoRA then FT is FT.
                source = "f-learning-ft" if rate == 0 and variant == "f-learning-lora-ft" else variant
                curve = [
                    [
                        100 * row["scores"]["generate"][metric]["mean"]
                        for row in rows
                        if (row["variant"], row["rate"], row["epochs"]) == (source, rate, passes)
                    ]
                    for passes in epochs
                ]
                if not all(curve):
                    continue
                label = "0 (learning alone)" if rate == 0 else f"{rate:g}"
                panel.plot(epochs, [mean(values) for values in curve], color=colour, marker="o", ms=3, label=label)
                panel.fill_between(epochs, [min(v) for v in curve], [max(v) for v in curve], color=colour, alpha=0.12)
            panel.set_ylim(-3, 103)
            panel.grid(alpha=0.3)
            if variant == present[0]:
                panel.set_title(title, fontsize=10)
            if variant == present[-1]:
                panel.set_xlabel("learning passes")
        line[0].set_ylabel(f"{VARIANTS[variant]}\npercent", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, title="rate of forgetting", loc="upper center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.9 if len(present) > 1 else 0.84))
    folder = ROOT / "docs" / "figures"
    folder.mkdir(exist_ok=True)
    # Without a date and with fixed ids, the same results give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "palimpsest"
    figure.savefig(folder / "forgetting-before-learning.svg", metadata={"Date": None})
    plt.close(figure)


def tracing() -> None:
    """The average causal trace of the bundled model, as `palimpsest trace` draws it."""
    average = AverageTrace.model_validate(read("causal_trace")["average"])
    save_trace(average, ROOT / "docs" / "figures" / "causal-trace.png", resolution=80)


def many_edits(results: str, file: str, sizes: Sequence[int]) -> None:
    """Metrics over the size of a batch, and over the edits of a sequence, one line a method."""
    rows = read(results)["rows"]
    # In the small world the plain draw, in the larger one subjects that are all different.
    own = {"distinct"} if results == "larger_world" else {None}
    metrics = {**METRICS, "portability.one_hop": "one hop follows"}
    panels = [
        ("facts in one batch", [row for row in rows if row.get("batch") and row.get("subjects") in own]),
        ("edits one after another", [row for row in rows if row.get("sequence")]),
    ]
    figure, axes = plt.subplots(len(panels), len(metrics), figsize=(15, 6), sharey=True, squeeze=False)
    everyone = list(dict.fromkeys(row["method"] for _, found in panels for row in found))
    for number_of_line, (line, (label, found)) in enumerate(zip(axes, panels, strict=True)):
        methods = list(dict.fromkeys(row["method"] for row in found))
        for panel, (metric, title) in zip(line, metrics.items(), strict=True):
            for method in methods:
                points = sorted(
                    (size, 100 * scores["generate"][metric]["mean"])
                    for size, scores in _curve([row for row in found if row["method"] == method])
                    if metric in scores["generate"]
                )
                panel.plot(
                    *zip(*points, strict=True),
                    color=plt.cm.tab20(everyone.index(method)),
                    marker="o",
                    ms=3,
                    label=method,
                )
            panel.set_xscale("log")
            panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
            panel.set_xlim(0.85, 1.18 * sizes[-1])
            panel.minorticks_off()
            panel.set_ylim(-3, 103)
            panel.grid(alpha=0.3)
            panel.set_xlabel(label, fontsize=8)
            if number_of_line == 0:
                panel.set_title(title, fontsize=10)
        line[0].set_ylabel("percent")
        line[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.tight_layout()
    matplotlib.rcParams["svg.hashsalt"] = "palimpsest"
    figure.savefig(ROOT / "docs" / "figures" / file, metadata={"Date": None})
    plt.close(figure)


def trained_editors() -> None:
    """Metrics over the number of edits of trained editors, in one call and one after another, both models."""
    metrics = ("reliability", "generality", "locality.neighborhood", "locality.other_relation")
    names = [f"trained_editors{suffix}" for suffix in ("", "_world_t5")]
    figure, axes = plt.subplots(2 * len(names), len(metrics), figsize=(12, 10), sharex=True, sharey=True)
    methods = list(dict.fromkeys(row["method"] for name in names for row in read(name)["rows"]))
    protocols = {"batch": "in one call", "sequential": "one after another"}
    panels = [(name, protocol) for name in names for protocol in protocols]
    for number, (line, (name, protocol)) in enumerate(zip(axes, panels, strict=True)):
        record = read(name)
        for panel, metric in zip(line, metrics, strict=True):
            for method in methods:
                rows = [row for row in record["rows"] if (row["method"], row["protocol"]) == (method, protocol)]
                # A single edit is a batch of one.
                alone = [row for row in record["rows"] if (row["method"], row["protocol"]) == (method, "single")]
                if not rows:
                    continue
                points = [(1, row["scores"]) for row in alone if protocol == "batch"] + _curve(rows)
                found = sorted(
                    (size, 100 * scores["generate"][metric]["mean"])
                    for size, scores in points
                    if metric in scores["generate"]
                )
                colour = plt.cm.tab10(methods.index(method))
                panel.plot(*zip(*found, strict=True), color=colour, marker="o", ms=3, label=method)
            panel.set_xscale("log")
            panel.set_xticks((1, 10, 100), ("1", "10", "100"))
            panel.minorticks_off()
            panel.set_ylim(-3, 103)
            panel.grid(alpha=0.3)
            if number == 0:
                panel.set_title(METRICS[metric], fontsize=10)
            if number == len(panels) - 1:
                panel.set_xlabel("edits", fontsize=8)
        line[0].set_ylabel(f"{record['settings']['model']}, {protocols[protocol]}\npercent", fontsize=8)
        line[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.tight_layout()
    matplotlib.rcParams["svg.hashsalt"] = "palimpsest"
    figure.savefig(ROOT / "docs" / "figures" / "trained-editors.svg", metadata={"Date": None})
    plt.close(figure)


def _curve(rows: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """(number of edits, scores) of one method, from its batches or from the checkpoints of its sequence."""
    if rows[0].get("batch"):
        return [(row["batch"], row["scores"]) for row in rows]
    return [(point["num_edits"], point["scores"]) for point in rows[0]["checkpoints"]]


if __name__ == "__main__":
    forgetting()
    many_edits("many_edits", "many-edits.svg", (1, 10, 100))
    many_edits("larger_world", "larger-world.svg", (1, 10, 100, 1000))
    trained_editors()
    tracing()
