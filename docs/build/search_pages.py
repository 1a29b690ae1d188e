"""Generated parts of the page on target vectors that compare the two searches."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from page_blocks import SHORT, percent, read, table

BASELINE, OURS = "adam", "gauss-newton"


def layer_sweep(_argument: str) -> str:
    """Pretrained models: edits in one layer after another."""
    names = ("says_it", "paraphrases", "paraphrases_ceiling", "neighbours_kept", "leaks")
    lines = []
    for model, record in read("layer_sweep").items():
        for row in record["rows"]:
            layers = row["layers"] if len(row["layers"]) == 1 else (row["layers"][0], row["layers"][-1])
            where = f"{'-'.join(map(str, layers))} of {record['num_layers']}"
            method = f"`{row['method']}`, {row['n']} facts" + (" at once" if row["method"] == "memit" else "")
            lines.append([model, method, where, *(f"{row[name]:.0f}" for name in names)])
    header = ("model", "method", "layers", "says it", "paraphrases", "of the true answers", "neighbours kept", "leaks")
    return table(header, lines)


def search_random(_argument: str) -> str:
    """Random models of every family: what is left of the loss, passes, lengths, time; and where which search wins."""
    record = read("search_study")
    rows = [row for row in record["rows"] if row["part"] == "random"]
    lines = []
    for dtype in record["settings"]["dtypes"]:
        for length in map(str, record["settings"]["lengths"]):
            for search in record["settings"]["searches"]:
                cells = [row["by_length"][length] for row in rows if row["dtype"] == dtype and row["search"] == search]
                before, after = (fmean(cell[name] for cell in cells) for name in ("nll_before", "nll_after"))
                lines.append(
                    [
                        dtype,
                        length,
                        f"`{search}`",
                        f"{before:.2f} to {after:.2f}",
                        f"{fmean(cell['passes'] for cell in cells):.1f}",
                        f"{fmean(cell['share_of_initial'] for cell in cells):.2f}",
                        f"{1000 * fmean(cell['seconds_per_fact'] for cell in cells):.0f}",
                    ]
                )
    header = ["", "answer's tokens", "search", "loss a token", "passes", "length / initial", "CPU ms / fact"]
    return table(header, lines)


def search_families(_argument: str) -> str:
    """In how many families which search leaves the smaller loss, and the families where ours does not."""
    record = read("search_study")
    rows = [row for row in record["rows"] if row["part"] == "random"]
    found = {(row["family"], row["dtype"], row["search"]): row["by_length"] for row in rows}
    lines = []
    for dtype in record["settings"]["dtypes"]:
        for length in map(str, record["settings"]["lengths"]):
            families = [name for name in record["settings"]["families"] if (name, dtype, OURS) in found]
            lost = [
                name
                for name in families
                if found[name, dtype, OURS][length]["nll_after"]
                > min(found[name, dtype, other][length]["nll_after"] for other in record["settings"]["searches"])
            ]
            lines.append([dtype, length, f"{len(families) - len(lost)} of {len(families)}", ", ".join(lost) or "none"])
    return table(["", "answer's tokens", "`gauss-newton` leaves least in", "not in"], lines)


def search_edits(_argument: str) -> str:
    """What edits are worth with either search, on models that know facts."""
    rows = [row for row in read("search_study")["rows"] if row["part"] != "random"]
    metrics = [name for name in SHORT if any(name in row["scores"]["generate"] for row in rows)]
    lines = []
    for row in rows:
        seed = f", seed {row['seed']}" if "seed" in row else ""
        dtype = f", {row['dtype']}" if row.get("dtype") == "bfloat16" else ""
        lines.append(
            [
                f"{row['part']}{dtype}{seed}",
                f"`{row['search']}`",
                *(percent(row["scores"]["generate"].get(name)) for name in metrics),
                f"{row['seconds_per_edit']:.2f}",
            ]
        )
    return table(["", "search", *(SHORT[name] for name in metrics), "s / edit"], lines)


def search_lengths(_argument: str) -> str:
    """Reliability by the number of the answer's tokens, on ZsRE."""
    rows = {row["search"]: row for row in read("search_study")["rows"] if row["part"] == "zsre, single"}
    sizes = sorted({size for row in rows.values() for size in row["by_length"]}, key=_place)
    counts = next(iter(rows.values()))["by_length"]
    header = ["answer's tokens", *(f"{size} (n = {counts[size][1]})" for size in sizes)]
    return table(header, [[f"`{search}`", *_cells(row, sizes)] for search, row in rows.items()])


def _cells(row: dict[str, Any], sizes: list[str]) -> list[str]:
    return [f"{100 * row['by_length'][size][0]:.0f}" if size in row["by_length"] else "-" for size in sizes]


def _place(size: str) -> int:
    return int(size.split()[0])
