"""Methods x data sets x models x protocols x seeds: planned, run by several workers, resumed after anything."""

from palimpsest.benchmark.choosing import account_in_words
from palimpsest.benchmark.estimate import estimates, time_to_go
from palimpsest.benchmark.folder import (
    Finished,
    ResultsFolder,
    load_labelled,
    published_figures,
    run_folders,
    unit_counts,
)
from palimpsest.benchmark.plan import Plan
from palimpsest.benchmark.recipe import Recipe, read_recipe
from palimpsest.benchmark.runner import run
from palimpsest.benchmark.units import WorkUnit

__all__ = [
    "Finished",
    "Plan",
    "Recipe",
    "ResultsFolder",
    "WorkUnit",
    "account_in_words",
    "estimates",
    "load_labelled",
    "published_figures",
    "read_recipe",
    "run",
    "run_folders",
    "time_to_go",
    "unit_counts",
]
