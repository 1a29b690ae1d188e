"""Is F-Learning's effect there? Forgetting at several rates, then learning for a few passes, against learning alone.

    python bench/forgetting_before_learning.py        about 50 minutes on one core; goes on where it was stopped

A batch of 100 facts of the bundled model's test split, 3 seeds (each another sample and another order of facts), equal
batch sizes and learning steps in every cell. A rate of 0 is learning alone. Forgetting costs 3 passes on top, so
learning alone is also run for 3 passes more. Results: `bench/results/forgetting_before_learning.json`.
"""

from __future__ import annotations

import itertools
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import palimpsest as ps
from common import Results, one_thread, row
from palimpsest.evaluation import BaseAnswers

NUM_EDITS = 100
SEEDS = (0, 1, 2)
RATES = (0.0, 0.1, 0.3, 0.7, 1.0, 3.0)
EPOCHS = (1, 2, 3, 5)
FORGET_EPOCHS = 3
PROBES_PER_KIND = 2
# Chosen on the training split, so that learning alone has learned most of its facts after five passes. LoRA on query
# and value alone, as in the paper, reached 24% there at any of the rates tried, so it adapts the MLP too.
LEARNERS: dict[str, dict[str, Any]] = {
    "ft": {"learning_rate": 3e-4, "facts_per_step": 4, "stop_loss": 0.0},
    "lora": {
        "learning_rate": 2e-3,
        "facts_per_step": 4,
        "stop_loss": 0.0,
        "rank": 8,
        "alpha": 16.0,
        "sites": ["attn.q", "attn.v", "mlp.up", "mlp.down"],
    },
}
VARIANTS = {"f-learning-ft": ("ft", "ft"), "f-learning-lora": ("lora", "lora"), "f-learning-lora-ft": ("lora", "ft")}
SETTINGS = {
    "model": "world",
    "dataset": "world-counterfact",
    "split": "test",
    "protocol": "batch",
    "num_edits": NUM_EDITS,
    "forget_epochs": FORGET_EPOCHS,
    "learners": LEARNERS,
    "probes_per_kind": PROBES_PER_KIND,
}


def cells() -> list[tuple[float, int]]:
    """(rate, learning passes) of every cell; learning alone also gets the passes that forgetting takes elsewhere."""
    longer = sorted({epochs + FORGET_EPOCHS for epochs in EPOCHS} - set(EPOCHS))
    return [*itertools.product(RATES, EPOCHS), *((0.0, epochs) for epochs in longer)]


def forget_patch(model: ps.EditableModel, data: ps.Dataset, learner: str, seed: int, folder: Path) -> str:
    """The change towards the old answers, computed once for all rates and kept in a folder."""
    kept = folder / f"{learner}-{seed}"
    if not kept.exists():
        old = [request.reversed_to_old() for request in data.sample(NUM_EDITS, seed).requests]
        options = {**LEARNERS[learner], "epochs": FORGET_EPOCHS, "seed": seed}
        ps.method(learner, preset="none", **options).edit(model, old).patch.save(kept)
    return str(kept)


def cell(
    model: ps.EditableModel, data: ps.Dataset, answers: BaseAnswers, folder: Path, labels: dict[str, Any]
) -> dict[str, Any]:
    """One batch of edits, evaluated."""
    variant, seed = labels["variant"], labels["seed"]
    forget, learn = VARIANTS[variant]
    editor = ps.method(
        variant,
        preset="none",
        rate=labels["rate"],
        seed=seed,
        forget_patch=forget_patch(model, data, forget, seed, folder),
        learn_options={**LEARNERS[learn], "epochs": labels["epochs"]},
    )
    record = ps.evaluate(
        model,
        editor,
        data,
        protocol=ps.Batch(),
        num_edits=NUM_EDITS,
        seed=seed,
        scorings=("generate",),
        max_new_tokens=12,
        forward_batch_size=128,
        base=answers,
    )
    return row(record, **labels)


def main() -> None:
    """Runs every cell that is not in the results yet."""
    one_thread()
    model = ps.load("world")
    data = ps.dataset("world-counterfact").with_probes(PROBES_PER_KIND)
    answers = BaseAnswers()
    results = Results("forgetting_before_learning", SETTINGS)
    with tempfile.TemporaryDirectory() as scratch:
        for variant, seed, (rate, epochs) in itertools.product(VARIANTS, SEEDS, cells()):
            # Without forgetting, LoRA then FT is FT.
            if rate > 0 or variant != "f-learning-lora-ft":
                labels = {"variant": variant, "rate": rate, "epochs": epochs, "seed": seed}
                results.get(labels, partial(cell, model, data, answers, Path(scratch), labels))


if __name__ == "__main__":
    main()
