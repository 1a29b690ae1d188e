"""Many edits of the bundled model: batches of 1, 10 and 100 facts, and sequences, as curves.

    python bench/many_edits.py            about forty minutes on one core; goes on where it was stopped

A batch's facts are edited in one call, the model is restored after it; smaller batches share the same 100 facts. They
are about 67 people; a batch about a hundred different people is beside them. In a sequence every edit stays, and all
are asked again at the end. Methods have their presets for the bundled model; `adam` marks the published search
for target vectors in place of the presets'. Results: `bench/results/many_edits.json`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

import palimpsest as ps
from common import Results, one_thread, row
from palimpsest.evaluation import BaseAnswers

FACTS, SEED, PROBES_PER_KIND = 100, 0, 2
BATCHES = (1, 10, 100)
CHECKPOINTS = (1, 10, 100)
ADAM = {"targets": {"search": "adam", "steps": 60}, "search_in": "all-contexts", "pooling": "half-clean"}
IN_BATCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "memit": ("memit", {}),
    "memit, adam": ("memit", ADAM),
    "alphaedit": ("alphaedit", {}),
    "alphaedit, adam": ("alphaedit", ADAM),
    "alphaedit, published threshold": ("alphaedit", {"null_space": "threshold"}),
    "emmet": ("emmet", {}),
    "pmet": ("pmet", {}),
    "locft": ("locft", {}),
    "ft": ("ft", {}),
}
# Where each fact has a key of its own.
ALONE = ("memit", "memit, adam", "alphaedit", "alphaedit, adam", "emmet", "pmet")
IN_SEQUENCE = ("rome", "r-rome", "memit", "alphaedit", "locft", "ft")
SETTINGS = {
    "model": "world",
    "dataset": "world-counterfact",
    "split": "test",
    "facts": FACTS,
    "seed": SEED,
    "probes_per_kind": PROBES_PER_KIND,
    "batches": BATCHES,
    "checkpoints": CHECKPOINTS,
    "rows": {name: options for name, (_, options) in IN_BATCHES.items()},
}


def measured(
    model: ps.EditableModel, data: ps.Dataset, answers: BaseAnswers, name: str, labels: dict[str, Any]
) -> dict[str, Any]:
    """One method in batches of one size, or in a sequence."""
    size = labels.get("batch")
    method, options = IN_BATCHES[name] if size else (name, {})
    record = ps.evaluate(
        model,
        ps.method(method, **options),
        data,
        num_edits=max(FACTS, size or 0),
        seed=SEED,
        protocol=ps.Batch(size) if size else ps.Sequential(CHECKPOINTS),
        scorings=("generate",),
        base=answers,
    )
    curve = {} if size else {key: record.to_json()[key] for key in ("immediate", "checkpoints")}
    return {**row(record, **labels), **curve}


def one_a_subject(data: ps.Dataset) -> ps.Dataset:
    """Of each subject the first fact that a draw with the seed finds."""
    drawn = data.sample(len(data), SEED).requests
    first = {request.subject: request for request in reversed(drawn)}
    return replace(data, requests=tuple(request for request in drawn if first[request.subject] is request))


def main() -> None:
    """Runs the batches, then the sequences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("batch", "sequence"))
    only = parser.parse_args().only
    one_thread()
    model, answers = ps.load("world"), BaseAnswers()
    data = ps.dataset("world-counterfact").with_probes(PROBES_PER_KIND)
    results = Results("many_edits", SETTINGS)
    for size in BATCHES if only != "sequence" else ():
        for name in IN_BATCHES:
            labels = {"batch": size, "subjects": None, "method": name}
            results.get(labels, partial(measured, model, data, answers, name, labels))
    distinct = one_a_subject(data)
    for name in ALONE if only != "sequence" else ():
        labels = {"batch": FACTS, "subjects": "distinct", "method": name}
        results.get(labels, partial(measured, model, distinct, answers, name, labels))
    for name in IN_SEQUENCE if only != "batch" else ():
        labels = {"sequence": FACTS, "method": name}
        results.get(labels, partial(measured, model, data, answers, name, labels))


if __name__ == "__main__":
    main()
