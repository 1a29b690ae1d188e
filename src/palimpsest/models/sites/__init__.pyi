from .experts import is_experts, number_of_experts
from .linear import (
    EXPERTS_MATRIX,
    LINEAR_TYPES,
    describe,
    factors_to_storage,
    features,
    has_plain_weight,
    is_quantised,
    is_transposed,
    layer_of,
    qualified_name,
    quantised_weights,
    weight_as_out_in,
)
from .passing import first_input, read_by
from .plain import is_plain
from .rows import MLP_DOWN, Architecture, Part
from .table import architectures, experts_per_token, num_experts

__all__ = [
    "EXPERTS_MATRIX",
    "LINEAR_TYPES",
    "MLP_DOWN",
    "Architecture",
    "Part",
    "architectures",
    "describe",
    "experts_per_token",
    "factors_to_storage",
    "features",
    "first_input",
    "has_plain_weight",
    "is_experts",
    "is_plain",
    "is_quantised",
    "is_transposed",
    "layer_of",
    "num_experts",
    "number_of_experts",
    "qualified_name",
    "quantised_weights",
    "read_by",
    "weight_as_out_in",
]
