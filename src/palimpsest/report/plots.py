"""Plots of the runs of one setting, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from palimpsest.report import tables
from palimpsest.report.definitions import label
from palimpsest.report.drawing import (
    ACCENT,
    INK,
    LEGEND_COLUMNS,
    LINE,
    MUTED,
    PAGE_WIDTH,
    formatter,
    label_width,
    legend_height,
    line_style,
    log_ticks,
    new_figure,
    rows_axis,
    svg,
)
from palimpsest.report.tables import ReportRun, metrics
from palimpsest.showing import size

_MOST_BANDS = 3  # more intervals than that, one over the other, hide the lines


def metrics_plot(runs: Sequence[ReportRun], scoring: str) -> str:
    """Every metric with its interval, one panel per metric, one line per run."""
    names = metrics(runs, scoring)
    if not names:
        return ""
    lines = math.ceil(len(names) / 5)
    columns = math.ceil(len(names) / lines)
    left = label_width(runs)
    height = 0.26 * len(runs) + 0.85
    width = min(2.4, max(1.6, (PAGE_WIDTH - left) / columns))
    figure, panels = new_figure(left + width * columns, lines * height, lines, columns, f"metrics {scoring}")
    for index, panel in enumerate(panels):
        if index >= len(names):
            panel.axis("off")
            continue
        for place, run in enumerate(runs):
            found = run.estimate(scoring, names[index])
            if found is None:
                panel.text(0.5, place, "not scored", ha="center", va="center", color=MUTED, fontsize=8)
                continue
            panel.plot([found.low, found.high], [place, place], color=ACCENT, linewidth=2.2, alpha=0.45)
            panel.plot([found.mean], [place], "o", color=ACCENT, markersize=6)
        rows_axis(panel, runs, show_names=index % columns == 0)
        panel.set_xlim(-0.04, 1.04)
        panel.set_xticks([0, 0.5, 1], ["0", "50", "100%"])
        panel.set_title(label(names[index]), loc="left", fontsize=9.5)
    return svg(figure, f"Every metric by run with its 95% interval, scoring {scoring}")


def costs_plot(runs: Sequence[ReportRun]) -> str:
    """Seconds per edit and size of the patch, on logarithmic axes."""
    panels_wanted: list[tuple[str, list[float | None], Callable[[float], str]]] = [
        ("seconds per edit", [run.record.seconds_per_edit for run in runs], tables.duration),
        ("patch size", [run.record.patch_bytes for run in runs], size),
    ]
    shown = [one for one in panels_wanted if any(value for value in one[1])]
    if not shown:
        return ""
    height = 0.28 * len(runs) + 0.8
    figure, panels = new_figure(label_width(runs) + 4.2 * len(shown), height, 1, len(shown), "costs")
    for index, (panel, (title, values, write)) in enumerate(zip(panels, shown, strict=True)):
        known = [float(value) for value in values if value]
        panel.set_xscale("log")
        low, high = min(known) / 1.6, max(known) * 6
        panel.set_xlim(low, high)
        for place, value in enumerate(values):
            if not value:
                continue
            panel.plot([low, value], [place, place], color=LINE, linewidth=1.2)
            panel.plot([value], [place], "o", color=ACCENT, markersize=6)
            panel.annotate(write(float(value)), (value, place), xytext=(7, 0), textcoords="offset points",
                           va="center", fontsize=9, color=INK)  # fmt: skip
        rows_axis(panel, runs, show_names=index == 0)
        panel.xaxis.set_major_locator(log_ticks(low, high))
        panel.xaxis.set_major_formatter(formatter(write))
        panel.minorticks_off()
        panel.set_title(f"{title} (logarithmic)", loc="left", fontsize=9.5)
    return svg(figure, "Seconds per edit and size of the patch by run")


def locality_plot(runs: Sequence[ReportRun], scoring: str) -> str:
    """A heat map: what stayed as it was, by run and kind of locality."""
    kinds = [name for name in metrics(runs, scoring) if name.startswith("locality")]
    if not kinds:
        return ""
    from matplotlib.patches import Rectangle

    figure, [panel] = new_figure(
        label_width(runs) + 1.25 * len(kinds) + 0.2, 0.34 * len(runs) + 0.7, 1, 1, f"locality {scoring}"
    )
    for row, run in enumerate(runs):
        for column, kind in enumerate(kinds):
            mean = run.mean(scoring, kind)
            strength = 0.0 if mean is None else 0.06 + 0.5 * mean
            panel.add_patch(Rectangle((column + 0.03, row - 0.46), 0.94, 0.92, facecolor=ACCENT, alpha=strength))
            text = "–" if mean is None else f"{100 * mean:.0f}%"
            panel.text(column + 0.5, row, text, ha="center", va="center", color=INK, fontsize=10)
    panel.set_xlim(0, len(kinds))
    panel.xaxis.tick_top()
    panel.set_xticks([column + 0.5 for column in range(len(kinds))], [label(kind).split(": ")[-1] for kind in kinds])
    panel.tick_params(length=0)
    rows_axis(panel, runs, show_names=True, has_grid=False)
    for spine in panel.spines.values():
        spine.set_visible(False)
    return svg(figure, f"Share of answers that stayed as they were, by run and kind of locality, scoring {scoring}")


def curves_plot(runs: Sequence[ReportRun], scoring: str) -> str:
    """How all edits so far fare as their number grows; only runs with checkpoints are in it."""
    with_points = [run for run in runs if len(run.record.checkpoints) > 1]
    names = sorted(
        {name for run in with_points for point in run.record.checkpoints for name in point.scores.get(scoring, {})},
        key=lambda name: (not name.startswith("reliability"), not name.startswith("generality"), name),
    )[:9]
    if not names:
        return ""
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure, panels = new_figure(2.9 * columns + 0.6, 2.3 * lines + legend_height(len(with_points)), lines, columns,
                             f"curves {scoring}")  # fmt: skip
    for index, panel in enumerate(panels):
        if index >= len(names):
            panel.axis("off")
            continue
        ticks: set[int] = set()
        for number, run in enumerate(with_points):
            points = [
                (point.num_edits, found)
                for point in run.record.checkpoints
                if (found := point.scores.get(scoring, {}).get(names[index])) is not None
            ]
            ticks |= {count for count, _ in points}
            style = line_style(number)
            counts = [count for count, _ in points]
            if len(with_points) <= _MOST_BANDS:
                panel.fill_between(counts, [one.low for _, one in points], [one.high for _, one in points],
                                   color=style["color"], alpha=0.12, linewidth=0)  # fmt: skip
            name = run.label if index == 0 else None
            panel.plot(counts, [one.mean for _, one in points], label=name, **style)
        panel.set_xscale("log")
        panel.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
        panel.minorticks_off()
        panel.set_ylim(-0.04, 1.04)
        panel.set_yticks([0, 0.5, 1], ["0", "50", "100%"])
        panel.grid(axis="y", linewidth=0.6)
        panel.set_title(label(names[index]), loc="left", fontsize=9.5)
        panel.set_xlabel("edits so far", fontsize=9)
    figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=9, frameon=False, labelcolor=INK)
    return svg(figure, f"Scores of all edits so far by their number, scoring {scoring}")
