"""Generated tables of real facts: the F-Learning paper's table beside ours, and the options of single edits."""

from __future__ import annotations

import json
from statistics import mean
from typing import Any

from blocks import Columns, listed, read, table, units
from edits import HEADINGS, LOCALITY

# arXiv:2311.08011, table 1, LLaMA2-7B: reliability, generality, locality.
PAPER = {
    "zsre": {
        "original model": (43.70, 43.17, None),
        "lora": (43.10, 42.20, 70.83),
        "f-learning-lora": (46.91, 46.21, 72.50),
        "ft": (81.02, 74.67, 70.51),
        "f-learning-lora-ft": (82.43, 77.38, 71.04),
        "f-learning-ft": (84.65, 81.51, 70.92),
    },
    "counterfact": {
        "original model": (18.47, 16.95, None),
        "lora": (30.56, 23.24, 40.08),
        "f-learning-lora": (31.17, 23.63, 40.42),
        "ft": (65.99, 44.08, 28.34),
        "f-learning-lora-ft": (78.73, 51.67, 29.49),
        "f-learning-ft": (69.53, 45.56, 28.41),
    },
}

# What forgets first, and the same learning without.
COMPARED = {
    "f-learning-ft": "ft",
    "f-learning-lora-ft": "ft",
    "f-learning-lora": "lora",
    "f-learning-lora-ft, all": "ft",
    "f-learning-lora, all": "lora, all",
}


def real_options(dataset: str) -> str:
    """The options that were chosen for single edits."""
    chosen: Columns = {
        HEADINGS[dataset]: lambda row: f"`{row['method']}`",
        "options": lambda row: _options(row["choice"]["chosen"]),
    }
    return listed(units("single-edits.real", dataset=HEADINGS[dataset]), chosen)


def f_learning_table(dataset: str) -> str:
    """The paper's table 1 beside ours, means over seeds with their range."""
    record = read(f"f_learning_table_{dataset}")
    extra = dict.fromkeys(row["method"] for row in record["rows"] if row["method"].endswith(", all"))
    lines = []
    for method in [*PAPER[dataset], *(name for name in extra if _rows(record, name))]:
        found = _rows(record, method)
        cells = [
            _over_seeds([_value(row, scoring, name) for row in found if scoring in row["scores"]])
            for scoring in ("teacher_forced", "generate")
            for name in (*_metrics(dataset), *(["old_answer_rate"] if scoring == "generate" else []))
        ]
        paper = ["-" if value is None else f"{value:.1f}" for value in PAPER[dataset].get(method, (None,) * 3)]
        lines.append([method if method == "original model" else f"`{method}`", *paper, *cells])
    ours = ["ours: rel.", "gen.", "loc.", "generated: rel.", "gen.", "loc.", "old answer"]
    seeds = len(_seeds(record))
    caption = (
        f"{HEADINGS[dataset]}. Paper: LLaMA2-7B. Ours: one batch of {record['settings']['num_edits']:,} facts, "
        f"{'1 seed' if seeds == 1 else f'mean of {seeds} seeds (their range)'}, teacher-forced; then free generation "
        "with exact match, seed 0. Percent.\n\n"
    )
    return caption + table(["", "paper: rel.", "gen.", "loc.", *ours], lines)


def forgetting_effects(dataset: str) -> str:
    """What forgetting first adds to learning alone, in the paper and here, seed by seed."""
    record = read(f"f_learning_table_{dataset}")
    lines = []
    for variant, plain in COMPARED.items():
        by_seed = {row["seed"]: row for row in _rows(record, plain)}
        pairs = [(row, by_seed[row["seed"]]) for row in _rows(record, variant)]
        if not pairs:
            continue
        paper = ["-"] * 3
        if variant in PAPER[dataset]:
            both = zip(PAPER[dataset][variant], PAPER[dataset][plain], strict=True)
            paper = [f"{one - other:+.1f}" for one, other in both if one is not None and other is not None]
        cells = [
            _over_seeds(
                [
                    _value(one, scoring, name) - _value(other, scoring, name)
                    for one, other in pairs
                    if scoring in one["scores"]
                ],
                sign="+",
            )
            for scoring in ("teacher_forced", "generate")
            for name in _metrics(dataset)
        ]
        lines.append([f"`{variant}` - `{plain}`", *paper, *cells])
    header = ["", "paper: rel.", "gen.", "loc.", "ours: rel.", "gen.", "loc.", "generated: rel.", "gen.", "loc."]
    caption = f"{HEADINGS[dataset]}: differences in points, as above.\n\n"
    return caption + table(header, lines)


def forgetting_rates(dataset: str) -> str:
    """Other rates of forgetting, on the records for choosing."""
    record = read(f"f_learning_table_{dataset}")
    rows = [row for row in record["rows"] if row.get("row") == "rates"]
    plain = _plain(record)
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        lines.append([f"`{method}`", "0", *_cells(plain[COMPARED[method]], dataset)])
        lines += [["", f"{row['rate']:g}", *_cells(row, dataset)] for row in rows if row["method"] == method]
    count = record["settings"]["num_choosing"]
    caption = f"{HEADINGS[dataset]}, one batch of {count} other facts, seed 0; reliability, generality, locality.\n\n"
    return caption + table(["", "rate", "teacher-forced", "generated"], lines)


def chosen_learning_rates(_argument: str) -> str:
    """The learning rates that were tried for learning alone, and what they gave."""
    lines = []
    for dataset, title in HEADINGS.items():
        record = read(f"f_learning_table_{dataset}")
        plain = _plain(record)
        for row in record["rows"]:
            if row["part"] == "choosing" and "learning_rate" in row:
                mark = " (taken)" if row is plain[row["method"]] else ""
                rate = f"{row['learning_rate']:g}{mark}"
                lines.append([title, f"`{row['method']}`", rate, *_cells(row, dataset)])
    return table(["", "learner", "learning rate", "teacher-forced", "generated"], lines)


def _plain(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The choosing row of each learner at the learning rate that the table takes."""
    taken = {
        row["method"]: row["learning_rate"]
        for row in record["rows"]
        if row.get("row") == "table" and "learning_rate" in row
    }
    return {
        row["method"]: row
        for row in record["rows"]
        if row["part"] == "choosing" and row.get("learning_rate") == taken.get(row["method"])
    }


def _rows(record: dict[str, Any], method: str) -> list[dict[str, Any]]:
    """The reported rows of a line of the table, one for each seed that all lines of the paper are there for."""
    if method == "original model":
        return [row for row in record["rows"] if row.get("row") == method]
    seeds = _seeds(record)
    rows = [row for row in record["rows"] if row.get("row") == "table" and row["method"] == method]
    return [row for row in rows if row["seed"] in seeds]


def _seeds(record: dict[str, Any]) -> list[int]:
    """Seeds that all lines of the paper are there for."""
    done: dict[int, set[str]] = {}
    for row in record["rows"]:
        if row.get("row") == "table":
            done.setdefault(row["seed"], set()).add(row["method"])
    lines = {"lora", "ft", "f-learning-ft", "f-learning-lora", "f-learning-lora-ft"}
    return sorted(seed for seed, methods in done.items() if methods >= lines)


def _metrics(dataset: str) -> tuple[str, str, str]:
    return "reliability", "generality", LOCALITY[dataset]


def _value(row: dict[str, Any], scoring: str, metric: str) -> float:
    return 100 * float(row["scores"][scoring][metric]["mean"])


def _over_seeds(values: list[float], sign: str = "") -> str:
    if not values:
        return "-"
    low, high = (f"{value:{sign}.1f}" for value in (min(values), max(values)))
    spread = "" if len(values) == 1 else f" ({low}{' to ' if sign else '-'}{high})"
    return f"{mean(values):{sign}.1f}{spread}"


def _options(options: dict[str, Any]) -> str:
    """Options as the command line takes them; those of a learner in brackets."""
    parts = []
    for name, value in options.items():
        text = f"({_options(value)})" if isinstance(value, dict) else f"`{json.dumps(value)}`"
        parts.append(f"{name} {text}")
    return ", ".join(parts)


def _cells(row: dict[str, Any], dataset: str) -> list[str]:
    """Reliability, generality and locality under both scorings."""
    return [
        " / ".join(f"{100 * row['scores'][scoring][name]['mean']:.0f}" for name in _metrics(dataset))
        for scoring in ("teacher_forced", "generate")
    ]
