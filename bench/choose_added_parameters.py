"""Chooses the presets of methods that add parameters or memories, on facts that are not reported anywhere else.

    python bench/choose_added_parameters.py                     goes on where it was stopped
    python bench/choose_added_parameters.py --model world-t5 --methods "t-patcher;grace"

Every candidate edits the same 100 facts of the training split (20 for WISE's margins, 100 again for its shards) in one
call, in which these methods edit one after the other, or all at once. The best one has the largest harmonic mean of
reliability, generality, neighbours, namesakes and other relations of the same subject kept, by free generation; for
GRACE, which is made to leave everything else alone, among those that keep 99% of each kind. Results:
`bench/results/choose_added_parameters.json` (or `choose_added_parameters_world_t5.json`); the presets quote it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import palimpsest as ps
from choose_presets import harmonic_mean
from common import Results, one_thread, recipe_parser, results_name, row
from palimpsest.evaluation import BaseAnswers

NUM_EDITS, SEED, PROBES_PER_KIND = 100, 7, 2
METHODS = ("t-patcher", "grace", "wise", "wise, shards", "calinet")
FEWER_EDITS = {"wise": 20}
KEPT = {"grace": 0.99}
SHORT = {"first_check": 20, "check_every": 10, "learning_rate": 0.03}
MEMORIES = {
    "world": {"text": "world", "max_tokens": 40_000, "top": 1000},
    "world-t5": {"text": "world-counterfact", "max_tokens": 8000, "top": 200},
}


def t_patcher_candidates(bundled: str) -> Iterator[dict[str, Any]]:
    """Margins and weights of the memory, what the neurons compute, and the pace of training."""
    memory = MEMORIES[bundled]
    strict = {"margin_low": -3.0, "margin_own": 3.0, "memory_weight": 10.0}
    loose = {"margin_low": 0.0, "margin_own": 0.0, "memory_weight": 1.0}
    functions = ("relu", "auto") if bundled == "world" else ("auto",)
    for activation, margins in (
        (functions[0], strict),
        (functions[0], loose),
        *((one, strict) for one in functions[1:]),
    ):
        yield {**SHORT, "memory": memory, "activation": activation, **margins}
    if bundled == "world-t5":
        # At the published pace, and with the loudest places alone.
        yield {"memory": memory, "activation": "auto", **strict}
        yield {"memory": {**memory, "top": 20}, "activation": "auto", **strict}


def grace_candidates(bundled: str) -> Iterator[dict[str, Any]]:
    """Layers, with radii between the distances of rephrasings and those of neighbours and other relations."""
    radii = {
        "world": {3: (4.0, 5.5), 4: (6.0, 8.0), 5: (16.0, 20.0, 25.0, 30.0)},
        "world-t5": {0: (0.5, 1.0, 1.5, 2.0), 1: (0.3, 0.5), 2: (0.3, 0.5)},
    }
    for layer, of_layer in radii[bundled].items():
        for radius in of_layer:
            yield {"layer": layer, "radius": radius, "steps": 60, "stop_loss": 0.05}


def calinet_candidates(bundled: str) -> Iterator[dict[str, Any]]:
    """Step sizes, and how much the slots are held down on ordinary text."""
    for learning_rate in (0.01, 0.003):
        for memory_weight in (0.0, 1.0, 3.0, 10.0):
            yield {
                "learning_rate": learning_rate,
                "steps": 1000,
                "stop_loss": 0.02,
                "memory_weight": memory_weight,
                "memory": MEMORIES[bundled],
            }


def wise_candidates(_bundled: str) -> Iterator[dict[str, Any]]:
    """The published margins on several layers; then one bound alone, as large as suits what this model writes."""
    none, few = {"given": []}, {"starts": ["I", "The"], "lengths": [5], "top_k": 1}
    short = {"text": "world-counterfact", "steps": 40, "rows_outside": 8}
    for layer, share in ((2, 0.3), (3, 0.3), (3, 0.5), (4, 0.5)):
        yield {**short, "layer": layer, "threshold_share": share, "contexts": none}
    loose = {"text": "world", "steps": 40, "rows_outside": 4, "beta": 0.0, "gamma": 0.0, "stop_change": 1.0}
    for layer, alpha, share, mask_ratio, contexts in (
        (4, 60.0, 0.5, 0.2, none),
        (4, 60.0, 0.5, 0.5, none),
        (4, 40.0, 0.5, 0.5, none),
        (4, 60.0, 0.7, 0.5, none),
        (3, 40.0, 0.5, 0.5, none),
        (4, 60.0, 0.5, 0.5, few),
    ):
        chosen = {"layer": layer, "alpha": alpha, "threshold_share": share, "mask_ratio": mask_ratio}
        yield {**loose, **chosen, "contexts": contexts}


def shard_candidates(_bundled: str) -> Iterator[dict[str, Any]]:
    """The best of those, with fewer edits a shard: the matrix has 160 times fewer entries than those of the paper."""
    best = {"text": "world", "steps": 40, "rows_outside": 4, "beta": 0.0, "gamma": 0.0, "stop_change": 1.0, "layer": 3}
    best |= {"alpha": 40.0, "threshold_share": 0.5, "contexts": {"given": []}}
    for edits_per_shard, shards_per_merge, mask_ratio in ((10, 1, 0.5), (5, 2, 0.2), (5, 1, 0.5)):
        shards = {"edits_per_shard": edits_per_shard, "shards_per_merge": shards_per_merge, "mask_ratio": mask_ratio}
        yield {**best, **shards}


CANDIDATES = {
    "t-patcher": t_patcher_candidates,
    "grace": grace_candidates,
    "wise": wise_candidates,
    "wise, shards": shard_candidates,
    "calinet": calinet_candidates,
}


def measured(model: ps.EditableModel, data: ps.Dataset, answers: BaseAnswers, labels: dict[str, Any]) -> dict[str, Any]:
    """One candidate."""
    editor = ps.method(labels["method"].split(",")[0], preset="none", **labels["options"])
    record = ps.evaluate(
        model,
        editor,
        data,
        num_edits=FEWER_EDITS.get(labels["method"], NUM_EDITS),
        seed=SEED,
        protocol=ps.Batch(),
        scorings=("generate",),
        neutral_text=(),
        base=answers,
    )
    full = row(record, **labels)
    means = {key: value["mean"] for key, value in full["scores"]["generate"].items()}
    cost = {key: full[key] for key in ("seconds_per_edit", "patch_bytes")}
    return {**labels, "score": harmonic_mean(full["scores"]), "means": means, **cost}


def _kept(done: dict[str, Any]) -> float:
    """The smallest share of what had to stay, of any kind."""
    return min(mean for kind, mean in done["means"].items() if kind.startswith("locality."))


def main() -> None:
    """Runs the candidates of the chosen methods and names the best of each."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--methods", default=";".join(METHODS), metavar="NAME;NAME")
    options = parser.parse_args()
    one_thread()
    model, answers = ps.load(options.model), BaseAnswers()
    data = ps.dataset("world-counterfact", split="train").with_probes(PROBES_PER_KIND)
    settings = {"model": options.model, "dataset": "world-counterfact", "split": "train", "num_edits": NUM_EDITS}
    results = Results(
        results_name("choose_added_parameters", options.model),
        {**settings, "seed": SEED, "probes_per_kind": PROBES_PER_KIND},
    )
    for name in options.methods.split(";"):
        for candidate in CANDIDATES[name](options.model):
            labels = {"method": name, "options": candidate}
            results.get(labels, partial(measured, model, data, answers, labels))
    for name in dict.fromkeys(done["method"] for done in results.rows):
        rows = [done for done in results.rows if done["method"] == name]
        best = max(
            [done for done in rows if _kept(done) >= KEPT.get(name, 0.0)] or rows, key=lambda done: done["score"]
        )
        print(f"{name:10} {best['score']:.3f} {best['options']}  {best['means']}")


if __name__ == "__main__":
    main()
