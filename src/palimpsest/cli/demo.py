"""`demo`: the whole story on the bundled model: edit, look, compare every method, one page to read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.cli.comparing import Comparison, Job, compare
from palimpsest.errors import DataError

if TYPE_CHECKING:
    from palimpsest.models import EditableModel
    from palimpsest.report import ReportRun
    from palimpsest.requests import EditRequest

EXAMPLES = (
    "palimpsest demo",
    "palimpsest demo --out demo --overwrite --num-edits 20",
)
PANEL = terminal.EDITING

DATASET = "world-counterfact"
PAGE, RUNS = "report.html", "runs"
_PROBES_PER_KIND = 3
_NEUTRAL_SENTENCES = 8
_SHOWN_EDITS = 4
_ASKED_AT_ONCE = 40
_WIDE = 150


def demo(
    out: Annotated[Path, typer.Option("--out", help="A new folder for the page and the records.")] = Path("demo"),
    overwrite: inputs.OverwriteOption = False,
    num_edits: Annotated[int, typer.Option("--num-edits", "-n", min=1, help="How many facts.")] = 10,
    seed: inputs.SeedOption = 0,
    model: Annotated[str, typer.Option("--model", help="A model that knows the world.")] = "world",
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Edit facts of the bundled model with every method, and compare what became of everything else."""
    from palimpsest.files import new_folder, require_absent, require_replaceable

    replacing = (PAGE, RUNS) if overwrite else None
    if replacing:
        require_replaceable(out, replacing)
    else:
        require_absent(out)
    start = time.perf_counter()
    placement = inputs.Placement(device, dtype, device_map, trust_remote_code)
    loaded = inputs.load_model(model, placement)
    with new_folder(out, replacing=replacing) as draft:
        with terminal.status("choosing facts that the model knows"):
            requests, neutral = choose_facts(loaded, num_edits, seed)
        terminal.log(
            f"Editing {terminal.count(len(requests), 'fact')} of {model!r} with every method, one fact at a time."
        )
        with terminal.progress_bar("demo") as progress:
            job = Job(model, DATASET, tuple(requests), tuple(neutral), seed, None, draft / RUNS, placement)
            found = compare(loaded, job, progress)
        if not found.records:
            first = next(iter(found.left_out.items()), ("none", "no method is registered"))
            raise DataError("No method could run.", expected="at least one that can", found=f"{first[0]}: {first[1]}")
        with terminal.status("drawing the page"):
            from palimpsest.report import build_report

            build_report(found.records, draft / PAGE)
    terminal.wrote(out)
    seconds = time.perf_counter() - start
    if as_json:
        terminal.emit_json(
            {
                "model": model,
                "edits": [_plain(request) for request in requests],
                "records": [record.to_json() for record in found.records],
                "left_out": found.left_out,
                "report": str(out / PAGE),
                "num_workers": found.num_workers,
                "seconds": seconds,
            }
        )
        return
    _show(found, requests)
    terminal.say(f"\nEvery answer of every method: {out / PAGE}   ({seconds:.0f} s)")


def choose_facts(model: EditableModel, num_edits: int, seed: int) -> tuple[list[EditRequest], Sequence[str]]:
    """Returns edits of the world's test split whose old answers the model gives, and neutral sentences.

    Raises `DataError` when the model knows fewer than that.
    """
    from palimpsest.answers import gives_old
    from palimpsest.datasets import dataset
    from palimpsest.models import AnswerRoom, written_answers

    data = dataset(DATASET, split="test").with_probes(_PROBES_PER_KIND)
    drawn = data.sample(len(data.requests), seed).requests
    known: list[EditRequest] = []
    for first in range(0, len(drawn), _ASKED_AT_ONCE):
        chunk = drawn[first : first + _ASKED_AT_ONCE]
        room = AnswerRoom.of(model.tokenizer, (request.target_old or "" for request in chunk))
        answers = written_answers(model, [request.prompt for request in chunk], room)
        known += [
            request
            for request, answer in zip(chunk, answers, strict=True)
            if gives_old(request, answer, is_chat=model.chat is not None)
        ]
        if len(known) >= num_edits:
            break
    if len(known) < num_edits:
        raise DataError(
            "The model does not know enough facts of the world.",
            expected=f"{num_edits} facts of the test split that it answers rightly",
            found=str(len(known)),
            where=f"model {model.name!r}",
            remedy="ask for fewer with --num-edits, or take the bundled model",
        )
    return known[:num_edits], data.neutral_text[:_NEUTRAL_SENTENCES]


def _plain(request: EditRequest) -> dict[str, Any]:
    return {key: value for key, value in request.to_dict().items() if key != "probes"}


def _show(found: Comparison, requests: Sequence[EditRequest]) -> None:
    from palimpsest.report import label_runs

    runs = label_runs(found.records)
    shown = max(runs, key=_overall)
    rows = [
        (
            probe.prompt,
            probe.shown_before() or "",
            probe.shown_after() or "",
            probe.expected or "",
            terminal.verdict(_is_right(probe)),
        )
        for probe in shown.record.probes
        if probe.kind == "reliability"
    ][:_SHOWN_EDITS]
    terminal.print_table(
        ("prompt", "before", "after", "wanted", "ok"),
        rows,
        title=f"{len(rows)} of {len(requests)} edits, by {shown.label}"
        if len(requests) > 1
        else f"The edit, by {shown.label}",
    )
    terminal.say()
    _show_methods(runs, found.num_workers)
    for name, reason in found.left_out.items():
        terminal.log(f"left out: {name}: {reason}")


def _show_methods(runs: Sequence[ReportRun], num_workers: int) -> None:
    from palimpsest.report import LOWER_IS_BETTER, label, metrics
    from palimpsest.showing import size

    is_wide = terminal.console().width >= _WIDE
    if is_wide:
        names = [name for name in metrics(runs, "generate") if name not in LOWER_IS_BETTER]
        heads = [label(name).replace(": ", ":\n") for name in names]
        values = [[run.mean("generate", name) for name in names] for run in runs]
    else:
        families = ("reliability", "generality", "locality", "portability")
        heads = list(families)
        values = [[run.family_mean("generate", family) for family in families] for run in runs]
    rows = [
        (
            run.label,
            *(terminal.share(mean) for mean in means),
            terminal.share(run.mean("generate", "old_answer_rate")),
            terminal.share(run.mean("generate", "degenerate_rate")),
            "-" if run.record.seconds_per_edit is None else f"{run.record.seconds_per_edit:.2f}",
            size(run.record.patch_bytes),
        )
        for run, means in zip(runs, values, strict=True)
    ]
    kinds = "" if is_wide else " Locality and portability are means over their kinds."
    spec = runs[0].record.specification
    terminal.print_table(
        ("method", *heads, "old\nanswer", "babble", "seconds\nper edit", "patch"),
        rows,
        title="What became of the edits, and of everything else",
        caption=f"Free generation, protocol single, {terminal.count(spec.num_edits, 'edit')}, seed {spec.seed}.{kinds} "
        "Old answer: still given; babble: repeats itself; lower is better. "
        f"Timed with {terminal.count(num_workers, 'method')} at work at a"
        " time. Intervals stand in the page.",
    )


def _overall(run: ReportRun) -> float:
    families = ("reliability", "generality", "locality", "portability")
    return sum(run.family_mean("generate", family) or 0.0 for family in families)


def _is_right(probe: Any) -> bool | None:
    value = probe.values.get("generate")
    return None if value is None else value == 1
