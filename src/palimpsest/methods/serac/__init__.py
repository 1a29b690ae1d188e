"""SERAC: a memory of edits, a scope classifier, a counterfactual model."""

from palimpsest.methods.serac.method import Serac, SeracConfig

__all__ = ["Serac", "SeracConfig"]
