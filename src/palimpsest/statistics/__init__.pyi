from .cache import Cache, CacheEntry, whole_identity
from .catalogue import TEXTS, open_text, reachable
from .collecting import collect
from .passes import KeyStatistics
from .prepared import KeyMetrics, Prepared, StatisticsConfig, open_source
from .running import RunningMoments
from .subspaces import NULL_SPACE_ENERGY, NULL_SPACE_THRESHOLD, Projector, Spectrum, below_threshold, lowest_energy
from .text import GivenText, Text
from .writing import OWN_WRITING

__all__ = [
    "NULL_SPACE_ENERGY",
    "NULL_SPACE_THRESHOLD",
    "OWN_WRITING",
    "TEXTS",
    "Cache",
    "CacheEntry",
    "GivenText",
    "KeyMetrics",
    "KeyStatistics",
    "Prepared",
    "Projector",
    "RunningMoments",
    "Spectrum",
    "StatisticsConfig",
    "Text",
    "below_threshold",
    "collect",
    "lowest_energy",
    "open_source",
    "open_text",
    "reachable",
    "whole_identity",
]
