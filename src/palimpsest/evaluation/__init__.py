"""Measuring edits: protocols, scorings, and the record of a run. Knows nothing of methods."""

from palimpsest.evaluation.answers import BaseAnswers
from palimpsest.evaluation.assessment import AssessedFact, Assessment, assess
from palimpsest.evaluation.protocols import Batch, EditingProtocol, Sequential, Single
from palimpsest.evaluation.records import Estimate, ProbeResult, RunRecord, Specification
from palimpsest.evaluation.runner import evaluate, load_run
from palimpsest.evaluation.scoring import SCORINGS

__all__ = [
    "SCORINGS",
    "AssessedFact",
    "Assessment",
    "BaseAnswers",
    "Batch",
    "EditingProtocol",
    "Estimate",
    "ProbeResult",
    "RunRecord",
    "Sequential",
    "Single",
    "Specification",
    "assess",
    "evaluate",
    "load_run",
]
