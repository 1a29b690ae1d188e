"""UltraEdit and StableEdit: one gradient pass and a ridge solve per turn."""

from palimpsest.methods.ultraedit.method import UltraEdit, UltraEditConfig
from palimpsest.methods.ultraedit.running_factors import RunningFactors

__all__ = ["RunningFactors", "UltraEdit", "UltraEditConfig"]
