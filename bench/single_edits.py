"""Every method with its preset on single edits of a bundled model: what it changes, what it leaves alone, its cost.

    python bench/single_edits.py                      about ten minutes on one core; goes on where it was stopped
    python bench/single_edits.py --model world-t5

Each method edits the same facts of the test split, one at a time, with the model restored in between. The presets were
chosen on the training split. Results: `bench/results/single_edits.json` and `single_edits_world_t5.json`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import palimpsest as ps
from common import Results, bundled_model, one_thread, results_name, row
from palimpsest.evaluation import BaseAnswers
from palimpsest.methods.catalogue import METHODS

NUM_EDITS = {"world-counterfact": 100, "world-zsre": 50}
SEED = 0
SETTINGS = {"split": "test", "protocol": "single", "num_edits": NUM_EDITS, "seed": SEED}


def measured(model: ps.EditableModel, data: ps.Dataset, answers: BaseAnswers, labels: dict[str, Any]) -> dict[str, Any]:
    """One method on one data set."""
    editor = ps.method(labels["method"])
    record = ps.evaluate(model, editor, data, num_edits=NUM_EDITS[labels["dataset"]], seed=SEED, base=answers)
    return row(record, **labels)


def main() -> None:
    """Runs every method on both data sets."""
    name = bundled_model()
    one_thread()
    model = ps.load(name)
    results = Results(results_name("single_edits", name), {"model": name, **SETTINGS})
    for dataset in NUM_EDITS:
        data = ps.dataset(dataset)
        answers = BaseAnswers()
        for method in METHODS:
            if method == "f-learning":
                continue  # the general form; its published variants are in the table
            labels = {"dataset": dataset, "method": method}
            results.get(labels, partial(measured, model, data, answers, labels))


if __name__ == "__main__":
    main()
