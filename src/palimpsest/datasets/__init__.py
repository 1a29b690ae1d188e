"""Data sets: files and names to EditRequests."""

from palimpsest.datasets.base import Dataset, Skipped
from palimpsest.datasets.catalogue import DATASETS, dataset, load_edits

__all__ = ["DATASETS", "Dataset", "Skipped", "dataset", "load_edits"]
