"""Plots as inline SVG. Colours are names of the page's own, so that one drawing serves light and dark."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from palimpsest.report import tables
from palimpsest.report.definitions import label
from palimpsest.report.tables import ReportRun, metrics
from palimpsest.showing import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from palimpsest.evaluation import RunRecord
    from palimpsest.report.settings import SettingGroup

# Stand-ins that matplotlib draws with; each is replaced by the page's variable of that name.
_INK, _MUTED, _LINE, _ACCENT = "#010101", "#020202", "#030303", "#040404"
_SERIES = ("#050501", "#050502", "#050503", "#050504", "#050505", "#050506", "#050507", "#050508")
_VARIABLES: Mapping[str, str] = MappingProxyType(
    {_INK: "ink", _MUTED: "muted", _LINE: "line", _ACCENT: "accent"}
    | {colour: f"series-{index}" for index, colour in enumerate(_SERIES, 1)}
)
_MARKERS = "osD^vP*X"
_STYLE: Mapping[str, Any] = MappingProxyType(
    {
        "svg.fonttype": "none",
        "font.size": 10,
        "text.color": _INK,
        "axes.labelcolor": _MUTED,
        "axes.edgecolor": _LINE,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _MUTED,
        "ytick.color": _INK,
        "xtick.labelsize": 9,
        "ytick.labelsize": 10,
        "grid.color": _LINE,
        "legend.frameon": False,
    }
)
_PAGE_WIDTH = 11.0  # inches, at matplotlib's 96 CSS pixels each a little less than the page's text width
_LEGEND_COLUMNS, _LEGEND_LINE = 4, 0.3  # inches
_MOST_BANDS = 3  # more intervals than that, one over the other, hide the lines
_FAMILIES = {"reliability": "rel.", "generality": "gen.", "locality": "loc.", "portability": "port."}
_MOST_SETTINGS = 4  # in one line of the overview; more are too small to read
_LETTER = 0.085  # inches a letter of a label takes, on the safe side


def metrics_plot(runs: Sequence[ReportRun], scoring: str) -> str:
    """Every metric with its interval, one panel a metric, one line a run."""
    names = metrics(runs, scoring)
    if not names:
        return ""
    lines = math.ceil(len(names) / 5)
    columns = math.ceil(len(names) / lines)
    left = _label_width(runs)
    height = 0.26 * len(runs) + 0.85
    width = min(2.4, max(1.6, (_PAGE_WIDTH - left) / columns))
    figure, panels = _figure(left + width * columns, lines * height, lines, columns, f"metrics {scoring}")
    for index, panel in enumerate(panels):
        if index >= len(names):
            panel.axis("off")
            continue
        for place, run in enumerate(runs):
            found = run.estimate(scoring, names[index])
            if found is None:
                panel.text(0.5, place, "not scored", ha="center", va="center", color=_MUTED, fontsize=8)
                continue
            panel.plot([found.low, found.high], [place, place], color=_ACCENT, linewidth=2.2, alpha=0.45)
            panel.plot([found.mean], [place], "o", color=_ACCENT, markersize=6)
        _rows_axis(panel, runs, show_names=index % columns == 0)
        panel.set_xlim(-0.04, 1.04)
        panel.set_xticks([0, 0.5, 1], ["0", "50", "100%"])
        panel.set_title(label(names[index]), loc="left", fontsize=9.5)
    return _svg(figure, f"Every metric by run with its 95% interval, scoring {scoring}")


def costs_plot(runs: Sequence[ReportRun]) -> str:
    """Seconds an edit and size of the patch, on logarithmic axes."""
    panels_wanted: list[tuple[str, list[float | None], Callable[[float], str]]] = [
        ("seconds per edit", [run.record.seconds_per_edit for run in runs], tables.duration),
        ("patch size", [run.record.patch_bytes for run in runs], size),
    ]
    shown = [one for one in panels_wanted if any(value for value in one[1])]
    if not shown:
        return ""
    height = 0.28 * len(runs) + 0.8
    figure, panels = _figure(_label_width(runs) + 4.2 * len(shown), height, 1, len(shown), "costs")
    for index, (panel, (title, values, write)) in enumerate(zip(panels, shown, strict=True)):
        known = [float(value) for value in values if value]
        panel.set_xscale("log")
        low, high = min(known) / 1.6, max(known) * 6
        panel.set_xlim(low, high)
        for place, value in enumerate(values):
            if not value:
                continue
            panel.plot([low, value], [place, place], color=_LINE, linewidth=1.2)
            panel.plot([value], [place], "o", color=_ACCENT, markersize=6)
            panel.annotate(write(float(value)), (value, place), xytext=(7, 0), textcoords="offset points",
                           va="center", fontsize=9, color=_INK)  # fmt: skip
        _rows_axis(panel, runs, show_names=index == 0)
        panel.xaxis.set_major_locator(_log_ticks(low, high))
        panel.xaxis.set_major_formatter(_formatter(write))
        panel.minorticks_off()
        panel.set_title(f"{title} (logarithmic)", loc="left", fontsize=9.5)
    return _svg(figure, "Seconds an edit and size of the patch by run")


def locality_plot(runs: Sequence[ReportRun], scoring: str) -> str:
    """A heat map: what stayed as it was, by run and kind of locality."""
    kinds = [name for name in metrics(runs, scoring) if name.startswith("locality")]
    if not kinds:
        return ""
    from matplotlib.patches import Rectangle

    figure, [panel] = _figure(
        _label_width(runs) + 1.25 * len(kinds) + 0.2, 0.34 * len(runs) + 0.7, 1, 1, f"locality {scoring}"
    )
    for row, run in enumerate(runs):
        for column, kind in enumerate(kinds):
            mean = run.mean(scoring, kind)
            strength = 0.0 if mean is None else 0.06 + 0.5 * mean
            panel.add_patch(Rectangle((column + 0.03, row - 0.46), 0.94, 0.92, facecolor=_ACCENT, alpha=strength))
            text = "–" if mean is None else f"{100 * mean:.0f}%"
            panel.text(column + 0.5, row, text, ha="center", va="center", color=_INK, fontsize=10)
    panel.set_xlim(0, len(kinds))
    panel.xaxis.tick_top()
    panel.set_xticks([column + 0.5 for column in range(len(kinds))], [label(kind).split(": ")[-1] for kind in kinds])
    panel.tick_params(length=0)
    _rows_axis(panel, runs, show_names=True, has_grid=False)
    for spine in panel.spines.values():
        spine.set_visible(False)
    return _svg(figure, f"Share of answers that stayed as they were, by run and kind of locality, scoring {scoring}")


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
    figure, panels = _figure(2.9 * columns + 0.6, 2.3 * lines + _legend_height(len(with_points)), lines, columns,
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
            style = _line_style(number)
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
    figure.legend(loc="outside lower center", ncols=_LEGEND_COLUMNS, fontsize=9, frameon=False, labelcolor=_INK)
    return _svg(figure, f"Scores of all edits so far by their number, scoring {scoring}")


def overview_plot(groups: Sequence[SettingGroup], scoring: str) -> str:
    """A heat map of methods and settings: the four metrics, each the mean over its kinds."""
    rows = list(dict.fromkeys(run.record.specification.method for group in groups for run in group.runs))
    lines = [groups[start : start + _MOST_SETTINGS] for start in range(0, len(groups), _MOST_SETTINGS)]
    width = 0.3 + _LETTER * max(map(len, rows)) + 0.62 * len(_FAMILIES) * len(lines[0])
    figure, panels = _figure(width, (0.32 * len(rows) + 1.0) * len(lines), len(lines), 1, f"overview {scoring}")
    for panel, line in zip(panels, lines, strict=True):
        _overview_line(panel, line, rows, scoring, room=len(lines[0]))
    return _svg(figure, f"Four metrics by method and setting, scoring {scoring}")


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
            panel.add_patch(Rectangle(corner, 0.94, 0.92, facecolor=_ACCENT, alpha=0.06 + 0.5 * mean))
            panel.text(column + 0.5, row, f"{100 * mean:.0f}", ha="center", va="center", color=_INK, fontsize=9)
    panel.set_xlim(0, len(_FAMILIES) * room)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_yticks(range(len(rows)), rows)
    panel.xaxis.tick_top()
    panel.set_xticks([place + 0.5 for place in range(len(columns))], [_FAMILIES[family] for _, family in columns])
    for number, group in enumerate(line):
        words = group.setting.title.replace(", ", "\n")
        panel.text((number + 0.5) * len(_FAMILIES), -1.15, words, ha="center", va="bottom", color=_MUTED, fontsize=8)
        if number:
            panel.axvline(number * len(_FAMILIES), color=_LINE, linewidth=1)
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
    figure, panels = _figure(2.9 * len(_FAMILIES) + 0.6, 2.4 * len(shown) + _legend_height(len(names)), len(shown),
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
                panel.plot(*zip(*points, strict=True), label=None if name in named else name, **_line_style(number))
                named.add(name)
        panel.set_xscale("log")
        panel.set_xticks(list(shown[key]), [str(size) for size in shown[key]])
        panel.minorticks_off()
        panel.set_ylim(-0.04, 1.04)
        panel.set_yticks([0, 0.5, 1], ["0", "50", "100%"])
        panel.grid(axis="y", linewidth=0.6)
        panel.set_title(f"{family} ({', '.join(key)})", loc="left", fontsize=9)
        panel.set_xlabel("facts in a batch", fontsize=9)
    figure.legend(loc="outside lower center", ncols=_LEGEND_COLUMNS, fontsize=9, frameon=False, labelcolor=_INK)
    return _svg(figure, f"Four metrics by size of the batch, scoring {scoring}")


def _figure(width: float, height: float, lines: int, columns: int, name: str) -> tuple[Figure, list[Axes]]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_style(name)):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.09, w_pad=0.06)  # type: ignore[call-arg, union-attr]
        grid = figure.subplots(lines, columns, squeeze=False)
    figure.set_label(name)
    return figure, [panel for line in grid for panel in line]


def _with_most_edits(runs: Sequence[ReportRun]) -> list[RunRecord]:
    """Records of which each method has one number of edits, its largest: sizes are compared, not numbers."""
    most: dict[str, int] = {}
    for run in runs:
        made = run.record.specification
        most[made.method] = max(made.num_edits, most.get(made.method, 0))
    records = [run.record for run in runs]
    return [one for one in records if one.specification.num_edits == most[one.specification.method]]


def _line_style(number: int) -> dict[str, Any]:
    """Colour and marker of a line; once the colours are used up they come again with other markers."""
    turn = number // len(_SERIES)
    marker = _MARKERS[(number + turn) % len(_MARKERS)]
    return {"color": _SERIES[number % len(_SERIES)], "marker": marker, "markersize": 4.5}


def _legend_height(names: int) -> float:
    """Inches that a legend below the panels takes."""
    return _LEGEND_LINE * math.ceil(names / _LEGEND_COLUMNS)


def _style(name: str) -> Any:
    # The salt makes ids inside one drawing differ from those of another on the same page.
    return {**_STYLE, "svg.hashsalt": name}


def _rows_axis(panel: Axes, runs: Sequence[ReportRun], *, show_names: bool, has_grid: bool = True) -> None:
    panel.set_ylim(len(runs) - 0.4, -0.6)
    panel.set_yticks(range(len(runs)), [run.label for run in runs] if show_names else [""] * len(runs))
    panel.tick_params(axis="y", length=0)
    if has_grid:
        panel.grid(axis="x", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines["left"].set_visible(False)


def _label_width(runs: Sequence[ReportRun]) -> float:
    return 0.3 + _LETTER * max(len(run.label) for run in runs)


def _formatter(write: Callable[[float], str]) -> Callable[[float, float], str]:
    return lambda value, _place: write(value)


def _log_ticks(low: float, high: float) -> Any:
    from matplotlib.ticker import FixedLocator

    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, math.ceil((last - first + 1) / 4))
    return FixedLocator([10.0**power for power in range(first, last + 1, step)])


def _svg(figure: Figure, description: str) -> str:
    """The drawing as an element of an HTML page, with no reference to anything outside it."""
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context(_style(str(figure.get_label()))):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    # Group ids repeat from one drawing to the next and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'<text ([^>]*)font: ([\d.]+)px [^;"]*', r"<text \1font-size: \2px", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    width = float(re.search(r'width="([\d.]+)pt"', text)[1])  # type: ignore[index]
    opening = f'<svg role="img" aria-label="{html.escape(description)}" style="width:{width * 4 / 3:.0f}px"'
    return re.sub(r'<svg width="[\d.]+pt" height="[\d.]+pt"', opening, text, count=1)
