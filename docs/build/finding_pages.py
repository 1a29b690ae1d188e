"""The findings of the two papers held against ours: each a claim, what would bear it out, and our figures.

A verdict is computed from the results in `bench/results`, by the criterion that stands beside it; nothing is judged by
hand. What has not been measured says so.
"""

from __future__ import annotations

import findings_f_learning
import findings_survey
from finding_results import MISSING, Finding, Missing, Verdict, rows, score, verdict
from page_blocks import table


def teacher_forcing_flatters() -> Verdict:
    found = [row for row in rows("real_edits_zsre") if "scores" in row]
    gaps = {row["method"]: (score(row, "reliability", "teacher_forced"), score(row, "reliability")) for row in found}
    held = [forced > free for forced, free in gaps.values()]
    figures = ", ".join(f"`{name}` {forced:.0f} / {free:.0f}" for name, (forced, free) in gaps.items())
    return verdict(*held), f"ZsRE, teacher-forced / written: {figures}"


FINDINGS = (
    *findings_survey.FINDINGS,
    Finding(
        "arXiv:2502.11177",
        "Teacher-forced scores flatter",
        "higher than by free generation, for every method",
        teacher_forcing_flatters,
    ),
    *findings_f_learning.FINDINGS,
)


def findings(_argument: str) -> str:
    """Every finding with its verdict."""
    lines = []
    for one in FINDINGS:
        try:
            outcome, figures = one.judge()
        except Missing:
            outcome, figures = MISSING, ""
        lines.append([one.paper, one.claim, one.criterion, f"**{outcome}**", figures])
    return table(["paper", "what it found", "held to", "here", "figures"], lines)
