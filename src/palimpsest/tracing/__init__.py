"""Causal tracing: where a model keeps a fact, and which layers to edit."""

from palimpsest.tracing.averages import CLASSES, AverageTrace, average, trace_facts
from palimpsest.tracing.causal import KINDS, CausalTrace, TraceOptions, trace
from palimpsest.tracing.layers import layers_by_depth, layers_ending_at, recommended_layers
from palimpsest.tracing.restoration import Corruption, Probabilities, Restoration, restored_probabilities

__all__ = [
    "CLASSES",
    "KINDS",
    "AverageTrace",
    "CausalTrace",
    "Corruption",
    "Probabilities",
    "Restoration",
    "TraceOptions",
    "average",
    "layers_by_depth",
    "layers_ending_at",
    "recommended_layers",
    "restored_probabilities",
    "trace",
    "trace_facts",
]
