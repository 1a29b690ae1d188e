"""Every method with its preset on single edits of the bundled model: what it changes, what it leaves alone, its cost.

    python bench/single_edits.py        about ten minutes on one core; goes on where it was stopped

Each method edits the same facts of the test split, one at a time, with the model restored in between. The presets were
chosen on the training split. Results: `bench/results/single_edits.json`.
"""

from __future__ import annotations

from typing import Any

from common import Results, one_thread, row

import palimpsest as ps
from palimpsest.evaluation import BaseAnswers
from palimpsest.methods.catalogue import METHODS

NUM_EDITS = {"world-counterfact": 100, "world-zsre": 100}
SEED = 0
SETTINGS = {"model": "world", "split": "test", "protocol": "single", "num_edits": NUM_EDITS, "seed": SEED}


def main() -> None:
    """Runs every method on both data sets."""
    one_thread()
    model = ps.load("world")
    results = Results("single_edits", SETTINGS)
    for name, num_edits in NUM_EDITS.items():
        data = ps.dataset(name)
        answers = BaseAnswers()
        for method in METHODS:
            if method == "f-learning":
                continue  # the general form; its published variants are in the table

            def compute() -> dict[str, Any]:
                editor = ps.method(method)
                record = ps.evaluate(model, editor, data, num_edits=num_edits, seed=SEED, base=answers)
                return row(record, dataset=name, method=method)

            results.get({"dataset": name, "method": method}, compute)


if __name__ == "__main__":
    main()
