"""The cost of training a model, and its knowledge afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from palimpsest.teaching.ceiling import Known
from palimpsest.teaching.recipe import TrainingRecipe


@dataclass(frozen=True)
class TrainingResult:
    """The cost of training a model.

    `first_loss` and `last_loss` are means over the first and the last hundredth of the steps (nats); `people` is the
    size of a world other than the default one.
    """

    architecture: str
    seed: int
    recipe: TrainingRecipe
    steps: int
    tokens: int
    seconds: float
    parameters: int
    first_loss: float
    last_loss: float
    people: int | None = None


@dataclass(frozen=True)
class FactTraining:
    """The facts that a model was taught, and those that it knows.

    Arguments:
        training: the run.
        num_facts: distinct facts that were read.
        num_sentences: sentences of one epoch.
        left_out: reasons for which records are not taught, each with its number of records.
        ceiling: by kind of question, the share of the true facts that is answered.
    """

    training: TrainingResult
    num_facts: int
    num_sentences: int
    left_out: dict[str, int]
    ceiling: dict[str, Known]
