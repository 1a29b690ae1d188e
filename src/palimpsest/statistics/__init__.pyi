from .cache import Cache, CacheEntry, whole_identity
from .catalogue import TEXTS, open_text, reachable
from .collecting import collect
from .passes import KeyStatistics
from .prepared import KeyMetrics, Prepared, StatisticsConfig, open_source
from .running import RunningMoments
from .subspaces import (
    NULL_SPACE_ENERGY,
    NULL_SPACE_THRESHOLD,
    Projector,
    Spectrum,
    below_threshold,
    decompose,
    lowest_energy,
)
from .text import GivenText, Text
from .vectors import KEYS, Found, Vectors
from .writing import OWN_WRITING, WrittenText

__all__ = [
    "KEYS",
    "NULL_SPACE_ENERGY",
    "NULL_SPACE_THRESHOLD",
    "OWN_WRITING",
    "TEXTS",
    "Cache",
    "CacheEntry",
    "Found",
    "GivenText",
    "KeyMetrics",
    "KeyStatistics",
    "Prepared",
    "Projector",
    "RunningMoments",
    "Spectrum",
    "StatisticsConfig",
    "Text",
    "Vectors",
    "WrittenText",
    "below_threshold",
    "collect",
    "decompose",
    "lowest_energy",
    "open_source",
    "open_text",
    "reachable",
    "whole_identity",
]
