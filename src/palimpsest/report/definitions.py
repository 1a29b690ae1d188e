"""Definitions of metrics, scorings and protocols in one sentence each, for tables and pages."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from palimpsest.evaluation import PROTOCOLS, SCORINGS

LABELS: Mapping[str, str] = MappingProxyType(
    {
        "reliability": "reliability",
        "generality": "generality",
        "locality.neighborhood": "locality: neighbours",
        "locality.namesake": "locality: namesakes",
        "locality.other_relation": "locality: same subject",
        "locality.other_answer": "locality: other answers",
        "locality.distracting": "locality: distraction",
        "locality.out_of_scope": "locality: unrelated",
        "portability.one_hop": "portability: one hop",
        "portability.subject_alias": "portability: alias",
        "portability.inverse": "portability: inverse",
        "portability.multi_hop": "portability: multi-hop",
        "portability.logical": "portability: by a rule",
        "portability.reasoning": "portability: by reasoning",
        "old_answer_rate": "old answer: still given",
        "old_thought_rate": "old answer: named in the thought",
        "old_deduced_rate": "old fact: still deduced",
        "leak_rate": "new answer: given elsewhere",
        "degenerate_rate": "degenerate text",
    }
)

METRICS: Mapping[str, str] = MappingProxyType(
    {
        "reliability": "The edited prompt gets the new answer.",
        "generality": "Other phrasings of the edited prompt get the new answer.",
        "locality.neighborhood": "The same question about other subjects is answered as before.",
        "locality.namesake": "The same question about subjects that share a name with this one is answered as before.",
        "locality.other_relation": "Other questions about the edited subject are answered as before.",
        "locality.other_answer": "Asked for another right answer than the new one, the model answers as before.",
        "locality.distracting": "Another question is answered as before when the edited fact stands in front of it.",
        "locality.out_of_scope": "Questions that have nothing to do with the edit are answered as before.",
        "portability.one_hop": "What follows from the new fact in one step is answered accordingly.",
        "portability.subject_alias": "The question gets the new answer when the subject goes by another name.",
        "portability.inverse": "Asked the other way round, the new fact still holds.",
        "portability.multi_hop": "The new fact is used as a link of a longer chain, or reached over another fact.",
        "portability.logical": "What follows from the new fact by a rule, such as kinship, is answered accordingly.",
        "portability.reasoning": "What is reasoned out over the edited fact follows from the new one, not the old one.",
        "old_answer_rate": "The old answer is still given to the edited prompt or a rephrasing; lower is better.",
        "old_thought_rate": "The thought names the old answer, whatever the answer after it says; lower is better.",
        "old_deduced_rate": "Questions over the edited fact get what followed from the old one; lower is better.",
        "leak_rate": "The new answer is given to questions about other things, where it was not; lower is better.",
        "degenerate_rate": "The edited model repeats itself over and over where it did not before; lower is better.",
    }
)

SHORT: Mapping[str, str] = MappingProxyType(
    {
        "generate": "free generation",
        "exact": "exact",
        "teacher_forced": "teacher-forced",
        "log_prob": "log-probability",
        "rouge_l": "ROUGE-L (F1)",
        "rouge_l_recall": "ROUGE-L (recall)",
    }
)

LOWER_IS_BETTER = frozenset(name for name in METRICS if name.endswith("_rate"))


def label(metric: str) -> str:
    """A metric's name for people."""
    return LABELS.get(metric, metric.replace("_", " ").replace(".", ": "))


def scoring_text(name: str) -> str:
    """Returns the definition of a scoring, or its name if its plugin is not installed."""
    return SCORINGS[name].summary if name in SCORINGS else name


def protocol_text(name: str) -> str:
    """Returns the definition of a protocol, or its name if its plugin is not installed."""
    return PROTOCOLS[name].summary if name in PROTOCOLS else name
