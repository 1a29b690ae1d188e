"""Draws the figures of the docs from committed results.

python docs/build/figures.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from blocks import ROOT, read, units
from edits import swept
from palimpsest.report.heat_maps import save_trace
from palimpsest.tracing import AverageTrace

METRICS = {
    "reliability": "reliability",
    "generality": "generality",
    "locality.neighborhood": "neighbours kept",
    "locality.other_relation": "same subject kept",
    "old_answer_rate": "old answer still given",
}
Curve = list[tuple[int, dict[str, Any]]]
"""Numbers of edits, and the scores there."""
VARIANTS = {
    "f-learning-ft": "forget by FT, learn by FT",
    "f-learning-lora": "forget by LoRA, learn by LoRA",
    "f-learning-lora-ft": "forget by LoRA, learn by FT",
}


def forgetting() -> None:
    """Metrics over learning passes, one line a rate, one row of panels a variant; bands are the range of the seeds."""
    epochs = (1, 2, 3, 5)
    figure, axes = plt.subplots(
        len(VARIANTS), len(METRICS), figsize=(13, 2.7 * len(VARIANTS)), sharex=True, sharey=True, squeeze=False
    )
    for line, variant in zip(axes, VARIANTS, strict=True):
        cells: dict[tuple[float, int], list[dict[str, Any]]] = {}
        for row, place in swept(variant):
            cells.setdefault(place, []).append(row["scores"]["generate"])
        rates = sorted({rate for rate, _ in cells})
        colours = ["#222222", *matplotlib.colormaps["viridis"]([0.1, 0.3, 0.5, 0.7, 0.9]).tolist()]
        for panel, (metric, title) in zip(line, METRICS.items(), strict=True):
            for rate, colour in zip(rates, colours, strict=True):
                curve = [[100 * one[metric]["mean"] for one in cells[rate, passes]] for passes in epochs]
                label = "0 (learning alone)" if rate == 0 else f"{rate:g}"
                panel.plot(epochs, [mean(values) for values in curve], color=colour, marker="o", ms=3, label=label)
                panel.fill_between(epochs, [min(v) for v in curve], [max(v) for v in curve], color=colour, alpha=0.12)
            panel.set_ylim(-3, 103)
            panel.grid(alpha=0.3)
            if variant == next(iter(VARIANTS)):
                panel.set_title(title, fontsize=10)
            if variant == list(VARIANTS)[-1]:
                panel.set_xlabel("learning passes")
        line[0].set_ylabel(f"{VARIANTS[variant]}\npercent", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, title="rate of forgetting", loc="upper center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.9))
    _save(figure, "forgetting-before-learning.svg")


def tracing() -> None:
    """The average causal trace of the bundled model, as `palimpsest trace` draws it."""
    average = AverageTrace.model_validate(read("causal_trace")["trace"])
    save_trace(average, ROOT / "docs" / "figures" / "causal-trace.png", resolution=80)


def many_edits(name: str, file: str, sizes: Sequence[int], dataset: str) -> None:
    """Metrics over the size of a batch, and over the edits of a sequence, one line a method.

    Arguments:
        dataset: which draw of facts the batches are of, by the recipe's label.
    """
    metrics = {**METRICS, "portability.one_hop": "one hop follows"}
    in_batches = [row for row in units(name, dataset=dataset) if row["protocol"] != "sequential"]
    panels = [
        ("facts in one batch", in_batches),
        ("edits one after another", units(name, protocol="sequential")),
    ]
    figure, axes = plt.subplots(len(panels), len(metrics), figsize=(15, 6), sharey=True, squeeze=False)
    everyone = list(dict.fromkeys(row["method"] for _, found in panels for row in found))
    colours = {method: plt.cm.tab20(number) for number, method in enumerate(everyone)}
    for line, (label, found) in zip(axes, panels, strict=True):
        methods = dict.fromkeys(row["method"] for row in found)
        curves = {method: _curve([row for row in found if row["method"] == method]) for method in methods}
        for panel, metric in zip(line, metrics, strict=True):
            _panel(panel, curves, metric, sizes, colours)
            panel.set_xlabel(label, fontsize=8)
        line[0].set_ylabel("percent")
        _legend(line)
    for panel, title in zip(axes[0], metrics.values(), strict=True):
        panel.set_title(title, fontsize=10)
    figure.tight_layout()
    _save(figure, file)


def trained_editors() -> None:
    """Metrics over the number of edits of trained editors, in one call and one after another, both models."""
    metrics = ("reliability", "generality", "locality.neighborhood", "locality.other_relation")
    protocols = {"batch": "in one call", "sequential": "one after another"}
    panels = [(model, protocol) for model in ("world", "world-t5") for protocol in protocols]
    figure, axes = plt.subplots(len(panels), len(metrics), figsize=(12, 10), sharex=True, sharey=True)
    methods = dict.fromkeys(row["method"] for row in units("trained-editors.tables"))
    colours = {method: plt.cm.tab10(number) for number, method in enumerate(methods)}
    for line, (model, protocol) in zip(axes, panels, strict=True):
        curves: dict[str, Curve] = {}
        for method in methods:
            rows = units("trained-editors.tables", model=model, method=method)
            found = [row for row in rows if row["protocol"].split()[0] == protocol]
            # A single edit is a batch of one.
            if found:
                singles = [(1, row["scores"]) for row in rows if row["protocol"] == "single" and protocol == "batch"]
                curves[method] = singles + _curve(found)
        for panel, metric in zip(line, metrics, strict=True):
            _panel(panel, curves, metric, (1, 10, 100), colours)
        line[0].set_ylabel(f"{model}, {protocols[protocol]}\npercent", fontsize=8)
        _legend(line)
    for top, bottom, metric in zip(axes[0], axes[-1], metrics, strict=True):
        top.set_title(METRICS[metric], fontsize=10)
        bottom.set_xlabel("edits", fontsize=8)
    figure.tight_layout()
    _save(figure, "trained-editors.svg")


def _panel(
    panel: Any, curves: Mapping[str, Curve], metric: str, sizes: Sequence[int], colours: Mapping[str, Any]
) -> None:
    """One metric in percent over the number of edits, one line a method."""
    for method, curve in curves.items():
        points = sorted(
            (size, 100 * scores["generate"][metric]["mean"]) for size, scores in curve if metric in scores["generate"]
        )
        panel.plot(*zip(*points, strict=True), color=colours[method], marker="o", ms=3, label=method)
    panel.set_xscale("log")
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
    panel.set_xlim(0.85, 1.18 * sizes[-1])
    panel.minorticks_off()
    panel.set_ylim(-3, 103)
    panel.grid(alpha=0.3)


def _legend(line: Any) -> None:
    line[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)


def _save(figure: Any, file: str) -> None:
    folder = ROOT / "docs" / "figures"
    folder.mkdir(exist_ok=True)
    # Without a date and with fixed ids, the same results give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "palimpsest"
    figure.savefig(folder / file, metadata={"Date": None})
    plt.close(figure)


def _curve(rows: list[dict[str, Any]]) -> Curve:
    """(number of edits, scores) of one method, from its batches or from the checkpoints of its sequence."""
    if rows[0]["protocol"] == "sequential":
        return [(point["num_edits"], point["scores"]) for point in rows[0]["checkpoints"]]
    return [(int(row["protocol"].split()[-1]), row["scores"]) for row in rows]


if __name__ == "__main__":
    forgetting()
    many_edits("many-edits.tables", "many-edits.svg", (1, 10, 100), "world-counterfact")
    many_edits("many-edits.larger", "larger-world.svg", (1, 10, 100, 1000), "distinct subjects")
    trained_editors()
    tracing()
