"""A thousand edits of real facts, in batches and in a sequence, on a model that knows these facts.

    python bench/many_real_edits.py --real real       about an hour on one core; goes on where it was stopped

On the CounterFact model of `make real`, with the records that `bench/real_edits.py` reports. The options are the best
of that recipe for single edits with an aim at log-odds of 5 at most: the farther aim, which it likes better, makes
longer vectors. What a single edit's strength is says little about a thousand facts, so that is chosen first, on one
batch of the records that are not reported: the largest harmonic mean of reliability, generality and locality by free
generation. A batch is one call and the model is restored after it, smaller batches share the same thousand facts; in a
sequence every edit stays. Results: `bench/results/many_real_edits.json`, the candidates in
`bench/results/many_real_edits_choosing.json`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import palimpsest as ps
from choose_batch_presets import ADAM, gauss_newton
from common import Results, balance, one_thread, row
from palimpsest.evaluation import BaseAnswers
from real_edits import CLEAN, LEARNING, editor_of, taught_text
from real_facts import LOCALITY, real_folder, records

DATASET = "counterfact"
FACTS, SEED, PROBES_PER_KIND, CHOOSING, MAX_NEW_TOKENS = 1000, 0, 1, 350, 8
BATCHES = {1: 100, 10: 100, 100: 300, 1000: 1000}
"""Facts in a call to facts in all: one at a time a hundred are as telling as a thousand."""
CHECKPOINTS = (1, 10, 100, 300, 1000)
STRENGTHS = {"memit": (5.0, 20.0, 100.0), "alphaedit": (0.2, 1.0, 5.0)}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "memit": ("memit", {}),
    "memit, adam": ("memit", ADAM),
    "alphaedit": ("alphaedit", {}),
    "alphaedit, adam": ("alphaedit", ADAM),
    "locft": ("locft", {}),
}
NEAR = gauss_newton(5)
FOR_ONE: dict[str, dict[str, Any]] = {
    "rome": {"search_in": "prompt", "layers": [0], **NEAR},
    "r-rome": {"search_in": "prompt", "layers": [0], **NEAR},
    "memit": {**CLEAN, "layers": [1, 2], **NEAR},
    "alphaedit": {**CLEAN, "layers": [0, 1, 2], **NEAR},
    "locft": {**LEARNING, "learning_rate": 1e-2, "layers": [2], "append_eos": True},
}
"""What the methods do with one fact; the strength is chosen."""
IN_SEQUENCE = ("rome", "r-rome", "memit", "alphaedit", "locft")
SETTINGS = {
    "dataset": DATASET,
    "facts": FACTS,
    "seed": SEED,
    "probes_per_kind": PROBES_PER_KIND,
    "batches": list(BATCHES.items()),
    "checkpoints": CHECKPOINTS,
    "choosing": CHOOSING,
    "strengths": STRENGTHS,
}


class Bench:
    """The model, its records and what it said before any edit."""

    def __init__(self, real: Path) -> None:
        self.model, self.text = ps.load(str(real / DATASET)), taught_text(real, DATASET)
        self.answers = {True: BaseAnswers(), False: BaseAnswers()}
        self.data = {
            for_choosing: records(real, DATASET, for_choosing=for_choosing).with_probes(PROBES_PER_KIND)
            for for_choosing in self.answers
        }

    def measure(
        self, method: str, options: dict[str, Any], labels: dict[str, Any], protocol: Any, facts: int, *, choosing: bool
    ) -> dict[str, Any]:
        """One run as a row."""
        record = ps.evaluate(
            self.model,
            editor_of(method, options, self.text),
            self.data[choosing],
            num_edits=min(facts, len(self.data[choosing].requests)),
            seed=SEED,
            protocol=protocol,
            scorings=("generate", "teacher_forced"),
            max_new_tokens=MAX_NEW_TOKENS,
            base=self.answers[choosing],
        )
        full = record.to_json()
        curve = {key: full[key] for key in ("immediate", "checkpoints") if full.get(key)}
        return {**row(record, **labels), "options": options, **curve}

    def options(self, method: str, results: Results) -> dict[str, Any]:
        """A method's options for many facts at once."""
        own = FOR_ONE[method]
        rows = []
        for strength in STRENGTHS.get(method, ()):
            labels = {"method": method, "strength": strength}
            options = {**own, "strength": strength}
            run = partial(self.measure, method, options, labels, ps.Batch(CHOOSING), CHOOSING, choosing=True)
            rows.append(results.get(labels, run))
        return dict(max(rows, key=_balance)["options"]) if rows else own


def _balance(done: dict[str, Any]) -> float:
    """How good a candidate is."""
    scores = done["scores"]["generate"]
    return balance(scores[name]["mean"] for name in ("reliability", "generality", LOCALITY[DATASET]))


def main() -> None:
    """Chooses the strengths, runs the batches, then the sequences."""
    parser = real_folder()
    parser.add_argument("--only", choices=("batch", "sequence"))
    arguments: argparse.Namespace = parser.parse_args()
    one_thread()
    bench, results = Bench(arguments.real), Results("many_real_edits", SETTINGS)
    choosing = Results("many_real_edits_choosing", SETTINGS)
    for_many = {method: bench.options(method, choosing) for method in {name for name, _ in ROWS.values()}}
    for size, facts in BATCHES.items() if arguments.only != "sequence" else ():
        for name, (method, more) in ROWS.items():
            labels = {"batch": size, "method": name}
            options = {**for_many[method], **more}
            run = partial(bench.measure, method, options, labels, ps.Batch(size), facts, choosing=False)
            results.get(labels, run)
    for method in IN_SEQUENCE if arguments.only != "batch" else ():
        labels = {"sequence": FACTS, "method": method}
        options = for_many.get(method) or FOR_ONE[method]
        run = partial(bench.measure, method, options, labels, ps.Sequential(CHECKPOINTS), FACTS, choosing=False)
        results.get(labels, run)


if __name__ == "__main__":
    main()
