"""GRACE: a codebook beside one layer."""

from palimpsest.methods.grace.method import Grace, GraceConfig

__all__ = ["Grace", "GraceConfig"]
