"""Generated tables of what edits are worth: single edits, batches, sequences, trained editors, forgetting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from statistics import mean

from blocks import (
    SHORT,
    Columns,
    Row,
    listed,
    measured,
    method,
    metrics,
    patch,
    percent,
    probes,
    recipe,
    rule,
    seconds,
    size,
    table,
    units,
)

SINGLE, MANY, TRAINED, ADDED = (
    f"{name}.tables" for name in ("single-edits", "many-edits", "trained-editors", "added-parameters")
)
FORGETTING, ORDER = "forgetting-before-learning.tables", ("mend", "mend for batches", "ke", "serac", "ike")
IN_BATCHES = [
    name for name in SHORT if name not in ("locality.distracting", "locality.out_of_scope", "old_answer_rate")
]
HEADINGS = {"counterfact": "CounterFact", "zsre": "ZsRE"}
LOCALITY = {"counterfact": "locality.neighborhood", "zsre": "locality.out_of_scope"}
ASKED = {
    "reliability": "edit prompts",
    "generality": "rephrasings, never read with the subject",
    "locality.neighborhood": "neighbours",
    "locality.out_of_scope": "out-of-scope questions",
    "unread phrasing": "other phrasings of the relation, never read with the subject",
}


def single_edits_summary(_argument: str) -> str:
    """The README's table: one data set, free generation."""
    found, record = units(SINGLE, model="world", dataset="world-counterfact"), recipe(SINGLE)
    names = [name for name in SHORT if name not in ("locality.distracting", "locality.out_of_scope")]
    by = "free generation with exact match" if rule(record) == "exact" else "free generation"
    caption = (
        f"{found[0]['num_edits']} single edits of test facts, {by}, percent; presets chosen on other facts. "
        f"Seconds an edit on one core of {record['hardware']['machine']}.\n\n"
    )
    return caption + listed(found, {"method": method, **metrics(names), "s / edit": seconds, "patch": patch})


def single_edits(argument: str) -> str:
    """All metrics of one data set under one scoring, with intervals; the model is the bundled decoder unless named."""
    dataset, scoring, model = [*argument.split(":"), "world"][:3]
    found = units(SINGLE, model=model, dataset=dataset)
    names = measured(found, scoring)
    caption = (
        f"`{dataset}`, `{rule(recipe(SINGLE), scoring)}`, {found[0]['num_edits']} single edits; percent with 95% "
        f"interval. Probes: {probes(found[0], names, scoring)}.\n\n"
    )
    return caption + listed(found, {"method": method, **metrics(names, scoring, with_interval=True)})


def single_edits_cost(argument: str) -> str:
    """Seconds, bytes and perplexity on one data set; the model is the bundled decoder unless named."""
    dataset, model = [*argument.split(":"), "world"][:2]
    columns: Columns = {"method": method, "s / edit": seconds, "patch": patch}
    columns["perplexity before"] = lambda row: _perplexity(row, "before")
    columns["after"] = lambda row: _perplexity(row, "after")
    return listed(units(SINGLE, model=model, dataset=dataset), columns)


def _perplexity(row: Row, when: str) -> str:
    """With two decimals, or in millions where a model has no idea of the text."""
    value = (row["perplexity"] or {}).get(when)
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 1e6 else f"{value / 1e6:.1f} million"


def batches(argument: str) -> str:
    """All methods in batches of one size, or, as in `100:distinct`, in one about as many subjects."""
    number, _, subjects = argument.partition(":")
    dataset = "distinct subjects" if subjects else "world-counterfact"
    found = units(MANY, protocol=f"batch of {number}", dataset=dataset)
    return listed(found, {"method": method, **metrics(IN_BATCHES), "s / edit": seconds})


def sequences(_argument: str) -> str:
    """Reliability right after each edit and at the end, and what is left of everything else."""
    found = [row | {"scores": row["checkpoints"][-1]["scores"]} for row in units(MANY, protocol="sequential")]
    columns: Columns = {"method": method, "right after each edit": _at_once, **metrics(IN_BATCHES)}
    return listed(found, {**columns, "perplexity": _last, "s / edit": seconds})


def batch_curves(name: str) -> str:
    """Batches of a recipe: reliability, generality, neighbours by size, and by how many subjects where told."""
    found = [row for row in units(name) if row["protocol"].startswith("batch")]
    cells = {(row["method"], row["protocol"], row["dataset"]): _triple(row["scores"]) for row in found}
    places = list(dict.fromkeys((row["protocol"], row["dataset"]) for row in found))
    titles = [
        f"{int(protocol.split()[-1]):,}" + (", shared subjects" if dataset == "shared subjects" else "")
        for protocol, dataset in places
    ]
    names = dict.fromkeys(row["method"] for row in found)
    lines = [[f"`{name}`", *(cells.get((name, *place), "-") for place in places)] for name in names]
    return table(["reliability / generality / neighbours", *titles], lines)


def sequence_curves(name: str) -> str:
    """Sequences of a recipe: all edits so far at every checkpoint, with perplexity and the norm of all changes."""
    found = [row for row in units(name) if row["protocol"].startswith("sequential")]
    columns: Columns = {"": method, "right after each edit": _at_once}
    for point in sorted({one["num_edits"] for row in found for one in row["checkpoints"]}):
        columns[f"after {point:,}"] = lambda row, point=point: _after(row, point)  # type: ignore[misc]
    last: Columns = {"perplexity": _last, "norm": lambda row: _last(row, "patch_norm", 1)}
    columns |= {title: cell for title, cell in last.items() if any(cell(row) != "-" for row in found)}
    return listed(found, {**columns, "s / edit": seconds})


def _at_once(row: Row) -> str:
    return percent(row["immediate"]["generate"]["reliability"])


def _after(row: Row, point: int) -> str:
    return next((_triple(one["scores"]) for one in row["checkpoints"] if one["num_edits"] == point), "-")


def _last(row: Row, name: str = "perplexity", digits: int = 2) -> str:
    value = row["checkpoints"][-1][name]
    return "-" if value is None else f"{value['after'] if isinstance(value, dict) else value:.{digits}f}"


def _triple(scores: Row) -> str:
    return " / ".join(f"{100 * scores['generate'][name]['mean']:.0f}" for name in list(SHORT)[:3])


def trained(argument: str) -> str:
    """Single edits of held-out facts: every metric under one scoring. Argument: model:scoring."""
    model, scoring = argument.split(":")
    found = _in_order(units(TRAINED, model=model, protocol="single"))
    names = measured(found, scoring)
    caption = (
        f"`{model}`, `{found[0]['dataset']}`, {found[0]['num_edits']} single edits of test facts, "
        f"`{rule(recipe(TRAINED), scoring)}`; percent with 95% interval; at most 2 probes of a kind for an edit. "
        f"Probes: {probes(found[0], names, scoring)}.\n\n"
    )
    return caption + listed(found, {"method": method, **metrics(names, scoring, with_interval=True)})


def trained_cost(model: str) -> str:
    """What training and editing cost, and what single edits do to ordinary text where that was measured."""
    edits = {row["method"]: row for row in units(TRAINED, model=model, protocol="single")}
    costs = recipe(TRAINED)["training"][model]
    found = _in_order([{"method": name, **cost, "edit": edits.get(name)} for name, cost in costs.items()])
    columns: Columns = {
        "method": method,
        "training, minutes": lambda row: f"{row['seconds'] / 60:.0f}",
        "step kept": lambda row: f"{row['best_step']} of {row['steps']}",
        "edits trained on": lambda row: f"{row['edits']:,}",
        "parameters": lambda row: f"{row['num_parameters']:,}",
        "editor": lambda row: size(row["bytes"]),
        "peak memory": lambda row: size(row["peak_memory_bytes"]),
        "ms / edit": lambda row: f"{1000 * row['edit']['seconds_per_edit']:.0f}" if row["edit"] else "-",
        "patch": lambda row: patch(row["edit"]) if row["edit"] else "-",
    }
    if any("perplexity" in row for row in edits.values()):
        columns["perplexity (before)"] = _median_perplexity
    return listed(found, columns)


def _median_perplexity(row: Row) -> str:
    text = (row["edit"] or {}).get("perplexity")
    return f"{text['median']:.2f} ({text['before']:.2f})" if text else "-"


def trained_many(argument: str) -> str:
    """Several edits: batches, then the sequence's checkpoints. Argument: model:method."""
    model, name = argument.split(":")
    points: list[Row] = []
    for row in units(TRAINED, model=model, method=name):
        if row["protocol"] == "sequential":
            points += [{**one, "way": f"after {one['num_edits']} in sequence"} for one in row["checkpoints"]]
        else:
            points.append({**row, "way": row["protocol"].replace("batch of", "batches of")})
    return listed(points, {"": lambda row: str(row["way"]), **metrics(measured(points, "generate"))})


def _in_order(found: list[Row]) -> list[Row]:
    return sorted(found, key=lambda row: ORDER.index(row["method"]))


def added_parameters(model: str) -> str:
    """Sequences at each checkpoint, and batches; the model is the bundled decoder unless named."""
    lines = []
    for row in sorted(units(ADDED, model=model or "world"), key=lambda row: (row["protocol"], row["method"])):
        is_batch = row["protocol"] != "sequential"
        for point in [row] if is_batch else row["checkpoints"]:
            is_last = is_batch or point is row["checkpoints"][-1]
            cells = [percent(point["scores"]["generate"].get(name)) for name in SHORT]
            cost = [seconds(row), f"{row['patch_bytes'] // 4:,} ({patch(row)})"] if is_last else ["", ""]
            way = "in one batch" if is_batch else "in sequence"
            at_once = _at_once(row) if is_last and not is_batch else "-"
            lines.append([method(row), way, f"{point['num_edits']:,}", at_once, *cells, *cost])
    kept = [SHORT[name] for name in SHORT if name != "reliability"]
    caption = (
        f"`world-counterfact`, `{rule(recipe(ADDED))}`, percent; every edit is asked again, with at most 1 question of "
        "each kind for an edit in a sequence and 3 in a batch.\n\n"
    )
    header = ["method", "", "edits", "reliability at once", "at the end", *kept, "s / edit", "added"]
    return caption + table(header, lines)


def forgetting(argument: str) -> str:
    """Rates by passes for one variant: means over seeds, with the range of the seeds."""
    variant, metric = argument.split(":")
    cells: dict[tuple[float, int], list[float]] = {}
    for row, (rate, passes) in swept(variant):
        cells.setdefault((rate, passes), []).append(100 * row["scores"]["generate"][metric]["mean"])
    epochs = sorted({passes for _, passes in cells})
    lines = [
        [
            "0 (learning alone)" if rate == 0 else f"{rate:g}",
            *(
                f"{mean(values):.0f} ({min(values):.0f}-{max(values):.0f})" if values else ""
                for values in (cells.get((rate, passes)) for passes in epochs)
            ),
        ]
        for rate in sorted({rate for rate, _ in cells})
    ]
    return table(["rate", *(f"{count} pass{'es' if count > 1 else ''}" for count in epochs)], lines)


def swept(variant: str) -> Iterator[tuple[Row, tuple[float, int]]]:
    """The units of a variant of F-Learning with their rates of forgetting and passes of learning."""
    for row in units(FORGETTING):
        name, rate, passes = row["method"].split(",")[0], row["swept"]["rate"], row["swept"]["learn_options.epochs"]
        # Without forgetting, LoRA then FT is FT.
        if name == ("f-learning-ft" if rate == 0 and variant == "f-learning-lora-ft" else variant):
            yield row, (rate, passes)


def ceilings(_argument: str) -> str:
    """What the models know of everything they were taught."""
    lines = []
    for title in HEADINGS.values():
        row = recipe("single-edits.real")["known"][title]["all true facts"]
        for kind, known in row["known"].items():
            shares = [f"{100 * known[scoring]:.1f}" for scoring in ("generate", "teacher_forced")]
            lines.append([f"{title}, {row['num_facts']:,} facts", ASKED[kind], f"{known['n']:,}", *shares])
    return table(["", "asked", "n", "generation", "teacher-forced"], lines)


def real_edits(argument: str) -> str:
    """Single edits of one data set under one scoring, the ceiling first."""
    dataset, scoring = argument.split(":")
    record, title = recipe("single-edits.real"), HEADINGS[dataset]
    found = units("single-edits.real", dataset=title)
    names = ["reliability", "generality", LOCALITY[dataset]]
    columns: Columns = {"method": method, **metrics(names, scoring, with_interval=True)}
    columns |= {**metrics(["old_answer_rate"], scoring), "s / edit": seconds, "patch": patch}
    known = record["known"][title]["true facts"]["known"]
    ceiling = [
        "true facts, unedited model",
        *(f"{100 * known[name].get(scoring, 0):.0f}" for name in names),
        "",
        "",
        "",
    ]
    lines = [[cell(row) for cell in columns.values()] for row in found]
    caption = (
        f"{title}, {found[0]['num_edits']} single edits, `{rule(record, scoring)}`, percent with 95% interval.\n\n"
    )
    return caption + table(list(columns), [*([ceiling] if scoring != "log_prob" else []), *lines])


def real_options(dataset: str) -> str:
    """The options that were chosen for single edits of a data set."""
    title = HEADINGS[dataset]
    chosen: Columns = {title: method, "options": lambda row: _options(row["choice"]["chosen"])}
    return listed(units("single-edits.real", dataset=title), chosen)


def _options(options: Row) -> str:
    """Options as the command line takes them; those of a learner in brackets."""
    parts = []
    for name, value in options.items():
        text = f"({_options(value)})" if isinstance(value, dict) else f"`{json.dumps(value)}`"
        parts.append(f"{name} {text}")
    return ", ".join(parts)


def shared_subjects(scoring: str) -> str:
    """A batch of a hundred facts, most of which share their subject, with one vector per subject or per key."""
    found = units("shared-subjects.tables")
    return listed(found, {"method, `targets.joint_by`": method, **metrics(measured(found, scoring), scoring)})
