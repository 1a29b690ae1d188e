"""The findings of the papers held against ours: each a claim, what would bear it out, and our figures.

A verdict is computed from the results in `bench/results`, by the criterion that stands beside it in `findings.toml`;
nothing is judged by hand. What has not been measured says so.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import findings_f_learning
import findings_survey
from blocks import table
from judging import MISSING, Missing


def findings(_argument: str) -> str:
    """Every finding with its verdict."""
    judges, lines = {**vars(findings_survey), **vars(findings_f_learning)}, []
    for one in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["finding"]:
        try:
            outcome, figures = judges[one["judge"]]()
        except Missing:
            outcome, figures = MISSING, ""
        lines.append([one["paper"], one["claim"], one["criterion"], f"**{outcome}**", figures])
    return table(["paper", "what it found", "held to", "here", "figures"], lines)
