"""Runs of one setting side by side: scores with intervals, how they change as edits add up, and what it all costs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from palimpsest.report import costs, plots, tables
from palimpsest.report.score_tables import overview, score_table
from palimpsest.report.settings import SettingGroup

if TYPE_CHECKING:
    from palimpsest.evaluation import PublishedFigure


def sections(groups: Sequence[SettingGroup], names: Sequence[str], published: Sequence[PublishedFigure]) -> str:
    """Everything that compares: an overview if there are several settings, then each setting.

    Arguments:
        groups: the runs by setting.
        names: the scorings.
        published: published figures, for comparison with ours.
    """
    is_alone = len(groups) == 1
    parts = [] if is_alone else [_scored(name, number, _overview(groups, name)) for number, name in enumerate(names)]
    for place, group in enumerate(groups):
        body = "".join(
            _scored(name, number, _of_setting(name, group, published, is_alone=is_alone))
            for number, name in enumerate(names)
        )
        body += f"<h3>What it costs</h3>{costs.sections(tables.ranked(group.runs, (*names, 'generate')[0]))}"
        if not is_alone:
            opened = " open" if place == 0 else ""
            body = f'<details class="setting"{opened}><summary>{escape(group.setting.title)}</summary>{body}</details>'
        parts.append(body)
    return "".join(parts)


def _scored(name: str, number: int, inside: str) -> str:
    """Wraps a part of the page that is shown when this scoring is chosen."""
    return f'<div class="scoring scoring-{number}" data-scoring="{escape(name)}">{inside}</div>'


def _overview(groups: Sequence[SettingGroup], scoring: str) -> str:
    scores, batches = overview(groups, scoring), plots.batches(groups, scoring)
    return (f"<h3>Every method in every setting</h3>{scores}" if scores else "") + (
        f"<h3>As batches grow</h3>{batches}" if batches else ""
    )


def _of_setting(scoring: str, group: SettingGroup, published: Sequence[PublishedFigure], *, is_alone: bool) -> str:
    curves = plots.curves(group.runs, scoring)
    return score_table(group, scoring, published, with_score=is_alone) + (
        f"<h3>As edits add up</h3>{curves}" if curves else ""
    )
