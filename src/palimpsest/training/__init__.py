"""Training: of a model's own weights, of adapters beside them, and of the networks that edit models."""

from palimpsest.training.adapters import LoraAdapters
from palimpsest.training.constraint import NOTHING_SPARED, Ball
from palimpsest.training.copies import training_copies
from palimpsest.training.divergence import require_finite
from palimpsest.training.examples import EditExample, editing_examples, split_examples
from palimpsest.training.finetune import FinetuneOptions, FinetuneResult, finetune
from palimpsest.training.gradient_factors import Factors, Update, gradient_factors, low_rank
from palimpsest.training.hypernetwork import Hypernetwork, HypernetworkOptions, chosen_places, editing_losses
from palimpsest.training.keeping import prompts_apart_from, spared_directions, to_be_answered
from palimpsest.training.metatraining import MetaTrainingOptions, Objective, metatrain

__all__ = [
    "NOTHING_SPARED",
    "Ball",
    "EditExample",
    "Factors",
    "FinetuneOptions",
    "FinetuneResult",
    "Hypernetwork",
    "HypernetworkOptions",
    "LoraAdapters",
    "MetaTrainingOptions",
    "Objective",
    "Update",
    "chosen_places",
    "editing_examples",
    "editing_losses",
    "finetune",
    "gradient_factors",
    "low_rank",
    "metatrain",
    "prompts_apart_from",
    "require_finite",
    "spared_directions",
    "split_examples",
    "to_be_answered",
    "training_copies",
]
