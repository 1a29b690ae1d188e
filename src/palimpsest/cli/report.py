"""`report` makes one page out of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.cli.eval import RUN_FILE, require_trackers, send
from palimpsest.errors import DataError
from palimpsest.files import expanded

if TYPE_CHECKING:
    from palimpsest.evaluation import PublishedFigure, RunRecord

EXAMPLES = (
    "palimpsest report runs/* --out report.html",
    "palimpsest report runs/ft runs/lora --out report.html --overwrite",
)
PANEL = terminal.MEASURING


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Folders that `eval --out`, `bench` or `demo` wrote.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The page: a new .html file.")] = Path("report.html"),
    tables: Annotated[
        Path | None, typer.Option("--tables", help="A new folder for the tables as Markdown, LaTeX and CSV.")
    ] = None,
    log_with: inputs.LogWithOption = None,
    log_dir: inputs.LogDirOption = Path("tracking"),
    overwrite: inputs.OverwriteOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Make one self-contained HTML page out of runs."""
    from palimpsest.files import require_absent, require_apart

    require_absent(out, overwrite=overwrite)
    if tables is not None:
        require_absent(tables)
    require_apart(out, tables)
    require_trackers(log_with)
    records = read_records(runs)
    with terminal.status("drawing"):
        from palimpsest.report import build_report, group, write_tables
        from palimpsest.showing import size

        published = _published(runs)
        build_report(records, out, published=published)
        if tables is not None:
            write_tables(group(records), tables, published)
    terminal.wrote(out)
    send(records, log_with, log_dir)
    if as_json:
        terminal.emit_json({"report": str(out), "runs": len(records), "bytes": out.stat().st_size})
    else:
        terminal.say(f"{out}: {len(records)} run{'s' if len(records) != 1 else ''}, {size(out.stat().st_size)}")


def _published(runs: Sequence[Path]) -> list[PublishedFigure]:
    """The figures of others that the recipes of these results name."""
    from palimpsest.benchmark import published_figures
    from palimpsest.evaluation import PublishedFigure

    return [PublishedFigure(**one) for folder in runs for one in published_figures(expanded(folder))]


def read_records(runs: list[Path]) -> list[RunRecord]:
    """The records in these folders, or in the folders inside them. Raises `DataError` for a folder without a record."""
    from palimpsest.benchmark import load_labelled, run_folders

    folders = []
    for run in (expanded(given) for given in runs):
        found = [run] if (run / RUN_FILE).is_file() else run_folders(run)
        found = found or sorted(file.parent for file in run.rglob(RUN_FILE))
        if not found:
            raise DataError(
                "There is no run here.",
                expected=f"a folder that `palimpsest eval --out` wrote, with {RUN_FILE}, or a folder of such folders",
                found="nothing of that name" if not run.exists() else f"no {RUN_FILE} in it",
                where=str(run),
            )
        folders += found
    return [load_labelled(folder) for folder in dict.fromkeys(folders)]
