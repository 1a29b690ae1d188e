"""The `palimpsest` command: its groups put together, and one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from palimpsest import processes
from palimpsest.cli import terminal
from palimpsest.cli.assess import assess
from palimpsest.cli.bench import bench
from palimpsest.cli.demo import demo
from palimpsest.cli.doctor import doctor
from palimpsest.cli.edit import ask, edit
from palimpsest.cli.eval import evaluate, report
from palimpsest.cli.judge import judge
from palimpsest.cli.list import list_
from palimpsest.cli.memory import memory
from palimpsest.cli.portability import portability
from palimpsest.cli.push import push
from palimpsest.cli.stats import stats
from palimpsest.cli.tasks import tasks
from palimpsest.cli.trace import trace
from palimpsest.cli.train import train
from palimpsest.cli.verify import apply, verify
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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and stop.", is_eager=True, callback=terminal.show_version),
    ] = False,
) -> None:
    """Update what a language model knows: edits as small, reversible, verified patches."""


def _add(name: str, function: Callable[..., None], *lines: str, panel: str) -> None:
    epilog = terminal.examples(*lines)
    app.command(name, epilog=epilog, rich_help_panel=panel, no_args_is_help=name != "demo")(function)


_EDITING, _MEASURING, _LOOKING = "Edit", "Measure", "Look around"

_add(
    "demo",
    demo,
    "palimpsest demo",
    "palimpsest demo --out demo --overwrite --num-edits 20",
    panel=_EDITING,
)
_add(
    "edit",
    edit,
    "palimpsest edit world --method f-learning-lora-ft --edits facts.csv --out my-patch",
    'palimpsest edit world --method ft --prompt "The capital of France is" --subject France --target-new Lyon '
    "--target-old Paris --out lyon",
    "palimpsest edit world --method ft-l --edits facts.csv --out my-patch -o layers=[3] -o learning_rate=1e-3",
    panel=_EDITING,
)
_add(
    "ask",
    ask,
    'palimpsest ask world "The capital of France is"',
    'palimpsest ask world "The capital of France is" "France is a country in" --patch my-patch',
    panel=_EDITING,
)
_add(
    "apply",
    apply,
    "palimpsest apply world my-patch --out new-model",
    "palimpsest apply world first-patch second-patch --out new-model",
    panel=_EDITING,
)
_add(
    "push",
    push,
    "palimpsest push my-patch me/world-in-2026 --dry-run",
    "palimpsest push my-patch me/world-in-2026 --private --record verified.json",
    panel=_EDITING,
)
_add(
    "verify",
    verify,
    "palimpsest verify world my-patch",
    "palimpsest verify world my-patch --min-generality 0.8 --min-locality 0.9",
    panel=_MEASURING,
)
_add(
    "eval",
    evaluate,
    "palimpsest eval world --dataset world-counterfact --method ft --protocol single --num-edits 20",
    "palimpsest eval world --dataset facts.jsonl --method lora --protocol sequential --num-edits 100 "
    "--checkpoints 1,10,100 --out runs/lora --resume",
    "palimpsest eval world --dataset counterfact --data counterfact.json --method ft --protocol batch -n 50 --json",
    panel=_MEASURING,
)
_add(
    "assess",
    assess,
    "palimpsest assess world --facts facts.csv --wrong to-be-edited.jsonl",
    "palimpsest assess world --facts world-counterfact --answer old --against relations --json",
    panel=_MEASURING,
)
_add(
    "judge",
    judge,
    "palimpsest judge my-run --endpoint https://host/v1 --endpoint-model NAME --dry-run",
    panel=_MEASURING,
)
_add(
    "tasks",
    tasks,
    "palimpsest tasks world --task world --patch my-patch",
    "palimpsest tasks gpt2-xl --task hellaswag --task gsm8k --limit 200 --patch my-patch",
    panel=_MEASURING,
)
_add(
    "bench",
    bench,
    "palimpsest bench bench/recipes/table-2.world.toml --out results --workers 2",
    "palimpsest bench bench/recipes/table-2.world.toml --out results --resume",
    "palimpsest bench bench/recipes/table-2.full.toml --dry-run",
    panel=_MEASURING,
)
_add(
    "report",
    report,
    "palimpsest report runs/* --out report.html",
    "palimpsest report runs/ft runs/lora --out report.html --overwrite",
    panel=_MEASURING,
)
_add(
    "stats",
    stats,
    "palimpsest stats world --text world --layers 1,2,3",
    "palimpsest stats ./my-model --text wikipedia --layers 4-8",
    "palimpsest stats ./my-model --text notes.jsonl --layers 5 --max-tokens 200000 --tolerance 0.2 --json",
    panel=_EDITING,
)
_add(
    "train",
    train,
    "palimpsest train mend world --data world-counterfact --out my-mend",
    "palimpsest train mend ./my-model --data zsre-train.json --out my-mend -o layers=[20,21,22]",
    "palimpsest train mend ./my-model --data zsre-train.json --out my-mend -o layers=[20,21,22] --resume",
    panel=_EDITING,
)
_add("list", list_, "palimpsest list methods", "palimpsest list datasets --json", panel=_LOOKING)
_add("doctor", doctor, "palimpsest doctor world", "palimpsest doctor ./my-model --json", panel=_LOOKING)
_add(
    "trace",
    trace,
    'palimpsest trace world --prompt "The capital city of Japan is" --subject Japan --out japan',
    "palimpsest trace world --facts world-counterfact --num 20 --out traces",
    panel=_LOOKING,
)
app.add_typer(memory, name="memory", rich_help_panel=_LOOKING)
app.add_typer(portability, name="portability", rich_help_panel=_MEASURING)
app.add_typer(world, name="world", rich_help_panel=_LOOKING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    0 is success, 1 a failed test or verification, 2 bad input, 130 an interrupt, 143 a termination.

    Of several processes that a launcher started, the first one speaks; an error is told once, by the one that has it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = _asks_for_debug(given)
    with processes.joined() as team:
        try:
            with terminal.spoken(team.rank == 0):
                _require_shared(given, team.count)
                typer.main.get_command(app).main(args=given, prog_name="palimpsest")
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


def _show(error: PalimpsestError, debug: bool) -> None:
    if debug:
        # The block that follows says what the last line of the traceback would.
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__, file=sys.stderr)
        terminal.log("Traceback (most recent call last):")
        traceback.print_tb(error.__traceback__, file=sys.stderr)
    terminal.show_error(error)


def _of_the_system(error: OSError | MemoryError) -> PalimpsestError:
    """What the machine refuses in a place where nobody looked for it."""
    if isinstance(error, MemoryError):
        found, remedy = "not enough memory", "use fewer edits at once, a smaller model or --dtype bfloat16"
    else:
        found, remedy = error.strerror or str(error), "see to it that the place is there and may be used"
    where = getattr(error, "filename", None)
    if isinstance(error, FileNotFoundError) and not _has_place():
        found, where = "the folder you are in was removed", None
        remedy = "change to a folder that is there: cd /some/folder"
    shown = PalimpsestError(
        "The system refused what the command needs.",
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
