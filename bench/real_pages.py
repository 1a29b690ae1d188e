"""What `pages.py` writes about real facts: single edits, and the F-Learning paper's table beside ours."""

from __future__ import annotations

from statistics import mean
from typing import Any

from page_blocks import SHORT, percent, read, size, table
from real_facts import LOCALITY

TITLES = {"counterfact": "CounterFact", "zsre": "ZsRE"}
KNOWN = {"locality.neighborhood": "neighbours known", "locality.out_of_scope": "out of scope known"}
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


def real_edits(argument: str) -> str:
    """Single edits of one data set under one scoring, the ceiling first."""
    dataset, scoring = argument.split(":")
    record = read(f"real_edits_{dataset}")
    metrics = ["reliability", "generality", LOCALITY[dataset]]
    rows = []
    for row in record["rows"]:
        if row["method"] == "true facts":
            if scoring == "log_prob":
                continue
            known = [f"{100 * row['known'][name][scoring]:.0f}" for name in metrics]
            rows.append(["true facts, unedited", *known, "", "", ""])
            continue
        scores = row["scores"][scoring]
        cells = [percent(scores.get(name), with_interval=True) for name in metrics]
        old = percent(scores.get("old_answer_rate"))
        rows.append([f"`{row['method']}`", *cells, old, f"{row['seconds_per_edit']:.2f}", size(row["patch_bytes"])])
    edits = record["settings"]["num_edits"]
    caption = f"{TITLES[dataset]}, {edits} single edits, `{scoring}`, percent with 95% interval.\n\n"
    header = ["method", "reliability", "generality", SHORT[LOCALITY[dataset]], SHORT["old_answer_rate"]]
    return caption + table([*header, "s / edit", "patch"], rows)


def f_learning_table(dataset: str) -> str:
    """Ours, means over seeds with their range, beside the paper's."""
    record = read(f"f_learning_table_{dataset}")
    rows = []
    for method, paper in PAPER[dataset].items():
        found = [row for row in record["rows"] if row["part"] == "reported" and _belongs(row, method)]
        cells = [
            _over_seeds(found, scoring, name)
            for scoring in ("teacher_forced", "generate")
            for name in _metrics(dataset)
        ]
        name = method if method == "original model" else f"`{method}`"
        rows.append([name, *("-" if value is None else f"{value:.1f}" for value in paper), *cells])
    header = ["", "paper: rel.", "gen.", "loc.", "ours: rel.", "gen.", "loc.", "generated: rel.", "gen.", "loc."]
    seeds = len({row["seed"] for row in record["rows"] if row.get("row") == "table"})
    caption = (
        f"{TITLES[dataset]}. Paper: LLaMA2-7B. Ours: one batch of {record['settings']['num_edits']:,} facts, mean of "
        f"{seeds} seeds (their range); teacher-forced as in the paper, then free generation with exact match.\n\n"
    )
    return caption + table(header, rows)


def forgetting_rates(dataset: str) -> str:
    """Other rates of forgetting, on the records for choosing."""
    record = read(f"f_learning_table_{dataset}")
    rows = [row for row in record["rows"] if row.get("row") == "rates"]
    plain = _plain(record)
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        learner = "lora" if method == "f-learning-lora" else "ft"
        lines.append([f"`{method}`", "0", *_cells(plain[learner], dataset)])
        lines += [["", f"{row['rate']:g}", *_cells(row, dataset)] for row in rows if row["method"] == method]
    count = record["settings"]["num_choosing"]
    caption = f"{TITLES[dataset]}, one batch of {count} other facts, seed 0; reliability, generality, locality.\n\n"
    return caption + table(["", "rate", "teacher-forced", "generated"], lines)


def chosen_learning_rates(_argument: str) -> str:
    """The learning rates that were tried for learning alone, and what they gave."""
    lines = []
    for dataset, title in TITLES.items():
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


def _belongs(row: dict[str, Any], method: str) -> bool:
    if method == "original model":
        return bool(row["row"] == "original model")
    return bool(row["row"] == "table" and row["method"] == method)


def _metrics(dataset: str) -> tuple[str, str, str]:
    return "reliability", "generality", LOCALITY[dataset]


def _over_seeds(rows: list[dict[str, Any]], scoring: str, metric: str) -> str:
    values = [100 * row["scores"][scoring][metric]["mean"] for row in rows]
    if not values:
        return "-"
    spread = f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def _cells(row: dict[str, Any], dataset: str) -> list[str]:
    """Reliability, generality and locality under both scorings."""
    return [
        " / ".join(f"{100 * row['scores'][scoring][name]['mean']:.0f}" for name in _metrics(dataset))
        for scoring in ("teacher_forced", "generate")
    ]
