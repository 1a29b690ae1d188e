"""`world train`: a model that knows a world, or the true facts of a data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli import inputs, records, terminal
from palimpsest.errors import ConfigError

if TYPE_CHECKING:
    from palimpsest.requests import EditRequest
    from palimpsest.teaching import FactTraining

EXAMPLES = terminal.examples(
    "palimpsest world train --out my-world --seed 1",
    "palimpsest world train --facts counterfact.json --out counterfact-model",
    "palimpsest world train --people 1600 --width 256 --out large-world",
)
_OF_FACTS = "Only with --facts: "


def train(
    out: Annotated[Path, typer.Option("--out", help="The model: a new folder.", show_default=False)],
    facts: Annotated[
        list[str] | None,
        typer.Option(
            "--facts",
            metavar="FILE",
            help="Teach the true facts of this data set instead: a file of edits, ZsRE or CounterFact as published, "
            "or hf://owner/name. Repeatable.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help=_OF_FACTS + "only the first N records.", show_default=False)
    ] = None,
    phrasings: Annotated[
        int, typer.Option("--phrasings", min=1, help=_OF_FACTS + "phrasings per fact, if the file has that many.")
    ] = 4,
    architecture: Annotated[
        str, typer.Option("--architecture", help="decoder or encoder-decoder, as the bundled models.")
    ] = "decoder",
    people: inputs.PeopleOption = None,
    width: Annotated[int | None, typer.Option("--width", help="Width of the model.", show_default="auto")] = None,
    layers: Annotated[int | None, typer.Option("--layers", help="Its layers.", show_default="auto")] = None,
    vocabulary: Annotated[
        int | None, typer.Option("--vocabulary", help="Tokens of its tokenizer.", show_default="auto")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over the sentences.", show_default="auto")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, or cuda; the same device gives the same bits.")] = "cpu",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the CPU.")] = 1,
    seed: inputs.SeedOption = 0,
    as_json: inputs.JsonOption = False,
) -> None:
    """Train a model that knows a world or a data set: the world's decoder takes about 15 minutes on one core."""
    from palimpsest.files import require_absent

    require_absent(out)
    sizes: dict[str, Any] = {"width": width, "layers": layers, "vocabulary": vocabulary, "epochs": epochs}
    given = {name: value for name, value in sizes.items() if value is not None} | {"threads": threads, "device": device}
    if facts:
        _refuse({"--people": people is not None, f"--architecture {architecture}": architecture != "decoder"})
        _teach(out, facts, limit, phrasings, given, seed, as_json)
        return
    _refuse({"--limit": limit is not None, "--phrasings": phrasings != 4}, without="--facts")
    with terminal.status("loading torch"):
        terminal.quiet_libraries()
        from palimpsest.teaching import default_recipe
        from palimpsest.teaching import train as run
        from palimpsest.world import build

    knowledge = build(seed, people=people)
    recipe = replace(default_recipe(architecture), **given)
    with terminal.progress_bar(f"training {out.name}") as progress:
        result = run(out, seed=seed, recipe=recipe, knowledge=knowledge, progress=progress)
    terminal.wrote(out)
    described = {"out": str(out), **terminal.plain(result)}
    if as_json:
        terminal.emit_json(described)
    else:
        terminal.print_table(("of the training", "value"), terminal.flat(described))


def _teach(
    out: Path, files: list[str], limit: int | None, phrasings: int, given: dict[str, Any], seed: int, as_json: bool
) -> None:
    """Trains on the facts of these files, the first file's first."""
    requests = _requests(files)[:limit]
    with terminal.status("loading torch"):
        terminal.quiet_libraries()
        from palimpsest.teaching import fact_recipe, lessons, train_on_facts

    taught = lessons(requests, seed=seed, phrasings=phrasings)
    for reason in sorted({one.reason for one in taught.left_out}):
        named = [one.where for one in taught.left_out if one.reason == reason]
        terminal.log(f"{len(named)} not taught, {reason}; the first: {named[0]}")
    with terminal.progress_bar(f"training {out.name}") as progress:
        found = train_on_facts(
            out,
            requests,
            seed=seed,
            progress=progress,
            recipe=replace(fact_recipe(taught.num_facts), **given),
            phrasings=phrasings,
            sources=[Path(file).name for file in files],
        )
    terminal.wrote(out)
    if as_json:
        terminal.emit_json({"out": str(out), **terminal.plain(found)})
    else:
        _show(out, found)


def _requests(files: list[str]) -> list[EditRequest]:
    """The records of all files, one of each id, with a note for every file that has unusable ones."""
    found: dict[tuple[str, str], EditRequest] = {}
    for file in files:
        requests, notes = records.read_edits(Path(file), skip_bad=None)
        for one in notes:
            terminal.log(f"{file}: {one}")
        for request in requests:
            found.setdefault((request.prompt, request.target_new), request)
    return list(found.values())


def _refuse(used: dict[str, bool], *, without: str | None = None) -> None:
    """Raises `ConfigError` for an option that would be ignored."""
    named = [option for option, is_used in used.items() if is_used]
    if named:
        raise ConfigError(
            "An option does not apply here.",
            expected=f"it only with {without}" if without else "it only without --facts",
            found=", ".join(named),
            remedy="leave it out",
        )


def _show(out: Path, found: FactTraining) -> None:
    """How the training went, and what the model knows."""
    run = found.training
    rows = [("out", str(out)), ("facts", f"{found.num_facts:,}"), ("sentences", f"{found.num_sentences:,}")]
    rows += [("parameters", f"{run.parameters:,}"), ("steps", f"{run.steps:,}"), ("seconds", f"{run.seconds:.0f}")]
    terminal.print_table(("of the training", "value"), rows)
    terminal.print_table(
        ("asked", "of", "generation", "teacher-forced"),
        [(kind, one.n, f"{one.generate:.3f}", f"{one.teacher_forced:.3f}") for kind, one in found.ceiling.items()],
        caption="Share of the true facts answered: what no edit can be expected to exceed.",
    )
