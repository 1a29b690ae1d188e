"""Scorings, protocols and measures by name. Plugins add theirs by entry points, through the door that these use too."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from palimpsest.errors import ConfigError, unknown_name
from palimpsest.evaluation.measures import TASK, Measure, task_measure
from palimpsest.registry import Registry, Row

if TYPE_CHECKING:
    from palimpsest.evaluation.protocols import EditingProtocol
    from palimpsest.evaluation.scoring import Scoring

DEFAULT_SCORINGS = ("generate", "teacher_forced", "log_prob", "exact")

SCORINGS = Registry(
    "scoring",
    "palimpsest.scorings",
    {
        "generate": Row(
            "palimpsest.evaluation.scorings:Generate",
            "Free generation, greedy: the text begins with the expected answer at a word's end; to a question "
            "or in a chat its first sentence states it, and not the old one. For locality: the right answer is still "
            "given, or, where it was not before, the first words are the same. What a user sees.",
        ),
        "exact": Row(
            "palimpsest.evaluation.scorings:Exact",
            "Free generation, greedy: the text up to the stop is exactly the expected one and nothing else; for "
            "locality, exactly what it was before.",
        ),
        "teacher_forced": Row(
            "palimpsest.evaluation.scorings:TeacherForced",
            "The share of the expected answer's tokens that are each the most probable one, given the "
            "right tokens before it. What most papers report; it flatters.",
        ),
        "log_prob": Row(
            "palimpsest.evaluation.scorings:LogProb",
            "One answer is more probable than the other, per token: the new one than the old one, and for "
            "locality the right one than the edit's new one. What CounterFact defines.",
            source="arXiv:2202.05262",
        ),
        "rouge_l": Row(
            "palimpsest.evaluation.scorings:RougeL",
            "Free generation, greedy: ROUGE-L's F1 between the whole text and the expected answer, the share of words "
            "that both have in one order. For locality: with the text before. For answers that are whole passages.",
            source="Lin 2004",
        ),
        "rouge_l_recall": Row(
            "palimpsest.evaluation.scorings:RougeL",
            "Like rouge_l, but only the share of the expected answer's words; other text does not count. What "
            "papers on editing passages report; it rewards long texts.",
            options={"part": "recall"},
            source="Lin 2004",
        ),
    },
)

PROTOCOLS = Registry(
    "protocol",
    "palimpsest.protocols",
    {
        "single": Row("palimpsest.evaluation.protocols:Single", "Each edit is made, tested and undone on its own."),
        "batch": Row(
            "palimpsest.evaluation.protocols:Batch", "Edits are made together, so many in a call, then tested."
        ),
        "sequential": Row(
            "palimpsest.evaluation.protocols:Sequential",
            "Edits are made one after another and stay; all so far are tested at checkpoints.",
        ),
    },
)

MEASURES = Registry(
    "measure",
    "palimpsest.measures",
    {
        "token-time": Row(
            "palimpsest.evaluation.measures:token_seconds",
            "Seconds per written token, asked for the edited prompts one at a time.",
        ),
        "weight-distance": Row(
            "palimpsest.evaluation.measures:weight_distances",
            "Euclidean distance of each layer's attention and MLP from the unedited model's.",
        ),
    },
)


def find_scoring(name: str) -> Scoring:
    """A scoring by its name. Raises `ConfigError`, with near matches, for an unknown one."""
    row = SCORINGS[name]
    made: Scoring = row.load()(**row.options)
    return made


def find_measure(name: str) -> Measure:
    """A measure by its name, or `task:NAME@N`. Raises `ConfigError`, with near matches, for an unknown one."""
    if name.startswith(TASK):
        return task_measure(name)
    if name not in MEASURES:
        raise unknown_name("measure", name, (*MEASURES, f"{TASK}NAME"))
    found: Measure = MEASURES[name].load()
    return found


def make_protocol(name: str, **options: Any) -> EditingProtocol:
    """A protocol by its name, with options; those that are `None` keep their defaults.

    Raises `ConfigError`, with near matches, for an unknown protocol, and for an option that it does not have.
    """
    row = PROTOCOLS[name]
    kind = row.load()
    given = {option: value for option, value in options.items() if value is not None}
    known = {one.name for one in fields(kind)}
    for option, value in given.items():
        if option not in known:
            others = [other for other in PROTOCOLS if option in {one.name for one in fields(PROTOCOLS[other].load())}]
            raise ConfigError(
                f"The protocol {name!r} has no option {option!r}.",
                expected=", ".join(sorted(known)) or "no options",
                found=f"{option} = {value}",
                remedy=f"leave it out, or choose the protocol {' or '.join(others)}" if others else None,
            )
    made: EditingProtocol = kind(**row.options, **given)
    return made
