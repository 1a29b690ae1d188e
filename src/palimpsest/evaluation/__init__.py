"""Measuring edits: protocols, scorings, and the record of a run. Knows nothing of methods."""

from palimpsest.evaluation import aggregate
from palimpsest.evaluation.answers import FORMAT_VERSION, BaseAnswers
from palimpsest.evaluation.assessment import AssessedFact, Assessment, assess
from palimpsest.evaluation.judging import Judge
from palimpsest.evaluation.measures import find_measure
from palimpsest.evaluation.other_tasks import run_tasks
from palimpsest.evaluation.protocols import Batch, EditingProtocol, Sequential, Single
from palimpsest.evaluation.records import Estimate, ProbeResult, RunRecord, SequenceCheckpoint, Specification
from palimpsest.evaluation.runner import evaluate, load_run
from palimpsest.evaluation.scoring import SCORINGS
from palimpsest.evaluation.verdicts import VERDICT_WORDS, verdict_on, verified

__all__ = [
    "FORMAT_VERSION",
    "SCORINGS",
    "VERDICT_WORDS",
    "AssessedFact",
    "Assessment",
    "BaseAnswers",
    "Batch",
    "EditingProtocol",
    "Estimate",
    "Judge",
    "ProbeResult",
    "RunRecord",
    "SequenceCheckpoint",
    "Sequential",
    "Single",
    "Specification",
    "aggregate",
    "assess",
    "evaluate",
    "find_measure",
    "load_run",
    "run_tasks",
    "verdict_on",
    "verified",
]
