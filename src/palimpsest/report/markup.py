"""Pieces of the page that several of its parts are made of."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from palimpsest.report import tables
from palimpsest.report.tables import ReportRun


def table(head: str, lines: Sequence[str], caption: str) -> str:
    """A table that can be moved sideways, with its caption."""
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="caption">{escape(caption)}</p>'
    )


def scrolled(drawing: str) -> str:
    """A drawing that can be moved sideways where it is wider than the page; nothing for none."""
    return f'<figure class="scroll" tabindex="0">{drawing}</figure>' if drawing else ""


def described(runs: Sequence[ReportRun]) -> str:
    """Data set, protocol, number of edits and seed in a sentence; several where runs differ."""
    specs = [run.record.specification for run in runs]
    datasets = tables.listed(sorted({spec.dataset for spec in specs}))
    protocols = tables.listed(sorted({spec.protocol for spec in specs}))
    counts = tables.listed([str(number) for number in sorted({spec.num_edits for spec in specs})])
    seeds = tables.listed([str(number) for number in sorted({spec.seed for spec in specs})])
    return f"Data set {datasets}, protocol {protocols}, {counts} edits, seed {seeds}."
