"""Output of the commands: results on stdout; progress, logs and errors on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

import typer

from palimpsest.cli.surroundings import Output
from palimpsest.cli.waiting import progress_bar as progress_bar
from palimpsest.cli.waiting import progress_bars as progress_bars
from palimpsest.cli.waiting import status as status
from palimpsest.errors import PalimpsestError

if TYPE_CHECKING:
    from rich.console import Console

EDITING, MEASURING, LOOKING = "Edit", "Measure", "Look around"
"""Panels of the help page."""
PIPED_WIDTH = 160
_NAME_COLUMNS = ("name", "method", "metric", "site", "ok")
ENDED_FROM_OUTSIDE = {130: "Interrupted", 143: "Terminated", 129: "Hung up"}


class Interrupted(Exception):
    """An interrupt with its own message."""


@contextmanager
def spoken(aloud: bool) -> Iterator[None]:
    """Inside the block nothing is written to the terminal unless `aloud`."""
    if aloud:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def examples(*lines: str) -> str:
    """The epilog of a help page: one to three commands to copy."""
    # Blank lines keep typer from joining the examples into one paragraph; brackets would read as rich markup.
    shown = (line.replace("[", r"\[") for line in lines)
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in shown)])


def show_version(wanted: bool) -> None:
    """The callback of `--version`."""
    if wanted:
        from importlib.metadata import version

        say(version("palimpsest-lm"))
        raise typer.Exit


def console(*, to_stderr: bool = False) -> Console:
    """A rich console on stdout or stderr as they are now; a pipe is given room for wide tables."""
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPED_WIDTH, highlight=False, soft_wrap=False)


def log(text: str) -> None:
    """A line for people, on stderr."""
    _print(text, sys.stderr)


def wrote(*places: object) -> None:
    """Says that the command has made what it was to make, so that it has succeeded even if it cannot say so."""
    if isinstance(sys.stdout, Output):
        sys.stdout.made += map(str, places)


def emit_json(value: object) -> None:
    """A result as JSON, on stdout; with escapes where stdout cannot hold every character."""
    is_whole = not isinstance(sys.stdout, Output) or sys.stdout.is_whole
    text = json.dumps(value, indent=2, ensure_ascii=not is_whole, default=str)
    _print(text.encode("utf-8", "replace").decode(), sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    # Not typer.echo, which writes to the bytes below a stream that is not UTF-8.
    stream.write(f"{text}\n")
    stream.flush()


def show_error(error: PalimpsestError) -> None:
    """One block on stderr: the problem, then expected, found, where, to do."""
    if not sys.stderr.isatty():
        log(f"Error: {error}")
        return
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in error.details():
        grid.add_row(label, Text(text))
    body: Any = grid if error.details() else ""
    panel = Panel(body, title=Text(error.problem, style="bold"), title_align="left", border_style="red")
    if len(error.problem) > 70:
        whole = Table.grid()
        whole.add_row(Text(error.problem, style="bold"))
        whole.add_row(grid)
        panel = Panel(whole, title="Error", title_align="left", border_style="red")
    console(to_stderr=True).print(panel)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None, caption: str | None = None
) -> None:
    """A table on stdout. Numbers stand on the right; texts are shown as they are, never read as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        is_number = bool(rows) and all(_is_number(row[index]) for row in rows)
        is_name = column in _NAME_COLUMNS
        table.add_column(column, justify="right" if is_number else "left", overflow="fold", no_wrap=is_name)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(printable(str(cell))) for cell in row))
    console().print(table)


def say(text: str = "") -> None:
    """A line of a result, on stdout."""
    _print(printable(text), sys.stdout)


def printable(text: str) -> str:
    """The text without characters that steer a terminal: what a model writes must not move the cursor."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)


def verdict(is_right: bool | None) -> Any:
    """A coloured yes or no; a dash for what has no verdict."""
    from rich.text import Text

    if is_right is None:
        return Text("-", style="dim")
    return Text("yes", style="green") if is_right else Text("no", style="bold red")


def count(number: int, one: str) -> str:
    """A number with its noun: `1 edit`, `2 edits`."""
    return f"{number} {one}{'' if number == 1 else 's'}"


def share(mean: float | None, *, digits: int = 0) -> str:
    """A share of one as a percentage, or a dash."""
    return "-" if mean is None else f"{100 * mean:.{digits}f}%"


def quiet_libraries() -> None:
    """Keeps the libraries' own bars and advice off the screen: in the command line only, never in the library."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for name in ("transformers", "huggingface_hub", "peft", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|huggingface_hub|peft|torch)\b.*")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def plain(value: object) -> dict[str, Any]:
    """A result object as a dictionary that JSON can hold."""
    from dataclasses import asdict, is_dataclass

    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"not a result: {value!r}")


def flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """A result as the rows of a table with two columns; what lies inside another value has a dotted name."""
    rows: list[tuple[str, Any]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            rows += flat(item, f"{name}.")
        else:
            rows.append((name, f"{item:.3f}" if isinstance(item, float) else item))
    return rows


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return True
    text = str(value).rstrip("%s").strip()
    return text == "-" or text.replace(".", "", 1).replace("-", "", 1).replace(",", "").isdigit()
