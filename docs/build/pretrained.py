"""Generated tables of pretrained models: single edits by default options."""

from __future__ import annotations

from blocks import Columns, Row, listed, method, patch, percent, recipe, units

SINGLE = "single-edits.pretrained"
ASKED = {
    "says it": "reliability",
    "paraphrases": "generality",
    "neighbours kept": "locality.neighborhood",
    "old answer": "old_answer_rate",
    "leaks": "leak_rate",
    "degenerate": "degenerate_rate",
}


def pretrained_single(model: str) -> str:
    """Single edits by every method without options; the ceilings, and what each share is of, in front.

    Arguments:
        model: its label, in small letters.
    """
    found = [row for row in units(SINGLE) if row["model"].lower() == model]
    (ceilings,) = {_ceilings(row) for row in found}
    counts = found[0]["scores"]["generate"]
    asked = found[0]["known_to_model"]
    caption = (
        f"{found[0]['model']}, {found[0]['num_edits']} facts that it knows (of {asked['asked']:,} asked), percent with "
        f"95% interval; {counts['generality']['n']} paraphrases, {counts['locality.neighborhood']['n']} neighbours. "
        f"Without an edit it gives the true answer to {ceilings[0]} of the paraphrases and {ceilings[1]} of the "
        f"neighbours. Processor: {recipe(SINGLE)['hardware']['processor']}.\n\n"
    )
    columns: Columns = {
        title: lambda row, name=name: percent(row["scores"]["generate"].get(name), with_interval=True)  # type: ignore[misc]
        for title, name in ASKED.items()
    }
    return caption + listed(found, {"method": method, **columns, "patch": patch})


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
