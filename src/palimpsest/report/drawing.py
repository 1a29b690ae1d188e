"""Lines by a number of edits as inline SVG.

Colours are names of the page's own, so that one drawing serves light and dark.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point: TypeAlias = tuple[int, float, float, float]
"""How many edits, the mean, and its interval's lower and upper bound."""

# Stand-ins that matplotlib draws with; each is replaced by the page's variable of that name.
_INK, _MUTED, _LINE = "#010101", "#020202", "#030303"
_SERIES = ("#050501", "#050502", "#050503", "#050504", "#050505", "#050506", "#050507", "#050508")
_VARIABLES: Mapping[str, str] = MappingProxyType(
    {_INK: "ink", _MUTED: "muted", _LINE: "line"}
    | {colour: f"series-{index}" for index, colour in enumerate(_SERIES, 1)}
)
# Each marker as matplotlib names it and as a sign for the legend.
_MARKERS = (("o", "●"), ("s", "■"), ("D", "◆"), ("^", "▲"), ("v", "▼"), ("P", "✚"), ("*", "★"), ("X", "✖"))
_STYLE: Mapping[str, Any] = MappingProxyType(
    {
        "svg.fonttype": "none",
        "font.size": 10,
        "text.color": _INK,
        "axes.labelcolor": _MUTED,
        "axes.edgecolor": _LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "grid.color": _LINE,
    }
)
_PANEL = (3.2, 2.3)  # inches
_MOST_BANDS = 3  # more intervals than that, one over the other, hide the lines


def line_panel(title: str, across: str, lines: Sequence[Sequence[Point]], name: str) -> str:
    """One panel: shares from 0 to 100% by how many edits there are, on a logarithmic axis.

    Arguments:
        title: what is drawn.
        across: what the horizontal axis counts.
        lines: the points of each line; the place among them chooses colour and marker, as in `legend`.
        name: tells the drawing's ids from those of another on the page.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_style(name)):
        figure = Figure(figsize=_PANEL)
        figure.subplots_adjust(left=0.14, right=0.97, bottom=0.2, top=0.88)
        panel = figure.subplots()
        for number, points in enumerate(lines):
            if not points:
                continue
            counts, means, lows, highs = zip(*points, strict=True)
            if len(lines) <= _MOST_BANDS:
                colour = _SERIES[number % len(_SERIES)]
                panel.fill_between(counts, lows, highs, color=colour, alpha=0.12, linewidth=0)
            panel.plot(counts, means, **_line_style(number))
        panel.set_xscale("log")
        ticks = sorted({point[0] for points in lines for point in points})
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.set_ylim(-0.04, 1.04)
        panel.set_yticks([0, 0.5, 1], ["0", "50", "100%"])
        panel.grid(axis="y", linewidth=0.6)
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xlabel(across, fontsize=9)
        return f"<figure>{_svg(figure, f'{title} by {across}', name)}</figure>"


def legend(names: Sequence[str]) -> str:
    """The names of lines, each behind its marker in its colour."""
    items = []
    for number, name in enumerate(names):
        colour, sign = f"var(--series-{number % len(_SERIES) + 1})", _marker(number)[1]
        items.append(f'<li><span style="color:{colour}" aria-hidden="true">{sign}</span> {html.escape(name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _line_style(number: int) -> dict[str, Any]:
    return {"color": _SERIES[number % len(_SERIES)], "marker": _marker(number)[0], "markersize": 4.5}


def _marker(number: int) -> tuple[str, str]:
    """Once the colours are used up they come again with other markers."""
    return _MARKERS[(number + number // len(_SERIES)) % len(_MARKERS)]


def _style(name: str) -> Any:
    # The salt makes ids inside one drawing differ from those of another on the same page.
    return {**_STYLE, "svg.hashsalt": name}


def _svg(figure: Figure, description: str, name: str) -> str:
    """The drawing as an element of an HTML page, with no reference to anything outside it."""
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context(_style(name)):
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
    opening = f'<svg role="img" aria-label="{html.escape(description)}"'
    return re.sub(r'<svg width="[\d.]+pt" height="[\d.]+pt"', opening, text, count=1)
