"""WISE: side memories beside one layer's MLP."""

from palimpsest.methods.wise.config import WiseConfig
from palimpsest.methods.wise.method import Wise

__all__ = ["Wise", "WiseConfig"]
