from . import aggregate
from .answers import FORMAT_VERSION, BaseAnswers
from .assessment import AssessedFact, Assessment, assess
from .catalogue import DEFAULT_SCORINGS, MEASURES, PROTOCOLS, SCORINGS, find_measure, find_scoring, make_protocol
from .examiner import room_for
from .journal import Journal
from .judging import Judge
from .measures import Measure
from .other_tasks import Answering, harness_kind, run_tasks
from .protocols import Batch, EditingProtocol, Sequential, Single, edit_and_undo
from .published import PublishedFigure
from .records import Estimate, ProbeResult, RunRecord, SequenceCheckpoint, Specification
from .runner import evaluate, load_run
from .scoring import Observation, Scoring, Value
from .verdicts import VERDICT_WORDS, VerifiedEdit, verdict_on, verified
from .work import Work

__all__ = [
    "DEFAULT_SCORINGS",
    "FORMAT_VERSION",
    "MEASURES",
    "PROTOCOLS",
    "SCORINGS",
    "VERDICT_WORDS",
    "Answering",
    "AssessedFact",
    "Assessment",
    "BaseAnswers",
    "Batch",
    "EditingProtocol",
    "Estimate",
    "Journal",
    "Judge",
    "Measure",
    "Observation",
    "ProbeResult",
    "PublishedFigure",
    "RunRecord",
    "Scoring",
    "SequenceCheckpoint",
    "Sequential",
    "Single",
    "Specification",
    "Value",
    "VerifiedEdit",
    "Work",
    "aggregate",
    "assess",
    "edit_and_undo",
    "evaluate",
    "find_measure",
    "find_scoring",
    "harness_kind",
    "load_run",
    "make_protocol",
    "room_for",
    "run_tasks",
    "verdict_on",
    "verified",
]
