"""What all plots share: figures, axes, and drawings as inline SVG.

Colours are names of the page's own, so that one drawing serves light and dark.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from palimpsest.report.tables import ReportRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that matplotlib draws with; each is replaced by the page's variable of that name.
INK, MUTED, LINE, ACCENT = "#010101", "#020202", "#030303", "#040404"
_SERIES = ("#050501", "#050502", "#050503", "#050504", "#050505", "#050506", "#050507", "#050508")
_VARIABLES: Mapping[str, str] = MappingProxyType(
    {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent"}
    | {colour: f"series-{index}" for index, colour in enumerate(_SERIES, 1)}
)
_MARKERS = "osD^vP*X"
_STYLE: Mapping[str, Any] = MappingProxyType(
    {
        "svg.fonttype": "none",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": MUTED,
        "ytick.color": INK,
        "xtick.labelsize": 9,
        "ytick.labelsize": 10,
        "grid.color": LINE,
        "legend.frameon": False,
    }
)
PAGE_WIDTH = 11.0  # inches, at matplotlib's 96 CSS pixels each a little less than the page's text width
LEGEND_COLUMNS, _LEGEND_LINE = 4, 0.3  # inches
LETTER = 0.085  # inches a letter of a label takes, on the safe side


def new_figure(width: float, height: float, lines: int, columns: int, name: str) -> tuple[Figure, list[Axes]]:
    """A figure of that many inches, and its panels line by line; `name` tells its ids from those of another."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_style(name)):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.09, w_pad=0.06)  # type: ignore[call-arg, union-attr]
        grid = figure.subplots(lines, columns, squeeze=False)
    figure.set_label(name)
    return figure, [panel for line in grid for panel in line]


def line_style(number: int) -> dict[str, Any]:
    """Colour and marker of a line; once the colours are used up they come again with other markers."""
    turn = number // len(_SERIES)
    marker = _MARKERS[(number + turn) % len(_MARKERS)]
    return {"color": _SERIES[number % len(_SERIES)], "marker": marker, "markersize": 4.5}


def legend_height(names: int) -> float:
    """Inches that a legend below the panels takes."""
    return _LEGEND_LINE * math.ceil(names / LEGEND_COLUMNS)


def _style(name: str) -> Any:
    # The salt makes ids inside one drawing differ from those of another on the same page.
    return {**_STYLE, "svg.hashsalt": name}


def rows_axis(panel: Axes, runs: Sequence[ReportRun], *, show_names: bool, has_grid: bool = True) -> None:
    """Gives each run a line of a panel."""
    panel.set_ylim(len(runs) - 0.4, -0.6)
    panel.set_yticks(range(len(runs)), [run.label for run in runs] if show_names else [""] * len(runs))
    panel.tick_params(axis="y", length=0)
    if has_grid:
        panel.grid(axis="x", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines["left"].set_visible(False)


def label_width(runs: Sequence[ReportRun]) -> float:
    """Inches that the runs' labels take."""
    return 0.3 + LETTER * max(len(run.label) for run in runs)


def formatter(write: Callable[[float], str]) -> Callable[[float, float], str]:
    """An axis' labels, as matplotlib asks for them."""
    return lambda value, _place: write(value)


def log_ticks(low: float, high: float) -> Any:
    """Whole powers of ten between two bounds, at most about four."""
    from matplotlib.ticker import FixedLocator

    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, math.ceil((last - first + 1) / 4))
    return FixedLocator([10.0**power for power in range(first, last + 1, step)])


def svg(figure: Figure, description: str) -> str:
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
