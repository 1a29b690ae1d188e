"""Plots of lines by how many edits there are, one panel each, as inline SVG; their legend is text of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from palimpsest.report import tables
from palimpsest.report.definitions import label
from palimpsest.report.drawing import Point, legend, line_panel
from palimpsest.report.tables import ReportRun

if TYPE_CHECKING:
    from palimpsest.evaluation import RunRecord
    from palimpsest.report.settings import SettingGroup

_FAMILIES = ("reliability", "generality", "locality", "portability")
_MOST_PANELS = 9


def curves(runs: Sequence[ReportRun], scoring: str) -> str:
    """How all edits so far fare as their number grows; only runs with checkpoints are in it."""
    with_points = [run for run in runs if len(run.record.checkpoints) > 1]
    names = sorted(
        {name for run in with_points for point in run.record.checkpoints for name in point.scores.get(scoring, {})},
        key=lambda name: (not name.startswith("reliability"), not name.startswith("generality"), name),
    )[:_MOST_PANELS]
    if not names:
        return ""
    panels = []
    for name in names:
        lines: list[list[Point]] = [
            [
                (point.num_edits, found.mean, found.low, found.high)
                for point in run.record.checkpoints
                if (found := point.scores.get(scoring, {}).get(name)) is not None
            ]
            for run in with_points
        ]
        panels.append(line_panel(label(name), "edits so far", lines, f"curves {scoring} {name}"))
    return _panels(panels, [run.label for run in with_points])


def batches(groups: Sequence[SettingGroup], scoring: str) -> str:
    """How methods fare as batches grow: four panels for each model and data set that has several sizes."""
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
    panels = []
    for key, family in ((key, family) for key in shown for family in _FAMILIES):
        lines: list[list[Point]] = [
            [
                (size, mean, mean, mean)
                for size, some in shown[key].items()
                for run in some
                if run.label == name and (mean := run.family_mean(scoring, family)) is not None
            ]
            for name in names
        ]
        if any(lines):
            title = f"{family} ({', '.join(key)})" if len(shown) > 1 else family
            panels.append(line_panel(title, "facts in a batch", lines, f"batches {scoring} {family} {key}"))
    return _panels(panels, names)


def _panels(panels: Sequence[str], names: Sequence[str]) -> str:
    return f'{legend(names)}<div class="panels">{"".join(panels)}</div>'


def _with_most_edits(runs: Sequence[ReportRun]) -> list[RunRecord]:
    """Records of which each method has one number of edits, its largest: sizes are compared, not numbers."""
    most: dict[str, int] = {}
    for run in runs:
        made = run.record.specification
        most[made.method] = max(made.num_edits, most.get(made.method, 0))
    records = [run.record for run in runs]
    return [one for one in records if one.specification.num_edits == most[one.specification.method]]
