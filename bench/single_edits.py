"""Every method with its preset on single edits of a bundled model: what it changes, what it leaves alone, its cost.

    python bench/single_edits.py                    about a quarter of an hour on one core; goes on where it was stopped
    python bench/single_edits.py --methods kn,ft    measures these again and keeps the other rows
    python bench/single_edits.py --model world-t5   the bundled encoder-decoder

Each method edits the same facts of the test split, one at a time, with the model restored in between. The presets were
chosen on the training split. Results: `bench/results/single_edits.json` and `single_edits_world_t5.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import palimpsest as ps
from common import Results, one_thread, recipe_parser, results_name, row
from palimpsest.evaluation import BaseAnswers
from palimpsest.methods.catalogue import METHODS

NUM_EDITS = {"world-counterfact": 100, "world-zsre": 50}
SEED = 0
# The general form is left out; its published variants are in the table.
# Fine-tuning as it is often compared: all passes, whatever the loss, and no bound.
OVERTRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "ft (over-trained)": ("ft", {"stop_loss": 0.0}),
    "ft-l (over-trained)": ("ft-l", {"stop_loss": 0.0, "constraint": "none"}),
}
TABLE = [*(name for name in METHODS if name != "f-learning"), *OVERTRAINED]
SETTINGS = {"split": "test", "protocol": "single", "num_edits": NUM_EDITS, "seed": SEED}


def measured(model: ps.EditableModel, data: ps.Dataset, answers: BaseAnswers, labels: dict[str, Any]) -> dict[str, Any]:
    """One method on one data set."""
    method, options = OVERTRAINED.get(labels["method"], (labels["method"], {}))
    editor = ps.method(method, **options)
    record = ps.evaluate(model, editor, data, num_edits=NUM_EDITS[labels["dataset"]], seed=SEED, base=answers)
    return row(record, **labels)


def can_edit(model: ps.EditableModel, method: str) -> bool:
    """Whether the method is for this model: locate-then-edit methods are for decoders, trained ones need an editor."""
    editor = ps.method(OVERTRAINED[method][0] if method in OVERTRAINED else method)
    try:
        editor.require(model)
    except (ps.ModelError, ps.ConfigError):
        return False
    return True


def chosen(arguments: Sequence[str] | None = None) -> tuple[str, list[str]]:
    """The model and the methods named on the command line; no method means those that have no row yet."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--methods", default="", metavar="NAME,NAME", help="measure these again, and only these")
    options = parser.parse_args(arguments)
    names = [name for name in options.methods.split(",") if name]
    for name in names:
        if name not in TABLE:
            parser.error(f"no method {name!r} in this table; it has {', '.join(TABLE)}")
    return options.model, names


def main() -> None:
    """Runs the chosen methods on both data sets."""
    bundled, names = chosen()
    one_thread()
    model = ps.load(bundled)
    results = Results(results_name("single_edits", bundled), {"model": bundled, **SETTINGS})
    if names:
        results.require_same_conditions()
    for dataset in NUM_EDITS:
        data = ps.dataset(dataset)
        answers = BaseAnswers()
        for method in filter(partial(can_edit, model), names or TABLE):
            labels = {"dataset": dataset, "method": method}
            results.get(labels, partial(measured, model, data, answers, labels), again=method in names)
    results.rows.sort(key=lambda row: (row["dataset"], row["method"]))
    results.save()


if __name__ == "__main__":
    main()
