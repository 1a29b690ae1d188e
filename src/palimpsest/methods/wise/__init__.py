"""WISE: side memories beside one layer"s MLP."""

from palimpsest.methods.wise.method import Wise, WiseConfig

__all__ = ["Wise", "WiseConfig"]
