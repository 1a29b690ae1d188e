from .linear import (
    LINEAR_TYPES,
    describe,
    factors_to_storage,
    features,
    has_plain_weight,
    is_plain,
    is_quantised,
    is_transposed,
    qualified_name,
    weight_as_out_in,
)
from .passing import first_input
from .rows import MLP_DOWN, Architecture, Part
from .table import architectures, num_experts

__all__ = [
    "LINEAR_TYPES",
    "MLP_DOWN",
    "Architecture",
    "Part",
    "architectures",
    "describe",
    "factors_to_storage",
    "features",
    "first_input",
    "has_plain_weight",
    "is_plain",
    "is_quantised",
    "is_transposed",
    "num_experts",
    "qualified_name",
    "weight_as_out_in",
]
