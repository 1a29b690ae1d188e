"""Seconds of an edit by how torch's threads wait for each other, on an idle machine and beside other processes.

    python bench/timing/threads.py        ROME at GPT-2 small's dimensions, two cores, a few minutes

Every figure is of a process of its own, as OpenMP reads its settings once. Result: `bench/results/threads.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from statistics import mean
from typing import Any

from common import Timings

REPEATS = 4
WAYS = {
    "as OpenMP does (milliseconds)": {"OMP_NUM_THREADS": "2"},
    "`GOMP_SPINCOUNT=1000`": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = [sys.executable, "-c", "while True: pass"]


def edits() -> list[tuple[float, float]]:
    """Seconds and processor seconds of each edit, after one that is not counted."""
    import palimpsest as ps
    from speed import ADAM, LAYERS, build, text_of

    model = build("gpt2-small", "cpu")
    options = {**ADAM, **text_of(model), "layers": LAYERS["gpt2-small"][-1:]}
    method, facts = ps.method("rome", preset="none", **options), ps.dataset("world-counterfact").requests
    method.edit(model, facts[:1])
    spent = []
    for fact in facts[1 : 1 + REPEATS]:
        start, processor = time.perf_counter(), time.process_time()
        method.edit(model, [fact])
        spent.append((time.perf_counter() - start, time.process_time() - processor))
    return spent


def measured(settings: dict[str, str], others: int) -> dict[str, Any]:
    """Means over the edits, beside other processes that take all they get."""
    busy = [subprocess.Popen(BUSY) for _ in range(others)]
    try:
        command = [sys.executable, __file__, "edits"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings})
    finally:
        for one in busy:
            one.kill()
    seconds, processor = zip(*json.loads(done.stdout), strict=True)
    return {"seconds": mean(seconds), "cpu_seconds": mean(processor)}


if __name__ == "__main__":
    if sys.argv[1:] == ["edits"]:
        print(json.dumps(edits()))
    else:
        results = Timings("threads", {"method": "rome", "shape": "gpt2-small", "repeats": REPEATS})
        for way, settings in WAYS.items():
            for others in (0, 1, 2):
                results.add({"way": way, "others": others}, partial(measured, settings, others))
