"""Methods that add parameters or memories, in sequences of a thousand edits; CaliNET in one batch of a hundred.

    python bench/added_parameters.py                                     goes on where it was stopped
    python bench/added_parameters.py --model world-t5 --methods grace --edits 100

Sequences: every edit stays; all edits so far are asked again after 1, 10, 100 and 1,000 of them, with at most one
question of each kind for every edit. The test split has fewer than 500 facts, so that sequences are drawn from all of
them; presets were chosen on 100 facts of the training split. The batch is of the test split. Single edits are measured
with those of all other methods, by `bench/single_edits.py`.

Results: `bench/results/added_parameters.json` and `added_parameters_world_t5.json`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import palimpsest as ps
from common import Results, one_thread, recipe_parser, results_name, row
from palimpsest.evaluation import BaseAnswers

SEQUENTIAL, BATCHED = ("t-patcher", "grace", "wise"), ("calinet",)
BATCH, SEED = 100, 0
CHECKPOINTS = (1, 10, 100, 1000)
SPLITS = {"batch": "test", "sequence": "all"}
PROBES_PER_KIND = {"batch": 3, "sequence": 1}


def measured(model: ps.EditableModel, data: ps.Dataset, answers: BaseAnswers, labels: dict[str, Any]) -> dict[str, Any]:
    """One method, all at once or in a sequence."""
    is_batch = labels["protocol"] == "batch"
    record = ps.evaluate(
        model,
        ps.method(labels["method"]),
        data.with_probes(PROBES_PER_KIND[labels["protocol"]]),
        num_edits=labels["edits"],
        seed=SEED,
        protocol=ps.Batch() if is_batch else ps.Sequential(CHECKPOINTS),
        scorings=("generate",),
        neutral_text=(),
        base=answers,
    )
    full = record.to_json()
    curve = {} if is_batch else {key: full[key] for key in ("immediate", "checkpoints")}
    return {**row(record, **labels), **curve}


def main() -> None:
    """Runs the batches, then the sequences."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--methods", default=",".join(SEQUENTIAL + BATCHED), metavar="NAME,NAME")
    parser.add_argument("--edits", type=int, default=CHECKPOINTS[-1], help="length of the sequence")
    options = parser.parse_args()
    one_thread()
    model, answers = ps.load(options.model), BaseAnswers()
    data = {protocol: ps.dataset("world-counterfact", split=split) for protocol, split in SPLITS.items()}
    settings = {"model": options.model, "dataset": "world-counterfact", "split": SPLITS, "seed": SEED}
    results = Results(
        results_name("added_parameters", options.model),
        {**settings, "batch": BATCH, "checkpoints": CHECKPOINTS, "probes_per_kind": PROBES_PER_KIND},
    )
    for method in options.methods.split(","):
        protocol, edits = ("batch", BATCH) if method in BATCHED else ("sequence", options.edits)
        labels = {"protocol": protocol, "method": method, "edits": edits}
        results.get(labels, partial(measured, model, data[protocol], answers, labels))


if __name__ == "__main__":
    main()
