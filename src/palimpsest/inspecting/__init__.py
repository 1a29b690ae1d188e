"""Inspection of an edited model's weights: which changed, how, about what, and how to go back."""

from palimpsest.inspecting.answers import Flip, changed_answers
from palimpsest.inspecting.changes import WeightChange, described, patch_between, places_of
from palimpsest.inspecting.inspection import Inspection, inspect_model, inspect_patch
from palimpsest.inspecting.reversal import Reversal, reversal_of
from palimpsest.inspecting.suspects import Direction, Suspect, candidates_from, likely_subjects, strongest_directions

__all__ = [
    "Direction",
    "Flip",
    "Inspection",
    "Reversal",
    "Suspect",
    "WeightChange",
    "candidates_from",
    "changed_answers",
    "described",
    "inspect_model",
    "inspect_patch",
    "likely_subjects",
    "patch_between",
    "places_of",
    "reversal_of",
    "strongest_directions",
]
