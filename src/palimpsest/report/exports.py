"""Score tables as files: Markdown to paste, LaTeX for a paper, CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.files import new_folder
from palimpsest.report import tables
from palimpsest.report.definitions import label
from palimpsest.report.settings import SettingGroup

if TYPE_CHECKING:
    from palimpsest.evaluation import PublishedFigure

_FIELDS = ("setting", "scoring", "method", "metric", "mean", "low", "high", "n")
_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
          "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}  # fmt: skip


def write_tables(groups: Sequence[SettingGroup], folder: Path, published: Sequence[PublishedFigure] = ()) -> None:
    """Writes a new folder with `scores.csv` and, for each setting and scoring, a `.md` and a `.tex`.

    Raises `OutputError` when it exists or the disk refuses.
    """
    with new_folder(folder) as draft:
        (draft / "scores.csv").write_text(_csv(groups), encoding="utf-8", newline="")
        for number, group in enumerate(groups, start=1):
            for scoring in tables.scorings(group.runs):
                name = f"{number:02}-{_slug(group.setting.title)}-{scoring}"
                header, rows = _cells(group, scoring, published)
                title = f"{group.setting.title}, {scoring.replace('_', '-')}, percent with 95% interval"
                (draft / f"{name}.md").write_text(_markdown(title, header, rows), encoding="utf-8")
                (draft / f"{name}.tex").write_text(_latex(title, header, rows), encoding="utf-8")


def _cells(
    group: SettingGroup, scoring: str, published: Sequence[PublishedFigure]
) -> tuple[list[str], list[list[str]]]:
    names = tables.metrics(group.runs, scoring)
    best = {name: tables.best_of_metric(group.runs, scoring, name) for name in names}
    beside = [group.beside(run, published) for run in group.runs]
    header = ["method", *map(label, names)] + (["paper: rel. / gen. / loc."] if any(beside) else [])
    rows = []
    for index, (run, paper) in enumerate(zip(group.runs, beside, strict=True)):
        row = [run.label]
        for name in names:
            found = run.estimate(scoring, name)
            text = "-" if found is None else f"{100 * found.mean:.1f}"
            text = f"**{text}**" if index in best[name] else text
            row.append(text if found is None else f"{text} ({100 * found.low:.0f}-{100 * found.high:.0f})")
        if any(beside):
            row.append("-" if paper is None else " / ".join(map(_number, _values(paper))))
        rows.append(row)
    return header, rows


def _values(paper: PublishedFigure) -> tuple[float | None, ...]:
    return paper.reliability, paper.generality, paper.locality


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _markdown(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return f"{title}\n\n" + "\n".join(lines) + "\n"


def _latex(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "\n".join(
        " & ".join(re.sub(r"^\*\*(.*?)\*\*", r"\\textbf{\1}", _escaped(cell)) for cell in row) + r" \\"
        for row in (header, *rows)
    )
    first, _, rest = body.partition("\n")
    columns = "l" + "r" * (len(header) - 1)
    return f"% {title}\n\\begin{{tabular}}{{{columns}}}\n\\hline\n{first}\n\\hline\n{rest}\n\\hline\n\\end{{tabular}}\n"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _csv(groups: Sequence[SettingGroup]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_FIELDS)
    for group in groups:
        for run in group.runs:
            for scoring, metrics in run.record.scores.items():
                for metric, one in metrics.items():
                    writer.writerow(
                        (group.setting.title, scoring, run.label, metric, one.mean, one.low, one.high, one.n)
                    )
    return stream.getvalue()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80]
