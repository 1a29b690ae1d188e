"""Runs of one setting side by side: scores with intervals and published figures beside them, and what it all costs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from palimpsest.report import costs, plots, setting_plots, tables
from palimpsest.report.definitions import METRICS, SHORT, label, scoring_text
from palimpsest.report.markup import described, scrolled, table
from palimpsest.report.settings import SettingGroup
from palimpsest.report.tables import ReportRun, percent

if TYPE_CHECKING:
    from palimpsest.benchmark import Published

_PUBLISHED = {"reliability": "rel.", "generality": "gen.", "locality": "loc."}


def sections(groups: Sequence[SettingGroup], names: Sequence[str], published: Sequence[Published]) -> str:
    """Everything that compares: an overview where there are several settings, then each setting.

    Arguments:
        groups: the runs by setting.
        names: the scorings.
        published: figures of others that stand beside ours.
    """
    parts = []
    if len(groups) > 1:
        parts += [_overview(groups, name, names) for name in names]
    for number, group in enumerate(groups):
        body = "".join(_for_scoring(name, group, names, published) for name in names)
        body += f"<h3>What it costs</h3>{scrolled(plots.costs_plot(group.runs))}{costs.sections(group.runs)}"
        if len(groups) > 1:
            opened = " open" if number == 0 else ""
            body = f'<details class="setting"{opened}><summary>{escape(group.setting.title)}</summary>{body}</details>'
        parts.append(body)
    return "".join(parts)


def _overview(groups: Sequence[SettingGroup], scoring: str, names: Sequence[str]) -> str:
    hidden = "" if scoring == names[0] else " hidden"
    drawings = [
        (title, drawing)
        for title, drawing in (
            ("Every method in every setting", setting_plots.overview_plot(groups, scoring)),
            ("As batches grow", setting_plots.batches_plot(groups, scoring)),
        )
        if drawing
    ]
    inside = "".join(f"<h3>{title}</h3>{scrolled(drawing)}" for title, drawing in drawings)
    return f'<div class="scoring" data-scoring="{scoring}"{hidden}>{inside}</div>'


def _for_scoring(scoring: str, group: SettingGroup, names: Sequence[str], published: Sequence[Published]) -> str:
    hidden = "" if scoring == names[0] else " hidden"
    runs = group.runs
    heat = plots.locality_plot(runs, scoring)
    curves = plots.curves_plot(runs, scoring)
    parts = [
        f'<p class="note">{escape(scoring_text(scoring))}</p>',
        _score_table(group, scoring, published),
        f"<h3>With intervals</h3>{scrolled(plots.metrics_plot(runs, scoring))}",
    ]
    if heat:
        parts.append(f"<h3>What stayed as it was, by kind</h3>{scrolled(heat)}")
    if curves:
        parts.append(f"<h3>As edits add up</h3>{scrolled(curves)}")
    return f'<div class="scoring" data-scoring="{scoring}"{hidden}>{"".join(parts)}</div>'


def _score_table(group: SettingGroup, scoring: str, published: Sequence[Published]) -> str:
    runs = group.runs
    beside = {run.label: group.beside(run, published) for run in runs}
    sources = list(dict.fromkeys(one.source for one in beside.values() if one is not None))
    names = tables.metrics(runs, scoring)
    best = {name: tables.best_of_metric(runs, scoring, name) for name in names}
    same_n = {name: _common_n(runs, scoring, name) for name in names}
    head = "".join(
        f'<th scope="col" title="{escape(METRICS.get(name, name))}">{_column_head(name)}'
        + (f"<small>n = {same_n[name]}</small>" if same_n[name] is not None else "")
        + "</th>"
        for name in names
    )
    if sources:
        head += "".join(f'<th scope="col" class="paper">paper<br>{short}</th>' for short in _PUBLISHED.values())
    lines = []
    for index, run in enumerate(runs):
        cells = "".join(_score_cell(run, scoring, name, index in best[name], same_n[name] is None) for name in names)
        cells += _published_cells(beside[run.label]) if sources else ""
        lines.append(f'<tr><th scope="row">{escape(run.label)}{_state(run)}</th>{cells}</tr>')
    caption = (
        f"Scoring: {SHORT.get(scoring, scoring)}. {described(runs)} Mean with its 95% interval, clustered by edit; "
        f"n is the number of probes. Best in bold; for locality, among methods whose edits hold (reliability of "
        f"{percent(tables.HOLDS)} or more), since what does nothing disturbs nothing."
    )
    if sources:
        caption += (
            f" Paper: {'; '.join(sources)}; another model, teacher-forced, so orderings compare and levels do not."
        )
    return table(f'<th scope="col">method</th>{head}', lines, caption)


def _published_cells(one: Published | None) -> str:
    values = [None if one is None else getattr(one, name) for name in _PUBLISHED]
    return "".join(f'<td class="paper">{"–" if value is None else f"{value:.0f}%"}</td>' for value in values)


def _column_head(metric: str) -> str:
    head, _, kind = label(metric).partition(": ")
    return f"{escape(head)}<br>{escape(kind)}" if kind else escape(head)


def _score_cell(run: ReportRun, scoring: str, metric: str, is_best: bool, shows_n: bool) -> str:
    found = run.estimate(scoring, metric)
    if found is None:
        return '<td class="missing">–</td>'
    mean = f"<b>{percent(found.mean)}</b>" if is_best else percent(found.mean)
    count = f" n = {found.n}" if shows_n else ""
    return f"<td>{mean}<small>{100 * found.low:.0f}–{100 * found.high:.0f}{count}</small></td>"


def _common_n(runs: Sequence[ReportRun], scoring: str, metric: str) -> int | None:
    counts = {found.n for run in runs if (found := run.estimate(scoring, metric))}
    return counts.pop() if len(counts) == 1 else None


def _state(run: ReportRun) -> str:
    if run.record.status == "ok":
        return ""
    return f'<span class="state" title="{escape(run.record.error or "")}">{run.record.status}</span>'
