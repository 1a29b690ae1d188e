"""`world`: the small knowledge world that comes with the package, its model and its data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from palimpsest.cli import inputs, terminal, world_train

world = typer.Typer(
    help="The offline world: train its model, audit one, export its data sets.",
    epilog=terminal.examples("palimpsest world export --out world-data", "palimpsest world audit world"),
    no_args_is_help=True,
)


world.command("train", epilog=world_train.EXAMPLES, no_args_is_help=True)(world_train.train)


@world.command(
    "audit",
    epilog=terminal.examples("palimpsest world audit world", "palimpsest world audit my-world --json"),
    no_args_is_help=True,
)
def audit(
    model: inputs.ModelArgument,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Measure what a model knows of the world: by phrasing, by relation, over two hops."""
    loaded = inputs.load_model(model, inputs.Placement(device, dtype, device_map, trust_remote_code))
    from palimpsest.teaching import audit as run

    with terminal.progress_bar("audit") as progress:
        result = terminal.plain(run(loaded.module, loaded.tokenizer, progress=progress))
    if as_json:
        terminal.emit_json(result)
    else:
        _show_audit(result)


@world.command("export", epilog=terminal.examples("palimpsest world export --out world-data"), no_args_is_help=True)
def export(
    out: Annotated[Path, typer.Option("--out", help="A new folder.", show_default=False)],
    people: inputs.PeopleOption = None,
    seed: Annotated[int, typer.Option("--seed", help="The world's; the bundled models know 0.")] = 0,
    as_json: inputs.JsonOption = False,
) -> None:
    """Write the world's data sets as JSON files in the formats that ZsRE and CounterFact were published in."""
    from palimpsest.files import new_folder
    from palimpsest.world import build, counterfact, zsre

    knowledge = build(seed, people=people)
    counts: dict[str, int] = {}
    with new_folder(out) as draft:
        for name, make in (("counterfact", counterfact), ("zsre", zsre)):
            for split in ("train", "test"):
                records = make(knowledge, split=split)
                file = f"world-{name}-{split}.json"
                counts[file] = len(records)
                (draft / file).write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    terminal.wrote(out)
    if as_json:
        terminal.emit_json({"out": str(out), "records": counts})
    else:
        terminal.print_table(("file", "records"), [(str(out / file), count) for file, count in counts.items()])


def _show_audit(found: dict[str, Any]) -> None:
    """Prints an audit as three tables: by phrasing, by relation, and the causal trace by layer."""
    kinds = {
        "taught": "facts, phrasings read with the subject",
        "held_out": "facts, phrasings never read with the subject",
        "never_met": "facts, phrasings never read with anybody",
        "two_hop_read": "two-hop, sentences read",
        "two_hop_read_held_out": "two-hop, subject's other phrasings read",
        "two_hop_unseen": "two-hop, subjects never read over two hops",
    }
    # Cards written before a kind of question was asked lack it.
    asked = [(text, *_share(found[key])) for key, text in kinds.items() if key in found]
    terminal.print_table(("asked", "right", "of"), asked)
    relations = [*found["by_relation"].items(), *found["two_hop_by_relation"].items()]
    if relations:
        terminal.print_table(("relation", "right", "of"), [(name, *_share(share)) for name, share in relations])
    trace = found["causal_trace"]
    if trace is not None:
        columns = {
            f"{site}, {position.replace('_', ' ')}": layers
            for site, positions in trace["restored"].items()
            for position, layers in positions.items()
        }
        rows = [
            (layer, *(f"{value:.3f}" for value in values))
            for layer, values in enumerate(zip(*columns.values(), strict=True))
        ]
        caption = (
            f"Probability of the right answer with one output put back: clean {trace['clean']:.3f}, "
            f"corrupted {trace['corrupted']:.3f}, {trace['n']} facts."
        )
        terminal.print_table(("layer", *columns), rows, title="causal trace", caption=caption)


def _share(share: dict[str, Any]) -> tuple[str, int]:
    return (f"{100 * share['right'] / share['n']:.1f}%" if share["n"] else "-"), share["n"]
