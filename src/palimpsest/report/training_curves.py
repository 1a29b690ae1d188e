"""The course of an editor's training as a plot: every validation loss by steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL = (2.6, 2.1)


def draw_curve(curve: Sequence[Mapping[str, Any]], best_step: int, *, title: str = "") -> Figure:
    """One panel a loss: validation as a line, training's mean since the validation before as a thin one.

    Arguments:
        curve: see `training.metatraining.Course`.
        best_step: the step that was kept, marked in every panel.
    """
    from matplotlib.figure import Figure

    names = list(curve[0]["validation"])
    figure = Figure(figsize=(_PANEL[0] * len(names), _PANEL[1]), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    trained = [point for point in curve if point["training"]]
    for panel, name in zip(panels, names, strict=True):
        panel.axvline(best_step, color="#bbbbbb", linewidth=0.8)
        panel.plot([p["step"] for p in trained], [p["training"][name] for p in trained], color="#aaaaaa", linewidth=1)
        panel.plot(
            [point["step"] for point in curve],
            [point["validation"][name] for point in curve],
            color="#33558b",
            marker="o",
            markersize=3,
        )
        panel.set_title(name, loc="left", fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}: validation (blue), training (grey), step {best_step} kept", fontsize=9)
    return figure


def save_curve(curve: Sequence[Mapping[str, Any]], best_step: int, file: str | Path, *, title: str = "") -> None:
    """Writes `draw_curve` as an SVG, or in the format that the file's ending names."""
    path = Path(file)
    draw_curve(curve, best_step, title=title).savefig(path, format=path.suffix.removeprefix(".") or "svg")
