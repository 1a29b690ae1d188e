"""`train` makes an editor: what a method such as mend must learn before it can edit a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.errors import ConfigError

if TYPE_CHECKING:
    from palimpsest.datasets import Dataset
    from palimpsest.methods import TrainableMethod, TrainedEditor
    from palimpsest.requests import EditRequest

EXAMPLES = (
    "palimpsest train mend world --data world-counterfact --out my-mend",
    "palimpsest train mend ./my-model --data zsre-train.json --out my-mend -o layers=[20,21,22]",
    "palimpsest train mend ./my-model --data zsre-train.json --out my-mend -o layers=[20,21,22] --resume",
)
PANEL = terminal.EDITING

CURVE = "curve.svg"


def train(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A method that is trained.", show_default=False)],
    model: inputs.ModelArgument,
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="FILE",
            help="Edits with rephrasings and unrelated prompts: a file, or a data set's name, of which the split "
            "`train` is taken if there is one. Repeatable.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The editor: a new folder.", show_default=False)],
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Train on N edits, drawn with the seed.", show_default=False)
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the training; TOML value. Repeatable."),
    ] = None,
    preset: inputs.PresetOption = "auto",
    seed: inputs.SeedOption = 0,
    chat: inputs.ChatOption = False,
    skip_bad: inputs.SkipBadOption = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint beside --out, if there is one.")
    ] = False,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Train an editor for a model, once, for every edit that is made with it later."""
    from palimpsest.files import require_absent

    require_absent(out)
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if not resume:
        require_absent(checkpoint, remedy="go on with that training with --resume, or remove the file")
    given = inputs.parse_options(option)
    editor = _trainable(method, preset, given)
    requests, notes = _edits(data, limit, seed, skip_bad=skip_bad)
    loaded = inputs.load_model(model, inputs.Placement(device, dtype, device_map, trust_remote_code), chat=chat)
    try:
        with terminal.progress_bar(f"training {method}") as progress:
            trained = editor.train(
                loaded, requests, given, seed=seed, checkpoint=checkpoint, resume=resume, progress=progress
            )
    except KeyboardInterrupt:
        if not checkpoint.exists():
            raise
        raise terminal.Interrupted(f"Interrupted. The state is kept in {checkpoint}; --resume goes on.") from None
    trained.save(out, also=lambda draft: _draw(trained, draft))
    terminal.wrote(out)
    checkpoint.unlink(missing_ok=True)
    result = _result(trained, out, notes)
    if as_json:
        terminal.emit_json(result)
    else:
        _show(result)


def _trainable(name: str, preset: str, options: dict[str, Any]) -> TrainableMethod[Any]:
    """The method to train. Raises `ConfigError` for one that is not trained, and for unknown names and options."""
    made = inputs.make_method(name, preset, None)
    from palimpsest.methods import METHODS, TrainableMethod

    if not isinstance(made, TrainableMethod):
        known = [one for one in METHODS if issubclass(METHODS[one].load(), TrainableMethod)]
        raise ConfigError(
            f"The method {name!r} is not trained beforehand.",
            expected=f"one of {', '.join(known)}",
            found=repr(name),
            remedy=f"use it as it is: palimpsest edit MODEL --method {name}",
        )
    made.Training.parse(options, owner=f"training of {name!r}")
    return made


def _edits(
    sources: Sequence[str], limit: int | None, seed: int, *, skip_bad: bool
) -> tuple[list[EditRequest], list[str]]:
    """The edits of all sources, and what should be said about them."""
    from palimpsest.datasets import training_edits

    requests: list[EditRequest] = []
    notes: list[str] = []
    for source in sources:
        found: Dataset = training_edits(source)
        notes += found.notes
        if found.skipped:
            notes.append(f"{len(found.skipped)} record(s) of {source} were passed over.")
        requests += found.requests
    if skip_bad:
        usable = [one for one in requests if any(probe.kind == "generality" for probe in one.probes)]
        if len(usable) < len(requests):
            notes.append(f"{len(requests) - len(usable)} edit(s) without a rephrasing were passed over.")
        requests = usable
    if limit is not None and limit < len(requests):
        import random

        requests = random.Random(f"limit|{seed}").sample(requests, limit)
    return requests, notes


def _draw(trained: TrainedEditor, folder: Path) -> None:
    from palimpsest.report import save_curve

    title = f"{trained.record.method} on {trained.record.model}"
    save_curve(trained.record.curve, trained.record.best_step, folder / CURVE, title=title)


def _result(trained: TrainedEditor, out: Path, notes: list[str]) -> dict[str, Any]:
    record = trained.record
    best = next(point for point in record.curve if point["step"] == record.best_step)
    return {
        "editor": str(out),
        "method": record.method,
        "model": record.model,
        "preset": record.preset,
        "training": record.training,
        "seed": record.seed,
        "data": record.data,
        "steps": record.curve[-1]["step"],
        "best_step": record.best_step,
        "validation": best["validation"],
        "curve": record.curve,
        "num_parameters": record.num_parameters,
        "editor_bytes": sum(tensor.numel() * tensor.element_size() for tensor in trained.tensors.values()),
        "seconds": record.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "notes": notes,
    }


def _show(result: dict[str, Any]) -> None:
    from palimpsest.showing import size

    names = list(result["validation"])
    rows = [
        [str(point["step"]), *(f"{point['validation'][name]:.3g}" for name in names), f"{point['seconds']:.0f}"]
        for point in result["curve"]
    ]
    terminal.print_table(("step", *names, "seconds"), rows)
    terminal.say(
        f"editor {result['editor']}: {result['num_parameters']:,} parameters, {size(result['editor_bytes'])}; step "
        f"{result['best_step']} of {result['steps']} was best; trained on {result['data']['edits']} edits, validated"
        f" with {result['data']['validation_edits']}"
    )
    for note in result["notes"]:
        terminal.say(f"note: {note}")
    terminal.say(f"next: palimpsest edit {result['model']} --method {result['method']} --editor {result['editor']} ...")
