"""Causal traces of the bundled model: one prompt, and the average over a hundred facts of the training split.

    python bench/timing/causal_trace.py            about three minutes on one core

The result is `bench/results/causal_trace.json`; the figure and the table of docs/tracing.md are made from it.
"""

from __future__ import annotations

import json
import time

import palimpsest as ps
from common import RESULTS, one_thread
from palimpsest.files import write_text
from palimpsest.provenance import hardware, now, versions
from palimpsest.tracing import TraceOptions, recommended_layers, trace, trace_facts

NUM_FACTS, SEED = 100, 0
PROMPT, SUBJECT = "The capital city of Japan is", "Japan"


def main() -> None:
    """Traces, and writes what was found."""
    one_thread()
    model = ps.load("world")
    requests = ps.dataset("world-counterfact", split="train").sample(3 * NUM_FACTS, SEED).requests
    options = TraceOptions(seed=SEED)
    start = time.perf_counter()
    average, _ = trace_facts(model, requests, num_facts=NUM_FACTS, options=options)
    seconds = time.perf_counter() - start
    several = {str(how_many): recommended_layers(model, requests, how_many, seed=SEED)[1] for how_many in (1, 3)}
    record = {
        "settings": {"model": "world", "dataset": "world-counterfact", "split": "train", "seed": SEED},
        "created": now(),
        "versions": versions(),
        "hardware": hardware(),
        "seconds": seconds,
        "one": trace(model, PROMPT, SUBJECT, options=options).model_dump(),
        "average": average.model_dump(),
        "recommended": several,
    }
    write_text(RESULTS / "causal_trace.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
