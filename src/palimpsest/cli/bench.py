"""`bench` runs a recipe: methods x data sets x models x protocols x seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.errors import ConfigError

if TYPE_CHECKING:
    from palimpsest.benchmark import Finished, Plan, ResultsFolder, WorkUnit

EXAMPLES = (
    "palimpsest bench bench/recipes/table-2.world.toml --out results --workers 2",
    "palimpsest bench bench/recipes/table-2.world.toml --out results --resume",
    "palimpsest bench bench/recipes/table-2.full.toml --dry-run",
)
PANEL = terminal.MEASURING

_SHOWN_FAILURES = 10


def bench(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A .toml file.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder of the results.", show_default="results-NAME")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out; nothing is done twice.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: try again what has failed.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes.", show_default="half the processors")
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="A Ray cluster's address, or `local`.")
    ] = None,
    root: Annotated[
        Path, typer.Option("--root", help="Folder that the recipe's paths are relative to.", show_default="here")
    ] = Path("."),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, with its cost as far as it is known.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Show how far the run in --out is.")] = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Run a recipe with several workers. Killed at any moment, it goes on with --resume."""
    terminal.quiet_libraries()
    from palimpsest.benchmark import Plan, ResultsFolder, read_recipe, run

    if retry_failed and not resume:
        raise ConfigError(
            "There is nothing to try again.", expected="--retry-failed together with --resume", found="no --resume"
        )
    plan = Plan.of(read_recipe(recipe), root=root)
    place = out or Path(f"results-{plan.recipe.name}")
    if dry_run or status:
        _show_plan(ResultsFolder(place, plan), as_json=as_json, only_status=status)
        return
    try:
        with terminal.progress_bars(plan.recipe.name) as bars:

            def tell(unit: WorkUnit, finished: Finished, done: int, total: int) -> None:
                bars.end(_name(unit))
                bars.whole("units", done, total)
                for note in finished.result.get("damaged", ()):
                    terminal.log(f"{_name(unit)}: {note}")
                if finished.state == "failed":
                    terminal.log(f"failed: {_name(unit)}: {(finished.error or '').splitlines()[0]}")

            def tell_stage(unit: WorkUnit, stage: str, done: int, total: int) -> None:
                bars.part(_name(unit), stage, done, total)

            outcome = run(
                plan, place, resume=resume, retry_failed=retry_failed, workers=workers, ray=ray, on_unit=tell,
                on_stage=tell_stage,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise terminal.Interrupted(f"Interrupted. Finished edits are kept in {place}; --resume goes on.") from None
    terminal.wrote(place)
    result = {
        "recipe": plan.recipe.name,
        "out": str(place),
        "units": dict(outcome.counts),
        "failures": [{**unit.labels(), "error": error} for unit, error in outcome.failures],
        "choices": _choices(ResultsFolder(place, plan)),
    }
    if as_json:
        terminal.emit_json(result)
    else:
        _say(plan, place, result)
    if outcome.failures:
        raise typer.Exit(1)


def _choices(folder: ResultsFolder) -> list[dict[str, Any]]:
    """Lists the chosen options of every row with a grid, once for each model and data set."""
    accounts = [(unit.labels(), folder.result_of(unit).get("choice")) for unit in folder.plan.units]
    return [
        {name: labels[name] for name in ("method", "model", "dataset")} | account
        for labels, account in {
            (labels["method"], labels["model"], labels["dataset"]): (labels, account) for labels, account in accounts
        }.values()
        if account is not None
    ]


def _say(plan: Plan, place: Path, result: dict[str, Any]) -> None:
    from palimpsest.benchmark import account_in_words

    units = result["units"]
    refused = f", {units['refused']} not for models of that kind" if units["refused"] else ""
    failed = f", {units['failed']} failed" if units["failed"] else ""
    terminal.say(f"{place}: {units['ok']} of {terminal.count(len(plan.units), 'unit')} done{failed}{refused}")
    for choice in result["choices"]:
        text = account_in_words(choice).partition(" Candidates: ")[0]
        terminal.say(f"{choice['method']} on {choice['model']}, {choice['dataset']}: {text}")
    for failure in result["failures"][:_SHOWN_FAILURES]:
        terminal.say(f"failed: {failure['method']} on {failure['model']}, {failure['dataset']}: {failure['error']}")
    terminal.say(f"next: palimpsest report {place} --out report.html")


def _show_plan(folder: ResultsFolder, *, as_json: bool, only_status: bool) -> None:
    from palimpsest.benchmark import estimates, time_to_go, unit_counts
    from palimpsest.showing import size

    known = estimates(folder)
    units = folder.plan.units
    rows = [
        {**unit.labels(), "address": unit.address, "state": folder.state(unit)}
        | {"seconds": one.seconds, "checkpoint_bytes": one.checkpoint_bytes}
        for unit, one in zip(units, known, strict=True)
    ]
    found, to_go = unit_counts(folder), time_to_go(folder)
    if as_json:
        plan = folder.plan.recipe.model_dump(mode="json")
        terminal.emit_json({"recipe": plan, "units": rows, "counts": found, "seconds_to_go": to_go})
        return
    if not only_status:
        columns = ("model", "dataset", "method", "protocol", "edits", "seed", "state", "seconds", "weights")
        terminal.print_table(
            columns,
            [
                (
                    *(row[name] for name in ("model", "dataset", "method", "protocol")),
                    row["num_edits"] or "all",
                    row["seed"],
                    row["state"],
                    "-" if row["seconds"] is None else f"{row['seconds']:.0f}",
                    "-" if row["checkpoint_bytes"] is None else size(row["checkpoint_bytes"]),
                )
                for row in rows
            ],
        )
    parts = [f"{number} {name}" for name, number in found.items() if number]
    terminal.say(f"{terminal.count(len(units), 'unit')}: {', '.join(parts)}")
    unknown = sum(row["seconds"] is None for row in rows)
    if to_go is None:
        terminal.say("time to go: not known before a unit is done")
    else:
        share = f" ({unknown} units like none that is done are taken to be average)" if unknown else ""
        terminal.say(f"time to go with one worker: {_duration(to_go)}{share}")
    sizes = [row["checkpoint_bytes"] for row in rows if row["checkpoint_bytes"]]
    if sizes:
        terminal.say(
            f"memory: every worker holds its model, the largest {size(max(sizes))} on disk, and what editing needs"
        )


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _name(unit: WorkUnit) -> str:
    labels = unit.labels()
    return f"{labels['method']} on {labels['model']}, {labels['dataset']}, {labels['protocol']}, seed {labels['seed']}"
