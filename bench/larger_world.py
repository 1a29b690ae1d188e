"""A thousand edits on a world of ten thousand facts: batches and sequences, both searches, as curves.

    palimpsest world train --people 1600 --epochs 5 --out larger-world       over half an hour on one idle core
    python bench/larger_world.py --model larger-world       about two hours on one core; goes on where it was stopped

Layers and strengths are chosen first, on one batch of facts about other subjects than the reported ones: the largest
harmonic mean of reliability, generality and neighbours kept; all else is as in the presets of the bundled model, and
second moments are taken from what the larger model was taught. In batches every fact has a subject of its own, but for
one batch of a thousand facts of the test split, about some 390 people. A batch is one call and the model is restored
after it; smaller batches share the first facts. In a sequence every edit stays, and all so far are asked again at the
checkpoints. `adam` marks the published search. Results: `bench/results/larger_world.json`, the candidates in
`bench/results/larger_world_choosing.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import palimpsest as ps
from choose_presets import grid
from common import Results, balance, one_thread, row
from many_edits import ADAM, one_a_subject
from palimpsest.datasets import load_edits
from palimpsest.evaluation import BaseAnswers
from palimpsest.files import write_text
from palimpsest.world import build, counterfact
from palimpsest.world.text import neutral_text, training_sentences

PEOPLE, FACTS, SEED, PROBES_PER_KIND, MAX_NEW_TOKENS, NEUTRAL_SENTENCES = 1600, 1000, 0, 1, 8, 64
BATCHES = {1: 100, 10: 100, 100: 300, 1000: 1000}
"""Facts in a call to facts in all: one at a time a hundred are as telling as a thousand."""
CHECKPOINTS = (1, 10, 100, 300, 1000)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "memit": ("memit", {}),
    "alphaedit": ("alphaedit", {}),
    "memit, adam": ("memit", ADAM),
    "alphaedit, adam": ("alphaedit", ADAM),
    "emmet": ("emmet", {}),
    "pmet": ("pmet", {}),
    "locft": ("locft", {}),
}
CURVES = ("memit", "alphaedit", "memit, adam", "alphaedit, adam", "locft")
"""What is measured at every size; the others at a thousand alone."""
IN_SEQUENCE = ("rome", "r-rome", "memit", "alphaedit", "locft")
CHOOSING, CRITERIA = 200, ("reliability", "generality", "locality.neighborhood")
LAYERS = [[1, 2], [2, 3], [3], [3, 4], [2, 3, 4]]
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "rome": list(grid(layers=[[1], [2], [3]])),
    "memit": list(grid(layers=LAYERS, strength=[100, 300, 1000])),
    "alphaedit": list(grid(layers=LAYERS, strength=[5, 50])),
    "locft": list(grid(layers=[[1], [2], [3]])),
}
AS = {"r-rome": "rome", "emmet": "memit", "pmet": "memit"}
"""Methods that take another's options."""
WITHOUT_STATISTICS = ("locft",)
SETTINGS = {
    "people": PEOPLE,
    "facts": FACTS,
    "seed": SEED,
    "probes_per_kind": PROBES_PER_KIND,
    "batches": list(BATCHES.items()),
    "checkpoints": CHECKPOINTS,
    "choosing": CHOOSING,
    "rows": {name: options for name, (_, options) in ROWS.items()},
}


class Bench:
    """The larger world: its model, its facts and what the model said before any edit."""

    def __init__(self, folder: Path) -> None:
        knowledge = build(SEED, people=PEOPLE)
        self.model, self.text = ps.load(str(folder)), folder / "taught.txt"
        if not self.text.exists():
            write_text(self.text, "".join(f"{sentence.text}\n" for sentence in training_sentences(knowledge)))
        splits = {split: self._facts(knowledge, folder, split) for split in ("test", "train")}
        both = replace(splits["test"], requests=splits["test"].requests + splits["train"].requests)
        distinct = one_a_subject(both)
        others = distinct.requests[FACTS : FACTS + CHOOSING]
        self.data = {
            "distinct": replace(distinct, requests=distinct.requests[:FACTS]),
            "shared": replace(splits["test"], neutral_text=tuple(neutral_text(knowledge, NEUTRAL_SENTENCES))),
            "others": replace(distinct, requests=others),
        }
        self.answers = {subjects: BaseAnswers() for subjects in self.data}

    def _facts(self, knowledge: Any, folder: Path, split: str) -> ps.Dataset:
        file = folder / f"counterfact-{split}.json"
        if not file.exists():
            write_text(file, json.dumps(counterfact(knowledge, split=split)))
        data = load_edits(file).with_probes(PROBES_PER_KIND)
        return replace(data, requests=tuple(replace(one, id=f"{split}-{one.id}") for one in data.requests))

    def chosen(self, method: str, choosing: Results) -> dict[str, Any]:
        """The options of a method, from its candidates or those of the method it follows."""
        method = AS.get(method, method)
        rows = []
        for options in CANDIDATES[method]:
            labels = {"subjects": "others", "method": method, "options": options}
            # ROME and LocFT take one fact at a time; a batch says little about them.
            size = CHOOSING if method in ("memit", "alphaedit") else 1
            facts = CHOOSING if size > 1 else CHOOSING // 4
            rows.append(choosing.get(labels, partial(self.measure, labels, options, ps.Batch(size), facts)))
        return dict(max(rows, key=_balance)["options"])

    def measure(self, labels: dict[str, Any], options: dict[str, Any], protocol: Any, facts: int) -> dict[str, Any]:
        """One run as a row."""
        method, more = ROWS.get(labels["method"], (labels["method"], {}))
        own = {} if method in WITHOUT_STATISTICS else {"text": str(self.text)}
        record = ps.evaluate(
            self.model,
            ps.method(method, **options, **more, **own),
            self.data[labels["subjects"]],
            num_edits=facts,
            seed=SEED,
            protocol=protocol,
            scorings=("generate",),
            max_new_tokens=MAX_NEW_TOKENS,
            base=self.answers[labels["subjects"]],
        )
        full = record.to_json()
        curve = {key: full[key] for key in ("immediate", "checkpoints") if full.get(key)}
        return {**row(record, **labels), "options": options, **curve}


def _balance(done: dict[str, Any]) -> float:
    """How good a candidate is."""
    scores = done["scores"]["generate"]
    return balance(scores.get(name, {}).get("mean") for name in CRITERIA)


def plan() -> Iterator[tuple[dict[str, Any], Any, int]]:
    """What is measured, with its protocol and number of facts: the quick things first."""
    for method in IN_SEQUENCE:
        yield {"sequence": FACTS, "subjects": "shared", "method": method}, ps.Sequential(CHECKPOINTS), FACTS
    for name in ("memit", "alphaedit"):
        yield {"batch": FACTS, "subjects": "shared", "method": name}, ps.Batch(FACTS), FACTS
    for name in sorted(ROWS, key=lambda name: "adam" in name):
        for size, facts in BATCHES.items() if name in CURVES else ((FACTS, FACTS),):
            yield {"batch": size, "subjects": "distinct", "method": name}, ps.Batch(size), facts


def main() -> None:
    """Measures what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("larger-world"), help="where `world train` wrote it")
    folder = parser.parse_args().model
    one_thread()
    bench, results = Bench(folder), Results("larger_world", SETTINGS)
    results.get({"what": "model"}, lambda: {"what": "model", **json.loads((folder / "card.json").read_text())})
    choosing = Results("larger_world_choosing", {**SETTINGS, "candidates": CANDIDATES})
    for labels, protocol, facts in plan():
        method, _ = ROWS.get(labels["method"], (labels["method"], {}))
        options = bench.chosen(method, choosing)
        results.get(labels, partial(bench.measure, labels, options, protocol, facts))


if __name__ == "__main__":
    main()
