"""Data sets: files and names to EditRequests."""

from palimpsest.datasets.base import BadRecordError, Dataset, Skipped
from palimpsest.datasets.catalogue import DATASETS, dataset, is_file_of_edits, load_edits, training_edits
from palimpsest.datasets.derived import with_distracting, with_out_of_scope
from palimpsest.datasets.phrasings import Phrasings, own_phrasing, relation_of
from palimpsest.datasets.reading import ENDINGS, read_records
from palimpsest.datasets.tabular import remarks

__all__ = [
    "DATASETS",
    "ENDINGS",
    "BadRecordError",
    "Dataset",
    "Phrasings",
    "Skipped",
    "dataset",
    "is_file_of_edits",
    "load_edits",
    "own_phrasing",
    "read_records",
    "relation_of",
    "remarks",
    "training_edits",
    "with_distracting",
    "with_out_of_scope",
]
