"""Wall time of one recipe with two workers against one, on an idle machine.

    python bench/two_workers.py [--rounds 3]      about a quarter of an hour

A run that is not counted fills the caches. Then come rounds of one run each with one worker and with two, the order
changing from round to round, so that whatever else goes on falls on both. One worker may use every core as a thread,
as `palimpsest bench` gives it. Result: `bench/results/two_workers.json`.
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
from palimpsest.provenance import hardware, now, versions, write_text

RECIPE = Path(__file__).parent / "recipes" / "two-workers.toml"
GOAL = 0.65


def seconds(plan: Plan, workers: int) -> float:
    """Wall time of a whole run in a folder of its own. Raises `RuntimeError` when a unit fails."""
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        outcome = run(plan, Path(scratch) / "results", workers=workers)
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
    seconds(plan, 2)
    rounds = []
    for number in range(options.rounds):
        order = (1, 2) if number % 2 == 0 else (2, 1)
        rounds.append({str(workers): seconds(plan, workers) for workers in order})
    ratio = statistics.median(one["2"] for one in rounds) / statistics.median(one["1"] for one in rounds)
    record = {
        "settings": {"recipe": plan.recipe.name, "units": len(plan.units), "goal": GOAL},
        "created": now(),
        "versions": versions(),
        "hardware": hardware(),
        "load_before": load,
        "rounds": rounds,
        "ratio": ratio,
    }
    write_text(options.out, json.dumps(record, indent=1) + "\n")
    print(f"two workers take {ratio:.2f} of one worker's time (goal {GOAL})")


if __name__ == "__main__":
    main()
