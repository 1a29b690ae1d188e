"""The methods that are trained, on the bundled models: 200 single edits of held-out facts, batches, sequences.

    python bench/trained_editors.py                        what has no row yet, about half an hour on one core
    python bench/trained_editors.py --model world-t5
    python bench/trained_editors.py --methods mend,ke      measures these again and keeps the other rows

Editors are the bundled ones (`make editors`), trained on the training split; the edits are the test split's, whose
subjects they have never seen. One more is trained here, for batches, and kept in the cache folder: a quarter of an
hour. A batch's facts are edited in one call; in a sequence every edit stays, and all are asked again at 1, 10 and 100.
Perplexity is that of ordinary sentences under each of 100 single edits. Results: `bench/results/trained_editors.json`
and `trained_editors_world_t5.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import palimpsest as ps
from common import Results, one_thread, recipe_parser, results_name, row
from palimpsest.datasets.catalogue import training_edits
from palimpsest.errors import PalimpsestError
from palimpsest.evaluation import BaseAnswers
from palimpsest.files import cache_folder
from palimpsest.methods.editors import RECORD, read_record
from palimpsest.provenance import digest
from palimpsest.world import bundled_editors

DATASET, SEED, PROBES_PER_KIND = "world-counterfact", 0, 2
SINGLE, MANY = 200, 100
BATCHES, CHECKPOINTS = (10, 100), (1, 10, 100)
# What each is measured under beside single edits; those that are made for several edits, in batches too.
FOR_SEVERAL = "mend for batches"
METHODS = {
    "mend": ("batch", "sequential"),
    FOR_SEVERAL: ("batch",),
    "ke": ("sequential",),
    "serac": ("batch", "sequential"),
    "ike": ("sequential",),
}
FOR_BATCHES = {
    "edits_together": [1, 10],
    "examples_per_step": 40,
    "forward_batch_size": 40,
    "validate_every": 50,
    "steps": 250,
}
"""Options of a training in which the batch's size is drawn at every step."""
SETTINGS = {
    "dataset": DATASET,
    "split": "test",
    "seed": SEED,
    "probes_per_kind": PROBES_PER_KIND,
    "single": SINGLE,
    "many": MANY,
    "batches": BATCHES,
    "checkpoints": CHECKPOINTS,
}


def runs(model: ps.EditableModel, methods: dict[str, tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """The labels of every row: single edits of all methods first."""
    for method in methods:
        yield {"method": method, "protocol": "single"}
        # The bundled encoder-decoder has read prompts and answers alone: the halves of a sentence say nothing of it.
        if not model.is_encoder_decoder:
            yield {"method": method, "protocol": "perplexity"}
    for method, protocols in methods.items():
        if "batch" in protocols:
            yield from ({"method": method, "protocol": "batch", "batch": size} for size in BATCHES)
        if "sequential" in protocols:
            yield {"method": method, "protocol": "sequential"}


def batch_editor(model: ps.EditableModel) -> Path:
    """Where the editor for batches is."""
    return (cache_folder() or Path(".")) / "bench" / f"mend-for-batches-{model.name}-{digest(FOR_BATCHES)}"


def chosen_method(model: ps.EditableModel, name: str) -> Any:
    """The method of a row; the editor for batches is trained unless that is done."""
    if name != FOR_SEVERAL:
        return ps.method(name)
    folder = batch_editor(model)
    if not folder.exists():
        mend: Any = ps.method("mend")
        requests = training_edits(DATASET).requests
        saved = folder.with_suffix(".checkpoint")
        mend.train(model, requests, FOR_BATCHES, seed=SEED, checkpoint=saved, resume=True).save(folder)
    return ps.method("mend", editor=str(folder))


def measured(model: ps.EditableModel, data: ps.Dataset, answers: BaseAnswers, labels: dict[str, Any]) -> dict[str, Any]:
    """One method under one protocol; `perplexity` asks nothing about the edits but their own prompts."""
    protocols = {
        "single": ps.Single(),
        "perplexity": ps.Single(),
        "batch": ps.Batch(labels.get("batch")),
        "sequential": ps.Sequential(CHECKPOINTS),
    }
    is_single = labels["protocol"] == "single"
    record = ps.evaluate(
        model,
        chosen_method(model, labels["method"]),
        data if labels["protocol"] != "perplexity" else data.with_probes(0),
        num_edits=SINGLE if is_single else MANY,
        seed=SEED,
        protocol=protocols[labels["protocol"]],
        scorings=("generate", "teacher_forced") if is_single else ("generate",),
        neutral_text=() if is_single else None,
        base=answers,
    )
    full = record.to_json()
    kept = {key: full[key] for key in ("immediate", "checkpoints") if key in full}
    return {**row(record, **labels), "peak_memory_bytes": full["peak_memory_bytes"], **kept}


def training(model: ps.EditableModel) -> dict[str, dict[str, Any]]:
    """What the editors of a model cost, by the row's method."""
    found = {}
    bundled = sorted(file.parent for file in bundled_editors().glob(f"*/{RECORD}"))
    for folder in [*bundled, *([batch_editor(model)] if batch_editor(model).exists() else [])]:
        record = read_record(folder)
        if record.model == model.name:
            found[record.method if folder in bundled else FOR_SEVERAL] = {
                "seconds": record.seconds,
                "steps": record.curve[-1]["step"],
                "best_step": record.best_step,
                "edits": record.data["edits"],
                "num_parameters": record.num_parameters,
                "bytes": sum(one.stat().st_size for one in folder.glob("*.safetensors")),
                "peak_memory_bytes": record.peak_memory_bytes,
            }
    return found


def can_edit(model: ps.EditableModel, method: str) -> bool:
    """Whether there is an editor for the model."""
    editor = ps.method("mend" if method == FOR_SEVERAL else method)
    try:
        editor.require(model)
    except PalimpsestError:
        return False
    return True


def main() -> None:
    """Runs what has no row yet, or the chosen methods again."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--methods", default="", metavar="NAME,NAME", help="measure these again, and only these")
    options = parser.parse_args()
    chosen = [name for name in options.methods.split(",") if name]
    one_thread()
    model, answers = ps.load(options.model), BaseAnswers()
    results = Results(results_name("trained_editors", options.model), {"model": options.model, **SETTINGS})
    data = ps.dataset(DATASET).with_probes(PROBES_PER_KIND)
    usable = {name: its for name, its in METHODS.items() if can_edit(model, name)}
    for labels in runs(model, {name: its for name, its in usable.items() if not chosen or name in chosen}):
        results.get(labels, partial(measured, model, data, answers, labels), again=bool(chosen))
    # After the editor for batches has been trained.
    for method, cost in training(model).items():
        labels = {"method": method, "protocol": "training"}
        results.get(labels, partial(dict, labels, **cost), again=True)
    results.save()


if __name__ == "__main__":
    main()
