"""The recipes for real facts, `bench/recipes/*.real.toml`, with the options that were chosen for these models.

    python bench/real_recipes.py

Models and records are those of `make real` (`palimpsest bench ... --root real`). A method's options are taken from the
committed results, where they were chosen on records that are not reported: single edits from `bench/real_edits.py`,
many at once from `bench/many_real_edits.py`, forgetting from `bench/f_learning_table.py`. Nothing is typed by hand, so
run this again when those results change.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from common import RESULTS
from f_learning_table import LORA, RATES, SITES, VARIANTS, options_of
from many_real_edits import IN_SEQUENCE
from palimpsest.files import write_text
from real_edits import LOCATING
from real_facts import REPORTED

FOLDER = Path(__file__).parent / "recipes"
LABELS = {"zsre": "zsRE", "counterfact": "CounterFact"}
STANDS_FOR = {"survey-table-2": "GPT-J-6B", "f-learning-table-1": "LLaMA2-7B"}
MODELS = [{"name": name, "label": f"{name} model"} for name in LABELS]
DATASETS = [
    {"name": "jsonl", "path": REPORTED.format(name), "label": label, "models": [f"{name} model"]}
    for name, label in LABELS.items()
]
COUNTERFACT = {"models": MODELS[1:], "datasets": DATASETS[1:]}
BOTH = {"models": MODELS, "datasets": DATASETS}
SHORT = {"probes_per_kind": 1, "max_new_tokens": 8, "scorings": ["generate", "teacher_forced"]}
ABOUT = """On records of CounterFact and ZsRE, and models that were taught their true answers; --root is the folder of
`make real`."""
RATES_OF_FORGETTING = (0.1, 0.3, 0.5, 0.7, 0.9)


def rows(name: str) -> list[dict[str, Any]]:
    """A committed result file's rows."""
    return list(json.loads((RESULTS / f"{name}.json").read_text())["rows"])


def entry(dataset: str, method: str, options: dict[str, Any], label: str | None = None) -> dict[str, Any]:
    """A row of a recipe for one data set's model; second moments are those of what the model was taught."""
    taken_from = {"text": f"{dataset}.txt"} if method in LOCATING else {}
    named = {} if label is None else {"label": label}
    own = {"preset": "none", "datasets": [LABELS[dataset]], "options": {**options, **taken_from}}
    return {"name": method, **named, **own}


def singles(dataset: str) -> list[dict[str, Any]]:
    """Every method with the options that were chosen for single edits."""
    return [entry(dataset, row["method"], row["options"]) for row in rows(f"real_edits_{dataset}") if "options" in row]


def many(methods: tuple[str, ...]) -> list[dict[str, Any]]:
    """Methods on CounterFact's model with the options that were chosen for many facts, else for one."""
    chosen = {one["name"]: one for one in singles("counterfact")}
    for row in rows("many_real_edits"):
        if row["method"] in chosen and row["method"] in methods:
            chosen[row["method"]] = entry("counterfact", row["method"], row["options"])
    return [chosen[name] for name in methods]


def learning_rates(dataset: str) -> dict[str, float]:
    """What `bench/f_learning_table.py` chose for each learner."""
    table = [row for row in rows(f"f_learning_table_{dataset}") if row.get("row") == "table" and row["seed"] == 0]
    return {row["method"]: row["learning_rate"] for row in table if "learning_rate" in row}


def f_learning(dataset: str) -> list[dict[str, Any]]:
    """Learning alone and after forgetting, as the paper does it."""
    rates = learning_rates(dataset)
    found = [entry(dataset, name, options_of("reported", name, rates[name])) for name in ("ft", "lora")]
    for variant, rate in RATES[dataset].items():
        _, forget, learn = VARIANTS[variant]
        learners = {
            f"{part}_options": options_of("reported", learner, rates[learner])
            for part, learner in (("forget", forget), ("learn", learn))
        }
        found.append(entry(dataset, variant, {"rate": rate, "only_mastered": False, **learners}))
    return found


def forgetting(dataset: str) -> list[dict[str, Any]]:
    """Forgetting alone, at several rates; at 0 the model is what it was."""
    rates = learning_rates(dataset)
    found = []
    for learner, variant in (("ft", "f-learning-ft"), ("lora", "f-learning-lora")):
        forget = options_of("reported", learner, rates[learner])
        for rate in ((0.0,) if learner == "ft" else ()) + RATES_OF_FORGETTING:
            # Nothing is learnt in no pass; what is adapted is named, since a learner must have something to adapt.
            nothing = {"epochs": 0, **({**LORA, "sites": SITES[learner]} if learner in SITES else {})}
            options = {"rate": rate, "only_mastered": False, "forget_options": forget, "learn_options": nothing}
            found.append(entry(dataset, variant, options, f"forgetting alone, {learner}, {rate:g}"))
    return found


def each(rows_of: Any) -> list[dict[str, Any]]:
    """The rows of both data sets."""
    return [one for dataset in LABELS for one in rows_of(dataset)]


def batches(*sizes: tuple[int, int]) -> list[dict[str, Any]]:
    """Protocols: facts in a call, and facts in all."""
    return [{"name": "batch", "batch_size": size, "num_edits": number} for size, number in sizes]


def recipes() -> dict[str, dict[str, Any]]:
    """What each recipe has beside its title and about."""
    costs = ("ft", "ft-l", "locft", "lora", "f-learning-ft", "kn", "rome", "memit", "alphaedit")
    timed = {"is_perplexity_wanted": False, "measures": ["token-time"], **SHORT, "scorings": ["generate"]}
    in_batches = ("ft", "ft-l", "locft", "memit", "emmet", "pmet", "alphaedit")
    return {
        "survey-table-2": {
            **BOTH,
            "methods": each(singles),
            "num_edits": 100,
            "max_new_tokens": 16,
            "probes_per_kind": 3,
        },
        "survey-table-4": {
            **COUNTERFACT,
            "methods": many(costs),
            "protocols": batches((1, 10), (10, 10), (100, 100)),
            **timed,
        },
        "survey-figure-6": {
            **COUNTERFACT,
            "methods": many(in_batches),
            "protocols": batches((1, 20), (10, 50), (100, 200), (1000, 1000)),
            **SHORT,
        },
        "survey-figure-7": {
            **COUNTERFACT,
            "methods": many(("ft", *IN_SEQUENCE)),
            "protocols": [{"name": "sequential", "checkpoints": [1, 10, 100, 300]}],
            "num_edits": 300,
            **SHORT,
        },
        "f-learning-table-1": {
            **BOTH,
            "methods": each(f_learning),
            "protocols": ["batch"],
            "num_edits": 1000,
            "seeds": [0, 1, 2],
            **SHORT,
        },
        "f-learning-figures": {
            **BOTH,
            "methods": each(forgetting),
            "protocols": ["batch"],
            "num_edits": 500,
            "measures": ["weight-distance"],
            **SHORT,
        },
    }


def paper(name: str) -> list[dict[str, Any]]:
    """The published figures of the `full` recipe, beside the models that stand for the paper's."""
    full = tomllib.loads((FOLDER / f"{name}.full.toml").read_text())
    models = {label: f"{dataset} model" for dataset, label in LABELS.items()}
    rows_there = [one for one in full.get("paper", []) if one["model"] == STANDS_FOR.get(name)]
    return [{**one, "model": models[one["dataset"]]} for one in rows_there]


def toml(value: Any) -> str:
    """A value as TOML has it, on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items() if one is not None) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(one) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def written(name: str, recipe: dict[str, Any]) -> str:
    """The recipe's file; title and first paragraph are those of the `world` recipe."""
    world = tomllib.loads((FOLDER / f"{name}.world.toml").read_text())
    about = world["about"].replace("On the bundled models, which know the bundled world.", "").strip()
    labels = {one.get("label", one["name"]) for one in recipe["methods"]}
    beside = [one for one in paper(name) if one["method"] in labels]
    lines = [
        "# Written by bench/real_recipes.py from the committed results; not to be changed by hand.",
        f"name = {toml(f'{name}.real')}",
        f"title = {toml(world['title'])}",
        f'about = """\n{about}\n{ABOUT}\n"""',
    ]
    for key, value in {**recipe, **({"paper": beside} if beside else {})}.items():
        if isinstance(value, list) and any(isinstance(one, dict) for one in value):
            lines.append(f"{key} = [\n" + "".join(f"  {toml(one)},\n" for one in value) + "]")
        else:
            lines.append(f"{key} = {toml(value)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes them all."""
    for name, recipe in recipes().items():
        write_text(FOLDER / f"{name}.real.toml", written(name, recipe))


if __name__ == "__main__":
    main()
