"""What the commands write: results on stdout, progress, logs and errors on stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import typer

from palimpsest.cli.waiting import progress_bar as progress_bar
from palimpsest.cli.waiting import progress_bars as progress_bars
from palimpsest.cli.waiting import status as status
from palimpsest.errors import PalimpsestError

if TYPE_CHECKING:
    from rich.console import Console

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


@contextmanager
def heeding_termination(wanted: bool) -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP end the program as an exit does, so that half-written output is removed.

    Arguments:
        wanted: left out where a launcher ends the process: it may be waiting for another one, where no exit is heard.
    """
    former = {}
    if wanted and threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # What someone has set, such as nohup, stays.
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                former[number] = signal.signal(number, _leave)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)


def examples(*lines: str) -> str:
    """The epilog of a help page: one to three commands to copy."""
    # Blank lines keep typer from joining the examples into one paragraph; brackets would read as rich markup.
    shown = (line.replace("[", r"\[") for line in lines)
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in shown)])


def show_version(wanted: bool) -> None:
    """The callback of `--version`."""
    if wanted:
        from importlib.metadata import version

        typer.echo(version("palimpsest-lm"))
        raise typer.Exit


def console(*, to_stderr: bool = False) -> Console:
    """A rich console on stdout or stderr as they are now; a pipe is given room for wide tables."""
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPED_WIDTH, highlight=False, soft_wrap=False)


def log(text: str) -> None:
    """A line for people, on stderr."""
    typer.echo(text, err=True)


def emit_json(value: Any) -> None:
    """A result as JSON, on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def show_error(error: PalimpsestError) -> None:
    """One block on stderr: the problem, then expected, found, where, to do."""
    if not sys.stderr.isatty():
        typer.echo(f"Error: {error}", err=True)
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
    typer.echo(printable(text))


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


def plain(value: Any) -> dict[str, Any]:
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
