"""`eval` measures a method on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palimpsest.cli import completing, inputs, records, terminal
from palimpsest.cli.thinking import ThinkingOption, ThinkingTokensOption, chosen_thinking
from palimpsest.errors import ConfigError

if TYPE_CHECKING:
    from palimpsest.datasets import Dataset
    from palimpsest.evaluation import RunRecord

EXAMPLES = (
    "palimpsest eval world --dataset world-counterfact --method ft --protocol single --num-edits 20",
    "palimpsest eval world --dataset facts.jsonl --method lora --protocol sequential --num-edits 100 "
    "--checkpoints 1,10,100 --out runs/lora --resume",
    "palimpsest eval world --dataset counterfact --data counterfact.json --method ft --protocol batch -n 50 --json",
    "palimpsest eval ./my-model --dataset unke --data unke.json --method ft --scoring rouge_l --scoring generate",
)
PANEL = terminal.MEASURING

RUN_FILE = "run.json"


def evaluate(
    model: inputs.ModelArgument,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            "-d",
            help="A name (`palimpsest list datasets`) or a file.",
            show_default=False,
            autocompletion=completing.datasets,
        ),
    ],
    method: inputs.MethodOption,
    data: Annotated[Path | None, typer.Option("--data", help="The file, for a data set that needs one.")] = None,
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            help="`single` (edit, test, undo), `batch` or `sequential`.",
            autocompletion=completing.protocols,
        ),
    ] = "single",
    num_edits: Annotated[
        int | None,
        typer.Option("--num-edits", "-n", min=1, help="How many edits, drawn with the seed; all if left out."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Edits per call. batch: all if left out; sequential: 1."),
    ] = None,
    checkpoints: Annotated[
        str | None, typer.Option("--checkpoints", metavar="N,N,...", help="sequential: when to test. 1,10,100,1000.")
    ] = None,
    editor: inputs.EditorOption = None,
    option: inputs.MethodOptions = None,
    preset: inputs.PresetOption = "auto",
    seed: inputs.SeedOption = 0,
    distracting: Annotated[
        bool, typer.Option("--with-distracting", help="Add probes with the edit in front of an unrelated question.")
    ] = False,
    out_of_scope: Annotated[
        bool, typer.Option("--with-out-of-scope", help="Add other edits' prompts as questions out of scope.")
    ] = False,
    scoring: Annotated[
        list[str] | None,
        typer.Option(
            "--scoring",
            help="How answers become numbers (`palimpsest list metrics`); repeatable. `generate`, `teacher_forced`, "
            "`log_prob` and `exact` if left out.",
            show_default=False,
            autocompletion=completing.scorings,
        ),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            "--measure", help="Also `token-time`, `weight-distance` or `task:NAME@N`; repeatable.", show_default=False
        ),
    ] = None,
    chat: inputs.ChatOption = False,
    thinking: ThinkingOption = None,
    thinking_tokens: ThinkingTokensOption = None,
    skip_bad: inputs.SkipBadOption = False,
    max_new_tokens: inputs.AnswerTokensOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="A folder for the record; makes the run resumable.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    log_with: inputs.LogWithOption = None,
    log_dir: inputs.LogDirOption = Path("tracking"),
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Measure a method: reliability, generality, locality, portability, time and memory."""
    from palimpsest.evaluation import DEFAULT_SCORINGS, find_scoring, make_protocol

    scorings = tuple(dict.fromkeys(scoring or DEFAULT_SCORINGS))
    for name in scorings:
        find_scoring(name)
    chosen = make_protocol(protocol, batch_size=batch_size, checkpoints=_checkpoints(checkpoints))
    check_measures(measure or ())
    require_trackers(log_with)
    if resume and out is None:
        raise ConfigError("There is nothing to resume.", expected="--out DIR together with --resume", found="no --out")
    if out is not None and not resume:
        from palimpsest.files import require_absent

        if (out / RUN_FILE).is_file():
            require_absent(out, remedy="go on with that run with --resume, or choose another name")
        require_absent(out)
    thinks = chosen_thinking(thinking, thinking_tokens)
    own_seed = None if "seed" in inputs.parse_options(option) else seed
    trained = None if editor is None else str(editor)
    maker = inputs.make_method(method, preset, option, seed=own_seed, editor=trained)
    found = records.find_dataset(dataset, data, skip_bad=skip_bad)
    edits = with_derived(found, out_of_scope=out_of_scope, distracting=distracting)
    if num_edits is not None:
        edits.sample(num_edits, seed)
    beyond = [point for point in _checkpoints(checkpoints) or () if point > (num_edits or len(edits))]
    if beyond:
        shown = ", ".join(map(str, beyond))
        terminal.log(f"note: there are {num_edits or len(edits)} edits, so nothing is tested after {shown}.")
    placement = inputs.Placement(device, dtype, device_map, trust_remote_code)
    loaded = inputs.load_model(model, placement, chat=chat, thinking=thinks)
    from palimpsest.evaluation import evaluate as run

    try:
        with terminal.progress_bar(f"{method}, {protocol}") as progress:
            record = run(
                loaded,
                maker,
                edits,
                protocol=chosen,
                num_edits=num_edits,
                seed=seed,
                scorings=scorings,
                out=out,
                resume=resume,
                max_new_tokens=max_new_tokens,
                measures=measure or (),
                progress=progress,
            )
    except KeyboardInterrupt:
        if out is None:
            raise
        raise terminal.Interrupted(f"Interrupted. Finished edits are kept in {out}; --resume goes on.") from None
    if out is not None:
        terminal.wrote(out)
    send([record], log_with, log_dir)
    if as_json:
        terminal.emit_json(record.to_json())
    else:
        terminal.say(record.table())
        for note in (*records.notes_of(edits), *record.notes):
            terminal.say(f"note: {note}")
        if out is not None:
            terminal.say(f"next: palimpsest report {out} --out report.html")
    if record.status != "ok":
        terminal.log(f"The run {record.status}: {record.error}")
        raise typer.Exit(2)


def require_trackers(names: Sequence[str] | None) -> None:
    """Raises `ConfigError` for a tracker that is unknown or not installed, before anything is computed."""
    if names:
        from palimpsest.report import require_trackers as require

        require(names)


def send(records: Sequence[RunRecord], trackers: Sequence[str] | None, directory: Path) -> None:
    """Sends records to the trackers of `--log-with`."""
    if trackers:
        from palimpsest.report import log_records

        log_records(records, trackers, directory)
        terminal.log(f"sent to {', '.join(trackers)}: {len(records)} run{'s' if len(records) != 1 else ''}")


def check_measures(names: Sequence[str]) -> None:
    """Raises `ConfigError` for an unknown measure, before a model is loaded."""
    from palimpsest.evaluation import find_measure

    for name in names:
        find_measure(name)


def with_derived(data: Dataset, *, out_of_scope: bool, distracting: bool) -> Dataset:
    """The data set with the kinds of locality that were asked for, where it lacks them."""
    from palimpsest.datasets import with_distracting, with_out_of_scope

    data = with_out_of_scope(data) if out_of_scope else data
    return with_distracting(data) if distracting else data


def _checkpoints(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(
            "The checkpoints are not numbers of edits.",
            expected="such as 1,10,100",
            found=repr(text),
            where="--checkpoints",
        )
    return tuple(sorted({int(part) for part in parts}))
