"""Measuring edits: protocols, scorings, and the record of a run. Knows nothing of methods."""

from palimpsest.evaluation.answers import BaseAnswers
from palimpsest.evaluation.protocols import Batch, Protocol, Sequential, Single
from palimpsest.evaluation.records import Estimate, ProbeResult, RunRecord, Specification
from palimpsest.evaluation.runner import evaluate, load_run
from palimpsest.evaluation.scoring import SCORINGS

__all__ = [
    "SCORINGS",
    "BaseAnswers",
    "Batch",
    "Estimate",
    "ProbeResult",
    "Protocol",
    "RunRecord",
    "Sequential",
    "Single",
    "Specification",
    "evaluate",
    "load_run",
]
