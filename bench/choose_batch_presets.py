"""Chooses the options of locate-then-edit presets for the bundled model, on facts that are not reported anywhere else.

    python bench/choose_batch_presets.py            about ten minutes on one core; goes on where it was stopped

Every candidate edits the same facts of the training split: 100 in one batch, or 20 one at a time for ROME and R-ROME,
which are made for one. Of the candidates that keep 95% of the neighbours, the one with the largest sum of reliability
and generality, by free generation, is the preset. Results: `bench/results/choose_batch_presets.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import palimpsest as ps
from common import Results, one_thread, row
from palimpsest.evaluation import BaseAnswers

BATCH, SINGLES, SEED, PROBES_PER_KIND = 100, 20, 7, 3
KEPT = 0.95
CLEAN = {"text": "world", "search_in": "prompt"}
ADAM = {"targets": {"search": "adam", "steps": 60}, "search_in": "all-contexts", "pooling": "half-clean"}
PMET = {"site": "mlp.down", "companions": ["attn.out"], "share": "square-root"}
SETTINGS = {
    "model": "world",
    "dataset": "world-counterfact",
    "split": "train",
    "batch": BATCH,
    "singles": SINGLES,
    "seed": SEED,
    "probes_per_kind": PROBES_PER_KIND,
    "neighbours_kept": KEPT,
}


def gauss_newton(log_odds: float) -> dict[str, Any]:
    """Our search with the threshold that suits its aim."""
    thresholds = {3: 0.1, 4: 0.05, 5: 0.02, 6: 0.01, 8: 0.001}
    return {"targets": {"search": "gauss-newton", "log_odds": log_odds, "stop_loss": thresholds[int(log_odds)]}}


def candidates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Method names with the options to try."""
    for method, keys in (("rome", "mean-and-prompt"), ("r-rome", "mean")):
        for layer, log_odds in ((1, 4), (1, 5), (2, 5)):
            yield method, {**CLEAN, **gauss_newton(log_odds), "layers": [layer], "keys": keys}
    columns = {**CLEAN, "pooling": "columns"}
    for layers, strength, log_odds in (
        ([0, 1], 20, 4),
        ([1, 2], 20, 4),
        ([1, 2], 20, 5),
        ([1, 2], 100, 5),
        ([1, 2], 100, 6),
        ([1, 2, 3], 100, 4),
        ([1, 2, 3], 100, 5),
    ):
        yield "memit", {**columns, **gauss_newton(log_odds), "layers": layers, "strength": strength}
    yield "memit", {**columns, **gauss_newton(5), "layers": [1, 2, 3], "strength": 100, "pooling": "half-clean"}
    yield "memit", {**columns, **ADAM, "layers": [1, 2, 3], "strength": 100}
    for layer, strength in ((1, 20), (2, 20), (2, 100)):
        yield "emmet", {**columns, **gauss_newton(5), "layers": [layer], "strength": strength}
    for layers, log_odds in (([1, 2], 5), ([1, 2, 3], 5)):
        yield "pmet", {**columns, **PMET, **gauss_newton(log_odds), "layers": layers, "strength": 100}
    for layers, strength in (([1, 2], 1), ([1, 2, 3], 1), ([1, 2, 3], 5)):
        yield "alphaedit", {**columns, **gauss_newton(5), "layers": layers, "strength": strength}


def measured(model: ps.EditableModel, data: ps.Dataset, answers: BaseAnswers, labels: dict[str, Any]) -> dict[str, Any]:
    """One candidate."""
    is_single = labels["method"] in ("rome", "r-rome")
    record = ps.evaluate(
        model,
        ps.method(labels["method"], preset="none", **labels["options"]),
        data,
        num_edits=SINGLES if is_single else BATCH,
        seed=SEED,
        protocol=ps.Single() if is_single else ps.Batch(BATCH),
        scorings=("generate",),
        neutral_text=(),
        base=answers,
    )
    full = row(record, **labels)
    means = {key: value["mean"] for key, value in full["scores"]["generate"].items()}
    return {**labels, "means": means, "seconds_per_edit": full["seconds_per_edit"]}


def main() -> None:
    """Runs every candidate and names the best of each method."""
    one_thread()
    model, answers = ps.load("world"), BaseAnswers()
    data = ps.dataset("world-counterfact", split="train").with_probes(PROBES_PER_KIND)
    results = Results("choose_batch_presets", SETTINGS)
    for name, options in candidates():
        labels = {"method": name, "options": options}
        results.get(labels, partial(measured, model, data, answers, labels))
    for name in dict.fromkeys(done["method"] for done in results.rows):
        rows = [done for done in results.rows if done["method"] == name]
        good = [done for done in rows if done["means"]["locality.neighborhood"] >= KEPT] or rows
        best = max(good, key=lambda done: done["means"]["reliability"] + done["means"]["generality"])
        print(f"{name:10} {best['options']}  " + " ".join(f"{k} {v:.3f}" for k, v in best["means"].items()))


if __name__ == "__main__":
    main()
