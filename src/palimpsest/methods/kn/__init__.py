"""Knowledge neurons: found by attribution, then given new columns."""

from palimpsest.methods.kn.method import KnowledgeNeurons, KnowledgeNeuronsConfig

__all__ = ["KnowledgeNeurons", "KnowledgeNeuronsConfig"]
