"""Generated tables of pretrained models: single edits by default options, and batches with and without forgetting."""

from __future__ import annotations

from blocks import Columns, Row, listed, method, patch, percent, recipe, seconds, units

SINGLE, TABLE_1 = "single-edits.pretrained", "f-learning-table-1.pretrained"
ASKED = {
    "says it": "reliability",
    "paraphrases": "generality",
    "neighbours kept": "locality.neighborhood",
    "old answer": "old_answer_rate",
    "leaks": "leak_rate",
    "degenerate": "degenerate_rate",
}


def pretrained_single(argument: str) -> str:
    """Single edits of a model, by its label in small letters; the ceilings, and what each share is of, in front.

    Of every method without options, or of another recipe: `smollm2-135m:RECIPE`. A row's `processor` is named where it
    is not that of the whole file.
    """
    model, _, name = argument.partition(":")
    found = [row for row in units(name or SINGLE) if row["model"].lower() == model]
    ((paraphrases, neighbours),) = {_ceilings(row) for row in found}
    counts, asked = found[0]["scores"]["generate"], found[0]["known_to_model"]["asked"]
    caption = (
        f"{found[0]['model']}, {found[0]['num_edits']} facts that it knows (of {asked:,} asked), percent with 95% "
        f"interval; {counts['generality']['n']} paraphrases, {counts['locality.neighborhood']['n']} neighbours. "
        f"Unedited it gives the true answer to {paraphrases} of the paraphrases and {neighbours} of the neighbours.\n\n"
    )
    whole = recipe(name or SINGLE)["hardware"]["processor"]
    on: Columns = {"on": lambda row: str(row.get("processor", whole)).split()[0].removesuffix("(R)")}
    return caption + listed(found, {"method": method, **_asked(), "patch": patch, **on})


def forgetting_first(dataset: str) -> str:
    """F-Learning's table 1 on one data set, by its label in small letters."""
    found = [row for row in units(TABLE_1) if row["dataset"].lower() == dataset]
    known, prepared = found[0].get("known_to_model"), found[0].get("prepared")
    told = f"{known['known']} facts that it knows (of {known['asked']:,} asked)" if known else ""
    if prepared:
        told = f"{prepared['facts']} facts, of which it gave {prepared['known_before']:.0%} before it was taught their "
        told += f"old answers, and {prepared['known_after']:.0%} after"
    chosen = {row["method"]: row["choice"]["chosen"]["learning_rate"] for row in found if row.get("choice")}
    told += ". Chosen rates: " * bool(chosen) + ", ".join(f"`{name}` {rate:g}" for name, rate in chosen.items())
    caption = f"{found[0]['model'].split(',')[0]}, percent with 95% interval; one batch of {told}.\n\n"
    return caption + listed(found, {"method": method, **_asked(), "s / edit": seconds})


def _asked() -> Columns:
    return {
        title: lambda row, name=name: percent(row["scores"]["generate"].get(name), with_interval=True)  # type: ignore[misc]
        for title, name in ASKED.items()
    }


def scored_both_ways(_argument: str) -> str:
    """The same edits by the definition of an answer, and by the strictest one."""
    columns: Columns = {"model": lambda row: str(row["model"]), "method": method}
    columns["facts"] = lambda row: str(row["num_edits"])
    for scoring in ("generate", "exact"):
        columns[f"`{scoring}`"] = lambda row, scoring=scoring: percent(row["scores"][scoring]["reliability"])  # type: ignore[misc]
    return listed(units(SINGLE), columns)


def _ceilings(row: Row) -> tuple[str, ...]:
    known = row["ceilings"]["generate"]
    return tuple(percent(known[name]) for name in ("generality", "locality.neighborhood"))
