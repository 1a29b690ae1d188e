"""Subject neurons: a fact's value beside one MLP, behind a gate that opens at its subject only."""

from palimpsest.methods.subject_neurons.config import SubjectNeuronsConfig
from palimpsest.methods.subject_neurons.gates import GateOptions, fitted_gates
from palimpsest.methods.subject_neurons.method import SubjectNeurons

__all__ = ["GateOptions", "SubjectNeurons", "SubjectNeuronsConfig", "fitted_gates"]
