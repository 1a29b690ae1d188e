"""Fine-tuning: FT, FT-L and LocFT, which differ in their options."""

from palimpsest.methods.fine_tuning.method import FineTuning, FineTuningConfig

__all__ = ["FineTuning", "FineTuningConfig"]
