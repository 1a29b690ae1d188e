"""Causal tracing: where a model keeps a fact, and which layers to edit."""

from palimpsest.tracing.averages import CLASSES, AverageTrace, average, trace_facts
from palimpsest.tracing.causal import KINDS, CausalTrace, TraceOptions, trace
from palimpsest.tracing.layers import layers_ending_at, recommended_layers

__all__ = [
    "CLASSES",
    "KINDS",
    "AverageTrace",
    "CausalTrace",
    "TraceOptions",
    "average",
    "layers_ending_at",
    "recommended_layers",
    "trace",
    "trace_facts",
]
