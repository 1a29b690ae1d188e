"""`portability build`: the questions whose answers follow from a set of edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli import endpoints, inputs, records, terminal
from palimpsest.errors import ConfigError
from palimpsest.files import expanded

if TYPE_CHECKING:
    from palimpsest.datasets.portability import Generator
    from palimpsest.requests import EditRequest

portability = typer.Typer(
    help="Questions that follow from edits: proposed, filtered by what the model knows, reviewed by people.",
    epilog=terminal.examples(
        "palimpsest portability build facts.csv --model MODEL --generator triples.csv --out questions"
    ),
    no_args_is_help=True,
)

EXAMPLES = terminal.examples(
    "palimpsest portability build facts.csv --model world --generator triples.csv --out questions",
    "palimpsest portability build facts.csv --model MODEL --generator https://host/v1 --generator-model NAME "
    "--out questions --dry-run",
    "palimpsest eval MODEL --dataset questions --method memit",
)


@portability.command("build", epilog=EXAMPLES, no_args_is_help=True)
def build(
    edits: Annotated[str, typer.Argument(metavar="EDITS", help="A file of edits or a data set.", show_default=False)],
    model: Annotated[str, typer.Option("--model", help="The model that will be edited.", show_default=False)],
    generator: Annotated[
        str,
        typer.Option(
            "--generator",
            metavar="G",
            help="A table of triples (.csv), the base URL of a chat endpoint, or a chat model's folder or hub id.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="A new folder.", show_default=False)],
    data: Annotated[Path | None, typer.Option("--data", help="The file, for a data set that needs one.")] = None,
    num_edits: Annotated[
        int | None, typer.Option("--num-edits", "-n", min=1, help="How many, drawn with the seed; all if left out.")
    ] = None,
    num_items: Annotated[int, typer.Option("--num-items", min=1, max=10, help="Questions proposed for an edit.")] = 3,
    generator_model: Annotated[
        str | None, typer.Option("--generator-model", metavar="NAME", help="The model's name at the endpoint.")
    ] = None,
    option: endpoints.FieldsOption = None,
    key_variable: endpoints.KeyOption = None,
    timeout: endpoints.TimeoutOption = 60.0,
    retries: endpoints.RetriesOption = 4,
    requests_per_minute: endpoints.RateOption = None,
    prices: endpoints.PricesOption = None,
    max_cost: endpoints.MaxCostOption = None,
    dry_run: endpoints.DryRunOption = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the build in --out.")] = False,
    seed: inputs.SeedOption = 0,
    chat: inputs.ChatOption = False,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Propose questions that follow from edits, drop those the model cannot know, and write pages for review.

    Only questions that people accept count: put the reviewed review.csv into the folder; the folder is a data set.
    """
    endpoints.require_prices(max_cost, prices)
    if not dry_run and not resume:
        from palimpsest.files import require_absent

        require_absent(out, remedy="go on with that build with --resume, or choose another name")
    placement = inputs.Placement(device, dtype, device_map, trust_remote_code)
    whole = records.find_dataset(edits, data)
    chosen = list((whole.sample(num_edits, seed) if num_edits is not None else whole).requests)
    network = {"timeout": timeout, "retries": retries, "requests_per_minute": requests_per_minute}
    source = make_generator(generator, generator_model, option, key_variable, placement, network)
    forecast = _forecast(chosen, source, num_items, prices)
    if forecast is not None:
        endpoints.say_forecast(forecast, prices)
        endpoints.require_affordable(
            forecast,
            max_cost,
            problem="The build would cost more than it may.",
            remedy="ask for fewer edits with --num-edits",
        )
    if dry_run:
        terminal.emit_json({"edits": len(chosen), "estimate": forecast}) if as_json else None
        return
    loaded = inputs.load_model(model, placement, chat=chat)
    from palimpsest.datasets.portability import build as run

    try:
        with terminal.progress_bar("portability") as progress:
            summary = run(chosen, loaded, source, out, num_items=num_items, resume=resume, progress=progress)
    except KeyboardInterrupt:
        raise terminal.Interrupted(f"Interrupted. Finished edits are kept in {out}; --resume goes on.") from None
    terminal.wrote(out)
    _show({"out": str(out), **asdict(summary), "estimate": forecast}, whole, as_json)


def make_generator(
    name: str,
    model: str | None,
    option: Sequence[str] | None,
    key_variable: str | None,
    placement: inputs.Placement,
    network: dict[str, Any],
) -> Generator:
    """The generator that was named. Raises `ConfigError` for options that it does not have."""
    from palimpsest.datasets import ENDINGS, read_records
    from palimpsest.datasets.portability import ChatGenerator, LocalModel, TableGenerator

    if name.startswith(("http://", "https://")):
        from palimpsest.datasets.portability import Endpoint
        from palimpsest.files import cache_folder

        if model is None:
            raise ConfigError(
                "An endpoint has many models.", expected="--generator-model NAME", found="none", where=name
            )
        options = inputs.parse_options(option)
        endpoint = Endpoint(name, model, key=endpoints.key_of(name, key_variable), options=options, **network)
        return ChatGenerator(endpoint, None if (cache := cache_folder()) is None else cache / "generations")
    given = {"--generator-model": model, "--option": option, "--key-variable": key_variable}
    alien = [flag for flag, value in given.items() if value]
    if alien:
        raise ConfigError(
            f"Only an endpoint takes {alien[0]}.", expected="--generator https://...", found=f"--generator {name}"
        )
    file = expanded(name)
    if file.suffix.lower() in ENDINGS:
        return TableGenerator(read_records(file), file.name)
    return ChatGenerator(LocalModel(inputs.load_model(name, placement)))


def _forecast(
    edits: list[EditRequest], generator: Generator, num_items: int, prices: tuple[float, float] | None
) -> dict[str, Any] | None:
    """Estimates the requests to an endpoint; `None` if they cost nothing."""
    from palimpsest.datasets.portability import ChatGenerator, estimate

    if not isinstance(generator, ChatGenerator) or generator.cache is None:
        return None
    found = estimate(edits, generator, num_items)
    return {**asdict(found), "cost": found.cost(*prices) if prices else None}


def _show(found: dict[str, Any], data: Any, as_json: bool) -> None:
    if as_json:
        terminal.emit_json(found)
        return
    rows = [("edits", found["edits"]), ("questions proposed", found["proposed"]), ("kept for review", found["kept"])]
    rows += [(f"dropped: {reason}", number) for reason, number in found["dropped"].items()]
    rows += [(f"edits without: {reason}", number) for reason, number in found["without_proposal"].items()]
    terminal.print_table(("portability", "number"), rows)
    for note in records.notes_of(data):
        terminal.say(f"note: {note}")
    if found["kept"]:
        terminal.say(
            f"next: review {found['out']}/review.html, and put the review.csv that it exports into {found['out']}"
        )
