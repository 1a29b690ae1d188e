"""Wall time of one recipe with two workers against one, on an idle machine.

    python bench/timing/two_workers.py [--rounds 3]      about a quarter of an hour

A run that is not counted fills the caches. Then come rounds of one run each: one worker held to one core, two workers,
and one worker that may use every core as a thread, as `palimpsest bench` gives it. The order changes from round to
round, so that whatever else goes on falls on all. Result: `bench/results/two_workers.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from common import RESULTS
from palimpsest.benchmark import Plan, read_recipe, run
from palimpsest.files import write_text
from palimpsest.provenance import hardware, now, versions

RECIPE = Path(__file__).parents[1] / "recipes" / "two-workers.toml"
GOAL = 0.65
# Workers, and the cores that they may use together.
ONE, TWO, THREADED = (1, 1), (2, 2), (1, 2)
WAYS = {ONE: "one worker, one core", TWO: "two workers", THREADED: "one worker, two cores"}


def seconds(plan: Plan, workers: int, cores: int) -> float:
    """Wall time of a whole run in a folder of its own. Raises `RuntimeError` when a unit fails."""
    allowed = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        try:
            # What is started from here inherits it.
            os.sched_setaffinity(0, sorted(allowed)[:cores])
            outcome = run(plan, Path(scratch) / "results", workers=workers)
        finally:
            os.sched_setaffinity(0, allowed)
        spent = time.perf_counter() - start
    if outcome.counts["ok"] < len(plan.units):
        raise RuntimeError(f"not every unit came to a good end: {outcome.counts}, {outcome.failures[:1]}")
    return spent


def main() -> None:
    """Times the rounds and writes them with the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--out", type=Path, default=RESULTS / "two_workers.json")
    options = parser.parse_args()
    plan = Plan.of(read_recipe(options.recipe))
    load = os.getloadavg()[0]
    seconds(plan, *TWO)
    rounds = []
    for number in range(options.rounds):
        order = list(WAYS) if number % 2 == 0 else list(reversed(WAYS))
        rounds.append({WAYS[way]: seconds(plan, *way) for way in order})
    median = {name: statistics.median(one[name] for one in rounds) for name in WAYS.values()}
    ratios = {name: median[WAYS[TWO]] / median[name] for way, name in WAYS.items() if way != TWO}
    record = {
        "settings": {"recipe": plan.recipe.name, "units": len(plan.units), "goal": GOAL},
        "created": now(),
        "versions": versions(),
        "hardware": hardware(),
        "load_before": load,
        "rounds": rounds,
        "ratios": ratios,
    }
    write_text(options.out, json.dumps(record, indent=1) + "\n")
    for name, ratio in ratios.items():
        print(f"two workers take {ratio:.2f} of the time of {name} (goal {GOAL})")


if __name__ == "__main__":
    main()
