"""T-Patcher: one neuron in the last MLP for every wrong token."""

from palimpsest.methods.t_patcher.config import TPatcherConfig
from palimpsest.methods.t_patcher.method import TPatcher

__all__ = ["TPatcher", "TPatcherConfig"]
