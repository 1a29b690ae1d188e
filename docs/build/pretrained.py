"""Generated tables of pretrained models: single edits by default options, and layers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from blocks import Columns, Row, listed, method, patch, percent, read, recipe, rows, size, table, units

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


def pretrained_defaults(wanted: str) -> str:
    """One row per method of a model, of the facts that are reported."""
    scores = ("says_it", "paraphrases", "paraphrases_ceiling", "neighbours_kept", "leaks", "degenerate")
    lines = [
        [
            model,
            f"`{name}`",
            str(len(found)),
            *(_share(found, score) for score in scores),
            f"{median(row['seconds'] for row in found):.1f}",
            size(max(row["patch_bytes"] for row in found)),
        ]
        for (model, name), found in _by_default().items()
        if model == wanted
    ]
    titles = (
        "says it",
        "paraphrases",
        "(ceiling)",
        "neighbours kept",
        "leaks",
        "degenerate",
        "CPU s per fact",
        "patch",
    )
    return table(["model", "method", "facts", *titles], lines)


def _by_default() -> dict[tuple[str, str], list[Row]]:
    """Single edits of the split that is reported, without options, by model and method."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows("pretrained_defaults", split="edit", options={}):
        if len(row["edit"]) == 1:
            groups.setdefault((row["model"], row["method"]), []).append(row)
    return groups


def _share(found: Sequence[Row], score: str) -> str:
    part, whole = (sum(row[score][place] for row in found) for place in (0, 1))
    return f"{100 * part / whole:.0f}" if whole else "-"


def layer_sweep(_argument: str) -> str:
    """Pretrained models: edits in one layer after another."""
    names = ("says_it", "paraphrases", "paraphrases_ceiling", "neighbours_kept", "leaks")
    lines = []
    for model, record in read("layer_sweep").items():
        for row in record["rows"]:
            layers = row["layers"] if len(row["layers"]) == 1 else (row["layers"][0], row["layers"][-1])
            where = f"{'-'.join(map(str, layers))} of {record['num_layers']}"
            how = f"`{row['method']}`, {row['n']} facts" + (" at once" if row["method"] == "memit" else "")
            lines.append([model, how, where, *(f"{row[name]:.0f}" for name in names)])
    titles = ("says it", "paraphrases", "of the true answers", "neighbours kept", "leaks")
    return table(["model", "method", "layers", *titles], lines)
