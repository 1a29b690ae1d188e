"""What was forgotten once, used again: the same patch, in how much of the time (F-Learning, section 5.7).

    python bench/timing/forgetting_reuse.py        a few minutes on one core

A batch of facts is forgotten and learnt on the bundled decoder; then once more with the forget patch of the first time.
Processor seconds. Result: `bench/results/forgetting_reuse.json`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

import palimpsest as ps
from common import Timings, cpu_seconds, one_thread

METHOD, DATASET, FACTS, SEED = "f-learning-ft", "world-counterfact", 50, 0
SETTINGS = {"model": "world", "dataset": DATASET, "split": "test", "num_edits": FACTS, "seed": SEED}
# As in the paper, forgetting and learning take three passes each.
OPTIONS = {"rate": 0.3, "forget_options": {"epochs": 3}, "learn_options": {"epochs": 3, "stop_loss": 0.0}}


def measured() -> dict[str, Any]:
    """Forgetting anew against forgetting by the kept patch."""
    model, facts = ps.load("world"), ps.dataset(DATASET).sample(FACTS, SEED).requests
    ps.method(METHOD, seed=SEED, **OPTIONS).edit(model, facts[:2])
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "kept"
        first, anew = cpu_seconds(lambda: ps.method(METHOD, seed=SEED, **OPTIONS).edit(model, facts).patch)
        anew.save(kept)
        reusing = ps.method(METHOD, seed=SEED, forget_patch=str(kept), **OPTIONS)
        second, again = cpu_seconds(lambda: reusing.edit(model, facts).patch)
    ours, theirs = anew.tensors(), again.tensors()
    return {
        "seconds": first,
        "seconds_again": second,
        "share_of_seconds": second / first,
        "is_equal": ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours),
    }


if __name__ == "__main__":
    one_thread()
    Timings("forgetting_reuse", SETTINGS).add({"method": METHOD}, measured)
