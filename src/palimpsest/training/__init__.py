"""Training: of a model's own weights, of adapters beside them, and of the networks that edit models."""

from palimpsest.training.adapters import LoraAdapters
from palimpsest.training.constraint import NOTHING_SPARED, Ball
from palimpsest.training.copies import TrainingCopies, training_copies
from palimpsest.training.curvature import LowCurvature, joined, low_curvature
from palimpsest.training.curved_steps import LowCurvatureSteps
from palimpsest.training.divergence import require_finite
from palimpsest.training.examples import EditExample, editing_examples, split_examples
from palimpsest.training.finetune import FinetuneOptions, FinetuneResult, Trainable, finetune, require_end
from palimpsest.training.gradient_factors import Factors, Update, WeightPlace, gradient_factors, low_rank, places
from palimpsest.training.gradient_moments import GRADIENTS, text_factors
from palimpsest.training.hypernetwork import Hypernetwork, HypernetworkOptions, chosen_places, editing_losses
from palimpsest.training.keeping import prompts_apart_from, some_of, spared_directions
from palimpsest.training.metatraining import MetaTrainingOptions, Objective, metatrain
from palimpsest.training.objectives import losses_and_margins
from palimpsest.training.projection import CurvatureFactors, Projection, ProjectionOptions, united
from palimpsest.training.replaced_values import ValueOptions, ValuePasses, find_values, value_passes
from palimpsest.training.unlearning import Forgetting, unlearning_of

__all__ = [
    "GRADIENTS",
    "NOTHING_SPARED",
    "Ball",
    "CurvatureFactors",
    "EditExample",
    "Factors",
    "FinetuneOptions",
    "FinetuneResult",
    "Forgetting",
    "Hypernetwork",
    "HypernetworkOptions",
    "LoraAdapters",
    "LowCurvature",
    "LowCurvatureSteps",
    "MetaTrainingOptions",
    "Objective",
    "Projection",
    "ProjectionOptions",
    "Trainable",
    "TrainingCopies",
    "Update",
    "ValueOptions",
    "ValuePasses",
    "WeightPlace",
    "chosen_places",
    "editing_examples",
    "editing_losses",
    "find_values",
    "finetune",
    "gradient_factors",
    "joined",
    "losses_and_margins",
    "low_curvature",
    "low_rank",
    "metatrain",
    "places",
    "prompts_apart_from",
    "require_end",
    "require_finite",
    "some_of",
    "spared_directions",
    "split_examples",
    "text_factors",
    "training_copies",
    "united",
    "unlearning_of",
    "value_passes",
]
