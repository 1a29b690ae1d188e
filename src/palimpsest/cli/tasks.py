"""`tasks` asks other abilities, before and after patches."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from palimpsest.cli import inputs, terminal

EXAMPLES = (
    "palimpsest tasks world --task world --patch my-patch",
    "palimpsest tasks gpt2-xl --task hellaswag --task gsm8k --limit 200 --patch my-patch",
)
PANEL = terminal.MEASURING

WORLD = "world"


def tasks(
    model: inputs.ModelArgument,
    task: Annotated[
        list[str],
        typer.Option(
            "--task", "-t", help="A task of lm-evaluation-harness, or `world`; repeatable.", show_default=False
        ),
    ],
    patch: Annotated[
        list[Path] | None, typer.Option("--patch", help="A patch to apply; repeatable, the first one lowest.")
    ] = None,
    include: Annotated[Path | None, typer.Option("--include", help="A folder with task files of your own.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most N questions per task.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="Solved examples first.", show_default="the task's own")
    ] = None,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Measure other abilities with lm-evaluation-harness, before and after patches."""
    patches = inputs.read_patches(patch or [])
    loaded = inputs.load_model(model, inputs.Placement(device, dtype, device_map, trust_remote_code))
    from palimpsest.evaluation import run_tasks

    with tempfile.TemporaryDirectory() as scratch, terminal.progress_bar("asking") as progress:
        names, folder = _with_world(task, include, Path(scratch))
        options: dict[str, Any] = {"include": folder, "limit": limit, "num_fewshot": num_fewshot, "progress": progress}
        before = run_tasks(loaded, names, **options)
        after = {}
        if patches:
            with loaded.patched(*patches):
                after = run_tasks(loaded, names, **options)
    if as_json:
        folders = [str(one) for one in patch or []]
        terminal.emit_json({"model": model, "patches": folders, "before": before, "after": after or None})
        return
    rows = [
        (name, metric, f"{value:.3f}", *([f"{after[name][metric]:.3f}"] if after else []))
        for name, metrics in before.items()
        for metric, value in metrics.items()
    ]
    terminal.print_table(("task", "metric", "before", "after") if after else ("task", "metric", "value"), rows)


def _with_world(task: list[str], include: Path | None, scratch: Path) -> tuple[list[str], Path | None]:
    """The names as the harness knows them; `world` stands for the tasks of the bundled world, made on the spot."""
    if WORLD not in task:
        return task, include
    from palimpsest.world import build, write_tasks

    names = [name for name in task if name != WORLD] + list(write_tasks(build(), scratch))
    for file in sorted(include.glob("*.yaml")) if include is not None else ():
        (scratch / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    return names, scratch
