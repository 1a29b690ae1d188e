"""What was forgotten once, used again: the same patch, in how much of the time (F-Learning, section 5.7).

    python bench/timing/forgetting_reuse.py        a few minutes on one core

A batch of facts is forgotten and learnt on the bundled decoder; then once more with the forget patch of the first time.
Time is the processor's, which others on the machine do not change much. Result: `bench/results/forgetting_reuse.json`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import palimpsest as ps
from common import Timings, one_thread

METHOD, DATASET, FACTS, SEED, RATE, FORGET_EPOCHS, LEARN_EPOCHS = "f-learning-ft", "world-counterfact", 50, 0, 0.3, 3, 3
SETTINGS = {"model": "world", "dataset": DATASET, "split": "test", "num_edits": FACTS, "seed": SEED}


def timed(model: ps.EditableModel, facts: Any, **options: Any) -> tuple[Any, float]:
    """A patch and the seconds it took. As in the paper, forgetting and learning take three passes each."""
    method = ps.method(
        METHOD,
        seed=SEED,
        rate=RATE,
        forget_options={"epochs": FORGET_EPOCHS},
        learn_options={"epochs": LEARN_EPOCHS, "stop_loss": 0.0},
        **options,
    )
    start = time.process_time()
    patch = method.edit(model, facts).patch
    return patch, time.process_time() - start


def measured() -> dict[str, Any]:
    """Forgetting anew against forgetting by the kept patch."""
    model, facts = ps.load("world"), ps.dataset(DATASET).sample(FACTS, SEED).requests
    timed(model, facts[:2])
    with tempfile.TemporaryDirectory() as scratch:
        anew, first = timed(model, facts)
        anew.save(Path(scratch) / "kept")
        again, second = timed(model, facts, forget_patch=str(Path(scratch) / "kept"))
    ours, theirs = anew.tensors(), again.tensors()
    is_equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return {
        "method": METHOD,
        "seconds": first,
        "seconds_again": second,
        "share_of_seconds": second / first,
        "is_equal": is_equal,
    }


def main() -> None:
    """Measures, unless that is done."""
    one_thread()
    results = Timings("forgetting_reuse", SETTINGS)
    results.add({"method": METHOD}, measured)


if __name__ == "__main__":
    main()
