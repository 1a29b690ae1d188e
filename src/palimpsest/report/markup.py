"""Pieces of the page that several of its parts are made of."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from palimpsest.report import tables
from palimpsest.report.tables import ReportRun


def table(
    head: str, lines: Sequence[str], caption: str, *, groups: str = "", foot: str = "", kind: str = "runs"
) -> str:
    """A table that can be moved sideways, with its caption.

    Arguments:
        head: its columns' heads.
        lines: its rows.
        caption: the text under it.
        groups: heads over several columns each, above the columns' own.
        foot: rows that stay last however it is sorted.
        kind: CSS classes.
    """
    above = f'<tr class="groups">{groups}</tr>' if groups else ""
    last = f"<tfoot>{foot}</tfoot>" if foot else ""
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}"><thead>{above}<tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody>{last}</table></div>"
        f'<p class="caption">{escape(caption)}</p>'
    )


def cell(text: str, value: float | None = None, *, is_best: bool = False, below: str = "", kind: str = "") -> str:
    """A cell of a table.

    Arguments:
        text: what it shows.
        value: what it is sorted by; cells without one stand last.
        is_best: shown in bold.
        below: markup that stands under the text.
        kind: CSS classes.
    """
    sort = "" if value is None else f' data-sort="{value:.9g}"'
    classes = f' class="{kind}"' if kind else ""
    shown = f"<b>{escape(text)}</b>" if is_best else escape(text)
    return f"<td{classes}{sort}>{shown}{below}</td>"


def interval(low: float, mean: float, high: float) -> str:
    """A mean between its bounds, shares from 0 to 1, drawn on a line from 0 to 100%."""
    places = "".join(f"--{name}:{100 * value:.1f}%;" for name, value in (("low", low), ("mean", mean), ("high", high)))
    return f'<i class="interval" style="{places}" aria-hidden="true"></i>'


def described(runs: Sequence[ReportRun]) -> str:
    """Data set, protocol, number of edits and seed in a sentence; several where runs differ."""
    specs = [run.record.specification for run in runs]
    datasets = tables.listed(sorted({spec.dataset for spec in specs}))
    protocols = tables.listed(sorted({spec.protocol for spec in specs}))
    counts = tables.listed([str(number) for number in sorted({spec.num_edits for spec in specs})])
    seeds = tables.listed([str(number) for number in sorted({spec.seed for spec in specs})])
    return f"Data set {datasets}, protocol {protocols}, {counts} edits, seed {seeds}."
