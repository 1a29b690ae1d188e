"""`stats`: collect ahead of time the second moments that locate-then-edit methods solve with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.errors import ConfigError
from palimpsest.files import expanded

if TYPE_CHECKING:
    from palimpsest.models import Point
    from palimpsest.statistics import KeyStatistics

EXAMPLES = (
    "palimpsest stats world --text world --layers 1,2,3",
    "palimpsest stats ./my-model --text wikipedia --layers 4-8",
    "palimpsest stats ./my-model --text notes.jsonl --layers 5 --max-tokens 200000 --tolerance 0.2 --json",
)
PANEL = terminal.EDITING


def stats(
    model: inputs.ModelArgument,
    layers: Annotated[str, typer.Option("--layers", help="The layers: 5 or 4-8 or 1,2,3.", show_default=False)],
    text: Annotated[
        str,
        typer.Option(
            "--text",
            help="own, what the model itself writes; wikipedia, wikitext, world; a text file, .jsonl, .parquet or "
            "folder; owner/name on the hub; or a folder of published .npz files.",
        ),
    ] = "own",
    site: Annotated[str, typer.Option("--site", help="Whose inputs are the keys.")] = "mlp.down",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", min=1, help="Most tokens to read; 64 per dimension if left out, 4 for own writing."
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="Error at which a layer is done; 0 reads all tokens.")
    ] = 0.25,
    row_length: Annotated[
        int | None, typer.Option("--row-length", min=1, help="Tokens of the longest row; 1024 if left out.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Another folder than $PALIMPSEST_CACHE or ~/.cache/palimpsest.")
    ] = None,
    trust_remote_code: inputs.TrustOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Collect the second moments that ROME, MEMIT and their kin solve with; methods then find them in the cache."""
    wanted = parse_layers(layers)
    with terminal.status("opening the text"):
        terminal.quiet_libraries()
        from palimpsest.models import Point
        from palimpsest.statistics import Cache, collect, open_source

        source = open_source(text)
    loaded = inputs.load_model(model, inputs.Placement(trust_remote_code=trust_remote_code))
    kept = Cache(None if cache is None else expanded(cache), is_required=True)
    kept.require()
    start = time.perf_counter()
    try:
        with terminal.progress_bar("stats") as progress:
            found = collect(
                loaded,
                [Point(site, layer, "input") for layer in wanted],
                source,
                max_tokens=max_tokens,
                tolerance=tolerance or None,
                row_length=row_length,
                cache=kept,
                progress=progress,
            )
    except KeyboardInterrupt:
        raise terminal.Interrupted(
            f"Interrupted. What was done until a minute ago is in {kept.folder}; the same command goes on from there."
        ) from None
    terminal.wrote(kept.folder)
    rows = [_row(point, one) for point, one in found.items()]
    seconds = time.perf_counter() - start
    if as_json:
        terminal.emit_json(
            {"model": model, "text": text, "seconds": seconds, "cache": str(kept.folder), "layers": rows}
        )
        return
    cells = [
        (row["site"], row["layer"], row["width"], f"{row['tokens']:,}", _number(row["error"]), _yes(row["is_cached"]))
        for row in rows
    ]
    caption = "error: estimated relative error of the direction of C^-1 k; 0.1 to 0.3 is usual, a dash is unknown."
    terminal.print_table(("site", "layer", "width", "tokens", "error", "was there"), cells, caption=caption)
    for row in rows:
        if text != "own" and (row["error"] is None or (tolerance and row["error"] > tolerance)):
            terminal.say(f"note: layer {row['layer']} has not converged; give it more tokens with --max-tokens.")


def parse_layers(text: str) -> list[int]:
    """Layers from `5`, `4-8` or `1,2,3`, sorted. Raises `ConfigError` for anything else."""
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(
                "Layers are not numbers.", expected="5 or 4-8 or 1,2,3", found=repr(text), where="--layers"
            )
        layers |= set(range(int(first), int(last or first) + 1))
    return sorted(layers)


def _row(point: Point, one: KeyStatistics) -> dict[str, Any]:
    moment = one.moment
    return {
        "site": point.site,
        "layer": point.layer,
        "width": moment.width,
        "tokens": moment.count,
        "error": one.error,
        "mean_squared_norm": float(moment.mean().diagonal(dim1=-2, dim2=-1).sum()),
        "is_cached": one.is_cached,
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"
