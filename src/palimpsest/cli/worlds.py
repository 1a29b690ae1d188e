"""`world`: the small knowledge world that comes with the package, its model and its data sets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from palimpsest.cli import inputs, terminal

world = typer.Typer(
    help="The offline world: train its model, audit one, export its data sets.",
    epilog=terminal.examples("palimpsest world export --out world-data", "palimpsest world audit world"),
    no_args_is_help=True,
)


@world.command(
    "train", epilog=terminal.examples("palimpsest world train --out my-world --seed 1"), no_args_is_help=True
)
def train(
    out: Annotated[Path, typer.Option("--out", help="The model: a new folder.", show_default=False)],
    seed: inputs.SeedOption = 0,
    as_json: inputs.JsonOption = False,
) -> None:
    """Train the world's model again: about 15 minutes on one core."""
    from palimpsest.provenance import require_absent

    require_absent(out)
    with terminal.status("loading torch"):
        terminal.quiet_libraries()
        from palimpsest.world import train as run

    result = run(out, seed=seed, progress=sys.stderr.isatty())
    described = {"out": str(out), "seed": seed, **plain(result)}
    if as_json:
        terminal.emit_json(described)
    else:
        terminal.print_table(("of the training", "value"), _flat(described))


@world.command(
    "audit",
    epilog=terminal.examples("palimpsest world audit world", "palimpsest world audit my-world --json"),
    no_args_is_help=True,
)
def audit(model: inputs.ModelArgument, as_json: inputs.JsonOption = False) -> None:
    """Measure what a model knows of the world: by phrasing, by relation, over two hops."""
    loaded = inputs.load_model(model)
    from palimpsest.world import audit as run

    result = plain(run(loaded.module, loaded.tokenizer, progress=sys.stderr.isatty()))
    if as_json:
        terminal.emit_json(result)
    else:
        terminal.print_table(("measure", "value"), _flat(result))


@world.command("export", epilog=terminal.examples("palimpsest world export --out world-data"), no_args_is_help=True)
def export(
    out: Annotated[Path, typer.Option("--out", help="A new folder.", show_default=False)],
    as_json: inputs.JsonOption = False,
) -> None:
    """Write the world's data sets as JSON files in the formats that ZsRE and CounterFact were published in."""
    from palimpsest.provenance import new_folder
    from palimpsest.world import build, counterfact, zsre

    knowledge = build(0)
    counts: dict[str, int] = {}
    with new_folder(out) as draft:
        for name, make in (("counterfact", counterfact), ("zsre", zsre)):
            for split in ("train", "test"):
                records = make(knowledge, split=split)
                file = f"world-{name}-{split}.json"
                counts[file] = len(records)
                (draft / file).write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        terminal.emit_json({"out": str(out), "records": counts})
    else:
        terminal.print_table(("file", "records"), [(str(out / file), count) for file, count in counts.items()])


def plain(value: Any) -> dict[str, Any]:
    """A result object as a dictionary that JSON can hold."""
    from dataclasses import asdict, is_dataclass

    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"not a result: {value!r}")


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict) and set(item) == {"right", "n"}:
            share = f"{100 * item['right'] / item['n']:.1f}%" if item["n"] else "-"
            rows.append((name, f"{share} of {item['n']}"))
        elif isinstance(item, dict):
            rows += _flat(item, f"{name}.")
        else:
            rows.append((name, f"{item:.3f}" if isinstance(item, float) else item))
    return rows
