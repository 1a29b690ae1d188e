"""Every method on single edits of real facts, on models that know these facts; what they know is the ceiling.

    python bench/real_edits.py --real real        about half an hour on one idle core; goes on where it was stopped

`real` is what `make real` makes (see `bench/real_facts.py`). The options of every method are chosen first, on records
that are not reported: the largest harmonic mean of reliability, generality and locality by free generation; differences
under 0.005 are noise, of such ties the smallest rate of forgetting wins, then the fastest. Locate-then-edit methods
take their second moments from what the model was taught, as they take them from Wikipedia for models that have read it.
Results: `bench/results/real_edits_*.json`, the candidates in `bench/results/real_edits_choosing_*.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import palimpsest as ps
from choose_batch_presets import gauss_newton
from choose_presets import ALL_LINEAR, LEARN, TIE, grid
from common import Results, balance, one_thread, row
from palimpsest.datasets import load_edits
from palimpsest.evaluation import BaseAnswers
from palimpsest.files import write_text
from palimpsest.teaching.ceiling import ceiling
from palimpsest.teaching.facts import FactQuestion, lessons, questions
from real_facts import FILES, LOCALITY, PHRASINGS, real_folder, records

NUM_EDITS, SEED = 200, 0
NUM_CHOOSING, CHOOSING_SEED = 20, 7
# Fewer passes than for the world: what has not learned a fact in 25 passes is no setting to choose.
LEARNING = {**LEARN, "epochs": 25}
SETTINGS = {"protocol": "single", "num_edits": NUM_EDITS, "seed": SEED, "max_new_tokens": 16}
LEARNERS = {"f-learning-ft": ("ft", "ft"), "f-learning-lora": ("lora", "lora"), "f-learning-lora-ft": ("lora", "ft")}
LOCATING = ("rome", "r-rome", "memit", "emmet", "pmet", "alphaedit")
METHODS = ("ft", "ft-l", "locft", "lora", *LEARNERS, "kn", *LOCATING)
CLEAN = {"search_in": "prompt", "pooling": "columns"}


def candidates(method: str, chosen: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The options to try for a method; F-Learning takes the learners that were chosen before."""
    if method == "ft":
        yield from ({**LEARNING, **options} for options in grid(learning_rate=[5e-4, 1e-3], stop_loss=[0.05, 0.02]))
    elif method == "ft-l":
        for options in grid(learning_rate=[5e-3], layers=[[0], [1]], radius=[0.05, 0.1]):
            yield {**LEARNING, **options}
    elif method == "locft":
        for options in grid(learning_rate=[5e-3, 1e-2], layers=[[0], [1], [2]]):
            yield {**LEARNING, **options, "append_eos": True}
    elif method == "lora":
        for options in grid(learning_rate=[1e-3, 3e-3], stop_loss=[0.05, 0.02]):
            yield {**LEARNING, **options, "sites": ALL_LINEAR}
    elif method == "kn":
        for options in grid(threshold=[0.1, 0.2], new_weight=[2.0, 5.0], share=[0.7]):
            yield options
    elif method in ("rome", "r-rome"):
        for options in grid(layers=[[0], [1], [2]], log_odds=[4, 5, 8]):
            yield {"search_in": "prompt", "layers": options["layers"], **gauss_newton(options["log_odds"])}
    elif method == "emmet":
        for options in grid(layers=[[0], [1], [2]], strength=[20, 100], log_odds=[5, 8]):
            yield {**CLEAN, **_aimed(options)}
    elif method in LOCATING:
        strengths = [1, 5] if method == "alphaedit" else [20, 100]
        for options in grid(layers=[[0, 1], [1, 2], [0, 1, 2]], strength=strengths, log_odds=[5, 8]):
            yield {**CLEAN, **_aimed(options)}
    else:
        forget, learn = LEARNERS[method]
        # Known facts have next to no loss, so a threshold would stop forgetting before it began.
        without_stop = {key: value for key, value in chosen[forget].items() if key not in ("stop_loss", "epochs")}
        for options in grid(rate=[0.3, 1.0], epochs=[1, 3]):
            yield {
                "rate": options["rate"],
                "forget_options": {**without_stop, "epochs": options["epochs"], "stop_loss": 0.0},
                "learn_options": chosen[learn],
            }


def _aimed(options: dict[str, Any]) -> dict[str, Any]:
    """The options with `log_odds` as the search has it, the rest as it is."""
    return {name: value for name, value in options.items() if name != "log_odds"} | gauss_newton(options["log_odds"])


def editor_of(method: str, options: dict[str, Any], text: Path) -> ps.Method[Any]:
    """The method with these options; where it needs a text, with that one."""
    taken_from = {"text": str(text)} if method in LOCATING else {}
    return ps.method(method, preset="none", **options, **taken_from)


def taught_text(real: Path, dataset: str) -> Path:
    """A file with every sentence that a data set's model was taught, one a line; written where it is not there."""
    file = real / f"{dataset}.txt"
    if not file.exists():
        taught = lessons(load_edits(real / f"{dataset}.jsonl").requests, phrasings=PHRASINGS[dataset])
        write_text(file, "".join(f"{sentence.text}\n" for sentence in taught.sentences))
    return file


def tried(
    model: ps.EditableModel,
    data: ps.Dataset,
    answers: BaseAnswers,
    labels: dict[str, Any],
    criteria: tuple[str, ...],
    text: Path,
) -> dict[str, Any]:
    """One candidate on the records for choosing."""
    record = ps.evaluate(
        model,
        editor_of(labels["method"], labels["options"], text),
        data,
        num_edits=NUM_CHOOSING,
        seed=CHOOSING_SEED,
        scorings=("generate",),
        max_new_tokens=16,
        base=answers,
    )
    full = row(record, **labels)
    means = {name: full["scores"]["generate"].get(name, {}).get("mean") for name in criteria}
    return {**labels, "score": balance(means.values()), "means": means, "seconds_per_edit": full["seconds_per_edit"]}


def choose(results: Results, model: ps.EditableModel, dataset: str, real: Path) -> dict[str, dict[str, Any]]:
    """The options of every method for one data set's model."""
    data, answers = records(real, dataset, for_choosing=True), BaseAnswers()
    criteria, text = ("reliability", "generality", LOCALITY[dataset]), taught_text(real, dataset)
    chosen: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        rows = []
        for options in candidates(method, chosen):
            labels = {"dataset": dataset, "method": method, "options": options}
            rows.append(results.get(labels, partial(tried, model, data, answers, labels, criteria, text)))
        top = max(done["score"] for done in rows)
        tied = [done for done in rows if done["score"] > top - TIE]
        best = min(tied, key=lambda done: (done["options"].get("rate", 0), done["seconds_per_edit"]))
        chosen[method] = best["options"]
    return chosen


def measured(
    model: ps.EditableModel,
    data: ps.Dataset,
    answers: BaseAnswers,
    labels: dict[str, Any],
    options: dict[str, Any],
    text: Path,
) -> dict[str, Any]:
    """One method on the reported records."""
    editor = editor_of(labels["method"], options, text)
    record = ps.evaluate(model, editor, data, num_edits=NUM_EDITS, seed=SEED, max_new_tokens=16, base=answers)
    return {**row(record, **labels), "options": options}


def true_facts(model: ps.EditableModel, asked: Iterable[FactQuestion], labels: dict[str, Any]) -> dict[str, Any]:
    """What the model knows before it is edited."""
    known = ceiling(model, list(dict.fromkeys(asked)))
    return {**labels, "known": {kind: asdict(one) for kind, one in known.items()}}


def main() -> None:
    """Chooses, then measures, on both data sets, or on the one that is named."""
    parser = real_folder()
    parser.add_argument("--dataset", choices=FILES, help="only this one")
    options = parser.parse_args()
    one_thread()
    for dataset in [options.dataset] if options.dataset else FILES:
        model = ps.load(str(options.real / dataset))
        settings = {"num_edits": NUM_CHOOSING, "seed": CHOOSING_SEED}
        chosen = choose(Results(f"real_edits_choosing_{dataset}", settings), model, dataset, options.real)
        data, answers = records(options.real, dataset, for_choosing=False), BaseAnswers()
        results = Results(f"real_edits_{dataset}", SETTINGS)
        labels = {"dataset": dataset, "method": "true facts"}
        edited = data.sample(NUM_EDITS, SEED).requests
        results.get(labels, partial(true_facts, model, questions(edited), labels))
        for method in METHODS:
            labels = {"dataset": dataset, "method": method}
            text = taught_text(options.real, dataset)
            results.get(labels, partial(measured, model, data, answers, labels, chosen[method], text))
        taught = lessons(load_edits(options.real / f"{dataset}.jsonl").requests, phrasings=PHRASINGS[dataset])
        labels = {"dataset": dataset, "method": "all true facts", "num_facts": taught.num_facts}
        results.get(labels, partial(true_facts, model, taught.questions, labels))


if __name__ == "__main__":
    main()
