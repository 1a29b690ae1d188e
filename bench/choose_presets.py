"""Chooses the options of the presets for a bundled model, on facts that are not reported anywhere else.

    python bench/choose_presets.py                       about fifteen minutes on one core
    python bench/choose_presets.py --model world-t5

Every candidate edits the same 20 facts of the training split, one at a time. The best one has the largest harmonic mean
of reliability, generality, neighbours kept, namesakes kept and other relations of the same subject kept, by free
generation. Differences under 0.005 are noise: of such ties the smallest rate of forgetting wins, then the fastest. The
result is `bench/results/choose_presets.json` (or `choose_presets_world_t5.json`); the presets quote it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import palimpsest as ps
from common import Results, balance, one_thread, recipe_parser, results_name, row
from palimpsest.evaluation import BaseAnswers

NUM_EDITS, SEED = 20, 7
SETTINGS = {"dataset": "world-counterfact", "split": "train", "num_edits": NUM_EDITS, "seed": SEED}
TIE = 0.005
CRITERIA = ("reliability", "generality", "locality.neighborhood", "locality.namesake", "locality.other_relation")

ALL_LINEAR = ["attn.q", "attn.v", "mlp.up", "mlp.down"]
PROJECTIONS = [
    *(f"encoder.{site}" for site in (*ALL_LINEAR, "attn.k", "attn.out")),
    *(f"decoder.{site}" for site in (*ALL_LINEAR, "attn.k", "attn.out", "cross.q", "cross.k", "cross.v", "cross.out")),
]
# In front of a prompt, so that knowledge neurons are those that do not depend on what precedes it.
PREFIXES = [
    "The capital of Spain is Madrid.",
    "The currency of Japan is the yen.",
    "Who wrote Hamlet? William Shakespeare.",
]
LEARN = {"epochs": 60, "stop_loss": 0.02}


def grid(**axes: list[Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the values of several options."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def decoder_candidates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Method names with the options to try on the decoder."""
    for options in grid(learning_rate=[3e-4, 5e-4, 1e-3], stop_loss=[0.05, 0.02, 0.01]):
        yield "ft", {**LEARN, **options}
    for options in grid(learning_rate=[2e-3, 5e-3], layers=[[0], [1], [2]], radius=[0.02, 0.05]):
        yield "ft-l", {**LEARN, **options}  # beyond 0.1 no entry is ever clamped, and it would not be this method
    for options in grid(learning_rate=[2e-3, 5e-3], layers=[[0], [1], [2], [3]]):
        yield "locft", {**LEARN, **options, "append_eos": True}
    for options in grid(threshold=[0.1, 0.2, 0.3], new_weight=[2.0, 4.0, 8.0]):
        yield "kn", options
    for options in grid(threshold=[0.2, 0.3], new_weight=[1.0, 2.0, 4.0], prefixes=[PREFIXES]):
        yield "kn", options
    for options in grid(
        learning_rate=[5e-4, 1e-3, 3e-3], sites=[["attn.q", "attn.v"], ALL_LINEAR], stop_loss=[0.02, 0.01]
    ):
        yield "lora", {**LEARN, **options}


def encoder_decoder_candidates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Method names with the options to try on the encoder-decoder, in which far fewer weights move."""
    matrices = [("encoder.mlp.down", [0]), ("encoder.mlp.down", [1]), ("encoder.mlp.down", [2]), ("mlp.down", [2])]
    places = [{"parameters": site, "layers": layers} for site, layers in matrices]
    for options in grid(learning_rate=[1e-4, 2e-4, 3e-4], stop_loss=[0.05, 0.02]):
        yield "ft", {**LEARN, **options}
    for place, options in itertools.product(places, grid(learning_rate=[2e-3, 5e-3], radius=[0.02, 0.05, 0.1])):
        yield "ft-l", {**LEARN, **place, **options}
    for place, options in itertools.product(places, grid(learning_rate=[2e-3, 5e-3])):
        yield "locft", {**LEARN, **place, **options, "append_eos": True}
    for options in grid(threshold=[0.1, 0.2, 0.3], new_weight=[2.0, 8.0]):
        yield "kn", options
    for options in grid(learning_rate=[5e-4, 1e-3, 2e-3], sites=["auto", PROJECTIONS]):
        yield "lora", {**LEARN, **options}


CANDIDATES = {"world": decoder_candidates, "world-t5": encoder_decoder_candidates}


def forgetting_candidates(best: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """F-Learning's rates and lengths of forgetting, with the learners that were chosen before."""
    for name, forget, learn, rates in (
        ("f-learning-ft", "ft", "ft", [0.3, 1.0, 3.0]),
        ("f-learning-lora", "lora", "lora", [0.3, 1.0, 3.0]),
        ("f-learning-lora-ft", "lora", "ft", [0.3, 1.0, 3.0]),
    ):
        # Known facts have next to no loss, so a threshold would stop forgetting before it began.
        without_stop = {key: value for key, value in best[forget].items() if key not in ("stop_loss", "epochs")}
        for rate, epochs in itertools.product(rates, [1, 3]):
            yield (
                name,
                {
                    "rate": rate,
                    "forget_options": {**without_stop, "epochs": epochs, "stop_loss": 0.0},
                    "learn_options": best[learn],
                },
            )


def harmonic_mean(scores: dict[str, Any]) -> float:
    """Harmonic mean of the criteria; zero when one of them is."""
    return balance(scores["generate"][name]["mean"] for name in CRITERIA)


def main() -> None:
    """Runs every candidate and names the best of each method."""
    bundled = str(recipe_parser(__doc__).parse_args().model)
    one_thread()
    model = ps.load(bundled)
    data = ps.dataset("world-counterfact", split="train")
    answers = BaseAnswers()
    results = Results(results_name("choose_presets", bundled), {"model": bundled, **SETTINGS})
    best: dict[str, dict[str, Any]] = {}

    def run(name: str, options: dict[str, Any]) -> None:
        labels = {"method": name, "options": options}

        def compute() -> dict[str, Any]:
            editor = ps.method(name, preset="none", **options)
            record = ps.evaluate(
                model,
                editor,
                data,
                num_edits=NUM_EDITS,
                seed=SEED,
                scorings=("generate",),
                neutral_text=(),
                base=answers,
            )
            full = row(record, **labels)
            means = {key: value["mean"] for key, value in full["scores"]["generate"].items()}
            return {
                **labels,
                "score": harmonic_mean(full["scores"]),
                "means": means,
                "seconds_per_edit": full["seconds_per_edit"],
            }

        results.get(labels, compute)

    def choose() -> None:
        for name in {done["method"] for done in results.rows}:
            rows = [done for done in results.rows if done["method"] == name]
            top = max(done["score"] for done in rows)
            tied = [done for done in rows if done["score"] > top - TIE]
            best[name] = min(tied, key=lambda r: (r["options"].get("rate", 0), r["seconds_per_edit"]))["options"]

    for name, options in CANDIDATES[bundled]():
        run(name, options)
    choose()
    for name, options in forgetting_candidates(best):
        run(name, options)
    choose()
    for name, options in sorted(best.items()):
        top = next(r for r in results.rows if r["method"] == name and r["options"] == options)
        print(f"{name:20} {top['score']:.3f}  {options}  " + " ".join(f"{top['means'][c]:.2f}" for c in CRITERIA))


if __name__ == "__main__":
    main()
