"""Plots across settings: methods against models, data sets, protocols and batch sizes, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from palimpsest.report import tables
from palimpsest.report.drawing import (
    ACCENT,
    INK,
    LEGEND_COLUMNS,
    LETTER,
    LINE,
    MUTED,
    legend_height,
    line_style,
    new_figure,
    svg,
)
from palimpsest.report.tables import ReportRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from palimpsest.evaluation import RunRecord
    from palimpsest.report.settings import SettingGroup

_FAMILIES = {"reliability": "rel.", "generality": "gen.", "locality": "loc.", "portability": "port."}
_MOST_SETTINGS = 4  # in one line of the overview; more are too small to read


def overview_plot(groups: Sequence[SettingGroup], scoring: str) -> str:
    """A heat map of methods and settings: the four metrics, each the mean over its kinds."""
    rows = list(dict.fromkeys(run.record.specification.method for group in groups for run in group.runs))
    lines = [groups[start : start + _MOST_SETTINGS] for start in range(0, len(groups), _MOST_SETTINGS)]
    width = 0.3 + LETTER * max(map(len, rows)) + 0.62 * len(_FAMILIES) * len(lines[0])
    figure, panels = new_figure(width, (0.32 * len(rows) + 1.0) * len(lines), len(lines), 1, f"overview {scoring}")
    for panel, line in zip(panels, lines, strict=True):
        _overview_line(panel, line, rows, scoring, room=len(lines[0]))
    return svg(figure, f"Four metrics by method and setting, scoring {scoring}")


def _overview_line(panel: Axes, line: Sequence[SettingGroup], rows: Sequence[str], scoring: str, *, room: int) -> None:
    """Some settings beside each other, in a panel with room for so many."""
    from matplotlib.patches import Rectangle

    columns = [(number, family) for number in range(len(line)) for family in _FAMILIES]
    for column, (number, family) in enumerate(columns):
        for run in line[number].runs:
            mean = run.family_mean(scoring, family)
            if mean is None:
                continue
            row = rows.index(run.record.specification.method)
            corner = (column + 0.03, row - 0.46)
            panel.add_patch(Rectangle(corner, 0.94, 0.92, facecolor=ACCENT, alpha=0.06 + 0.5 * mean))
            panel.text(column + 0.5, row, f"{100 * mean:.0f}", ha="center", va="center", color=INK, fontsize=9)
    panel.set_xlim(0, len(_FAMILIES) * room)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_yticks(range(len(rows)), rows)
    panel.xaxis.tick_top()
    panel.set_xticks([place + 0.5 for place in range(len(columns))], [_FAMILIES[family] for _, family in columns])
    for number, group in enumerate(line):
        words = group.setting.title.replace(", ", "\n")
        panel.text((number + 0.5) * len(_FAMILIES), -1.15, words, ha="center", va="bottom", color=MUTED, fontsize=8)
        if number:
            panel.axvline(number * len(_FAMILIES), color=LINE, linewidth=1)
    panel.tick_params(length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)


def batches_plot(groups: Sequence[SettingGroup], scoring: str) -> str:
    """How methods fare as batches grow: one line of panels a model and data set that has several sizes."""
    sizes: dict[tuple[str, str], dict[int, list[ReportRun]]] = {}
    for group in groups:
        setting = group.setting
        if setting.protocol == "batch" and setting.batch_size is not None:
            named_runs = tables.label_runs(_with_most_edits(group.runs), told=())
            sizes.setdefault((setting.model, setting.dataset), {})[setting.batch_size] = named_runs
    shown = {key: dict(sorted(found.items())) for key, found in sizes.items() if len(found) > 1}
    runs = [run for found in shown.values() for some in found.values() for run in some]
    names = list(dict.fromkeys(run.label for run in runs if run.record.scores.get(scoring)))
    if not names:
        return ""
    figure, panels = new_figure(2.9 * len(_FAMILIES) + 0.6, 2.4 * len(shown) + legend_height(len(names)), len(shown),
                             len(_FAMILIES), f"batches {scoring}")  # fmt: skip
    named: set[str] = set()
    for panel, (key, family) in zip(panels, ((key, family) for key in shown for family in _FAMILIES), strict=True):
        for number, name in enumerate(names):
            points = [
                (size, mean)
                for size, some in shown[key].items()
                for run in some
                if run.label == name and (mean := run.family_mean(scoring, family)) is not None
            ]
            if points:
                panel.plot(*zip(*points, strict=True), label=None if name in named else name, **line_style(number))
                named.add(name)
        panel.set_xscale("log")
        panel.set_xticks(list(shown[key]), [str(size) for size in shown[key]])
        panel.minorticks_off()
        panel.set_ylim(-0.04, 1.04)
        panel.set_yticks([0, 0.5, 1], ["0", "50", "100%"])
        panel.grid(axis="y", linewidth=0.6)
        panel.set_title(f"{family} ({', '.join(key)})", loc="left", fontsize=9)
        panel.set_xlabel("facts in a batch", fontsize=9)
    figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=9, frameon=False, labelcolor=INK)
    return svg(figure, f"Four metrics by size of the batch, scoring {scoring}")


def _with_most_edits(runs: Sequence[ReportRun]) -> list[RunRecord]:
    """Records of which each method has one number of edits, its largest: sizes are compared, not numbers."""
    most: dict[str, int] = {}
    for run in runs:
        made = run.record.specification
        most[made.method] = max(made.num_edits, most.get(made.method, 0))
    records = [run.record for run in runs]
    return [one for one in records if one.specification.num_edits == most[one.specification.method]]
