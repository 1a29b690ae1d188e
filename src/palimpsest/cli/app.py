"""The `palimpsest` command: its groups put together, and one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Annotated, Any

import typer

from palimpsest import processes
from palimpsest.cli import (
    apply,
    ask,
    assess,
    bench,
    demo,
    doctor,
    edit,
    judge,
    push,
    report,
    serve,
    stats,
    tasks,
    terminal,
    trace,
    train,
    undo,
    verify,
    web,
)
from palimpsest.cli import eval as eval_command
from palimpsest.cli import inspect as inspect_command
from palimpsest.cli import list as list_command
from palimpsest.cli.memory import memory
from palimpsest.cli.portability import portability
from palimpsest.cli.world import world
from palimpsest.errors import ConfigError, PalimpsestError

app = typer.Typer(
    name="palimpsest",
    help="Update what a language model knows: edits as small, reversible, verified patches.",
    epilog=terminal.examples(
        "palimpsest demo",
        "palimpsest edit world --method ft --edits facts.jsonl --out my-patch",
        'palimpsest ask world "The capital of France is" --patch my-patch',
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. May be given anywhere.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and stop.", is_eager=True, callback=terminal.show_version),
    ] = False,
) -> None:
    """Update what a language model knows: edits as small, reversible, verified patches."""


_COMMANDS: tuple[tuple[str, Callable[..., None], ModuleType], ...] = (
    ("demo", demo.demo, demo),
    ("edit", edit.edit, edit),
    ("ask", ask.ask, ask),
    ("apply", apply.apply, apply),
    ("undo", undo.undo, undo),
    ("serve", serve.serve, serve),
    ("push", push.push, push),
    ("verify", verify.verify, verify),
    ("eval", eval_command.evaluate, eval_command),
    ("assess", assess.assess, assess),
    ("judge", judge.judge, judge),
    ("tasks", tasks.tasks, tasks),
    ("bench", bench.bench, bench),
    ("report", report.report, report),
    ("stats", stats.stats, stats),
    ("train", train.train, train),
    ("list", list_command.list_, list_command),
    ("doctor", doctor.doctor, doctor),
    ("trace", trace.trace, trace),
    ("inspect", inspect_command.inspect, inspect_command),
    ("web", web.web, web),
)
"""In the order of the help page: the name, the function, and the file with its examples and its panel."""

for _name, _function, _home in _COMMANDS:
    app.command(
        _name,
        epilog=terminal.examples(*_home.EXAMPLES),
        rich_help_panel=_home.PANEL,
        no_args_is_help=_name != "demo",
    )(_function)
app.add_typer(memory, name="memory", rich_help_panel=terminal.LOOKING)
app.add_typer(portability, name="portability", rich_help_panel=terminal.MEASURING)
app.add_typer(world, name="world", rich_help_panel=terminal.LOOKING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    0 is success, 1 a failed test or verification, 2 bad input, 130 an interrupt, 143 a termination.

    Of several processes that a launcher started, only the first one prints. An error is printed once, by the process
    that raised it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = _asks_for_debug(given)
    with processes.joined() as team:
        try:
            with terminal.spoken(team.rank == 0):
                _require_shared(given, team.count)
                _command().main(args=given, prog_name="palimpsest")
        except PalimpsestError as error:
            with team.reporting() as is_ours:
                if is_ours:
                    _show(error, debug)
            return 2
        except terminal.Interrupted as interrupt:
            terminal.log(str(interrupt))
            return 130
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else int(bool(ending.code))
            if code in terminal.ENDED_FROM_OUTSIDE and team.rank == 0:
                terminal.log(f"{terminal.ENDED_FROM_OUTSIDE[code]}. What was half written has been removed.")
            return code
        except (OSError, MemoryError) as error:
            with team.reporting() as is_ours:
                if is_ours:
                    _show(_of_the_system(error), debug)
            return 2
        except Exception as error:
            with team.reporting() as is_ours:
                if is_ours:
                    _show_defect(error)
            return 2
    return 0


@cache
def _command() -> Any:
    """The commands as typer makes them of their signatures: a tenth of a second, once for all calls of `main`."""
    return typer.main.get_command(app)


def _show(error: PalimpsestError, debug: bool) -> None:
    if debug:
        # The block that follows says what the last line of the traceback would.
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__, file=sys.stderr)
        terminal.log("Traceback (most recent call last):")
        traceback.print_tb(error.__traceback__, file=sys.stderr)
    terminal.show_error(error)


def _of_the_system(error: OSError | MemoryError) -> PalimpsestError:
    """Turns an unexpected refusal by the system into an error with advice."""
    if isinstance(error, MemoryError):
        found, remedy = "not enough memory", "use fewer edits at once, a smaller model or --dtype bfloat16"
    else:
        found, remedy = error.strerror or str(error), "see to it that the place is there and may be used"
    where = getattr(error, "filename", None)
    if isinstance(error, FileNotFoundError) and not _has_place():
        found, where = "the current folder was removed", None
        remedy = "change to a folder that is there: cd /some/folder"
    shown = PalimpsestError(
        "The system refused something that the command needs.",
        expected="files, folders and memory that can be used",
        found=found,
        where=None if where is None else str(where).encode("utf-8", "replace").decode(),
        remedy=remedy,
    )
    shown.__cause__ = error
    return shown


def _has_place() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _show_defect(error: Exception) -> None:
    # Not a user's mistake: the whole traceback is what a bug report needs.
    traceback.print_exception(error, file=sys.stderr)
    terminal.show_error(
        PalimpsestError(
            "This should not have happened.",
            found=f"{type(error).__name__}: {error}",
            remedy="please report it together with the lines above",
        )
    )


def _require_shared(arguments: list[str], num_processes: int) -> None:
    """Raises `ConfigError` for a command that several processes cannot share."""
    command = next((one for one in arguments if not one.startswith("-")), "edit")
    if num_processes > 1 and command != "edit":
        raise ConfigError(
            f"The command {command!r} runs in one process.",
            expected="one process, or `palimpsest edit`",
            found=f"{num_processes} processes",
            remedy="start it without torchrun or accelerate launch",
        )


def _asks_for_debug(arguments: list[str]) -> bool:
    """Whether `--debug` is given, wherever it stands; moves it to the front, where the option is declared."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--debug" not in arguments[:end]:
        return False
    arguments[:end] = ["--debug", *(one for one in arguments[:end] if one != "--debug")]
    return True
