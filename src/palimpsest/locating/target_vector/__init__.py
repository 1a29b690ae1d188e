"""The search for target vectors: what, added at a subject's last token, makes the model say the new answer."""

from palimpsest.locating.target_vector.anchoring import anchored_vectors
from palimpsest.locating.target_vector.options import TargetOptions
from palimpsest.locating.target_vector.search import TargetVectors, find_target_vectors

__all__ = ["TargetOptions", "TargetVectors", "anchored_vectors", "find_target_vectors"]
