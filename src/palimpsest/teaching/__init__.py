"""Teaching: how models are made that know given facts, the world's or a data set's, and what they then know."""

from palimpsest.teaching.auditing import audit
from palimpsest.teaching.fact_training import fact_recipe, train_on_facts
from palimpsest.teaching.facts import lessons
from palimpsest.teaching.results import FactTraining
from palimpsest.teaching.training import default_recipe, train

__all__ = [
    "FactTraining",
    "audit",
    "default_recipe",
    "fact_recipe",
    "lessons",
    "train",
    "train_on_facts",
]
