"""Wall time of one recipe with two workers against one, on an idle machine.

    python bench/timing/two_workers.py [--rounds 3]      about a quarter of an hour

A run that is not counted fills the caches. Then come rounds of one run each: one worker held to one core, two workers,
and one worker that may use every core as a thread, as `palimpsest bench` gives it. The order changes from round to
round, so that whatever else goes on falls on all. Result: `bench/results/two_workers.json`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path

from common import Timings, median_seconds
from palimpsest.benchmark import Plan, read_recipe, run

RECIPE = Path(__file__).parents[1] / "recipes" / "two-workers.toml"
# Workers, and the cores that they may use together.
WAYS = {"one worker, one core": (1, 1), "two workers": (2, 2), "one worker, two cores": (1, 2)}


def measured(plan: Plan, workers: int, cores: int) -> None:
    """A whole run in a folder of its own. Raises `RuntimeError` when a unit fails."""
    allowed = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            # What is started from here inherits it.
            os.sched_setaffinity(0, sorted(allowed)[:cores])
            outcome = run(plan, Path(scratch) / "results", workers=workers)
        finally:
            os.sched_setaffinity(0, allowed)
    if outcome.counts["ok"] < len(plan.units):
        raise RuntimeError(f"not every unit came to a good end: {outcome.counts}, {outcome.failures[:1]}")


def main() -> None:
    """Times the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    plan = Plan.of(read_recipe(RECIPE))
    results = Timings("two_workers", {"recipe": plan.recipe.name, "units": len(plan.units)})
    measured(plan, *WAYS["two workers"])
    for number in range(rounds):
        for way in list(WAYS)[:: 1 if number % 2 == 0 else -1]:
            seconds = partial(median_seconds, partial(measured, plan, *WAYS[way]), 1)
            results.add({"way": way, "round": number}, lambda seconds=seconds: {"seconds": seconds()})  # type: ignore[misc]


if __name__ == "__main__":
    main()
