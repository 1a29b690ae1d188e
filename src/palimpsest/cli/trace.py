"""`trace` shows which states of a model carry a fact, and which layers to edit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli import inputs, records, terminal
from palimpsest.errors import ConfigError

if TYPE_CHECKING:
    from palimpsest.models import EditableModel
    from palimpsest.requests import EditRequest
    from palimpsest.tracing import AverageTrace, CausalTrace, TraceOptions

EXAMPLES = (
    'palimpsest trace world --prompt "The capital city of Japan is" --subject Japan --out japan',
    "palimpsest trace world --facts world-counterfact --num 20 --out traces",
)
PANEL = terminal.LOOKING

SEVERAL = 5
"""Layers that MEMIT and its kin edit at once."""


def trace(
    model: inputs.ModelArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", help="One prompt, up to its answer.")] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", help="The subject of the fact; it occurs in the prompt.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="The answer to trace; the model's own if left out.")
    ] = None,
    facts: Annotated[
        str | None, typer.Option("--facts", help="A file of edits or a data set, for averages over many prompts.")
    ] = None,
    num: Annotated[
        int,
        typer.Option(
            "--num", "-n", min=1, help="How many facts to trace, of those that the model knows, drawn by --seed."
        ),
    ] = 20,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Draws of the noise per prompt.")] = 10,
    noise: Annotated[
        float, typer.Option("--noise", help="Its standard deviation, in those of the subjects' embeddings.")
    ] = 3.0,
    window: Annotated[
        int | None, typer.Option("--window", min=1, help="Layers in a window; 10, fewer in a shallow model.")
    ] = None,
    seed: inputs.SeedOption = 0,
    chat: inputs.ChatOption = False,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    out: Annotated[Path | None, typer.Option("--out", help="A new folder for trace.json and trace.png.")] = None,
    as_json: inputs.JsonOption = False,
) -> None:
    """Trace which states carry a fact: corrupt the subject, put one state back, look at the answer."""
    from palimpsest.files import require_absent

    if out is not None:
        require_absent(out)
    request = _one_request(prompt, subject, target, facts)
    requests = _drawn(facts, seed) if facts else []
    with terminal.status("loading torch"):
        terminal.quiet_libraries()
        from palimpsest.tracing import TraceOptions

        options = TraceOptions.parse(
            {"samples": samples, "noise": noise, "window": window, "seed": seed}, owner="causal trace"
        )
    loaded = inputs.load_model(model, inputs.Placement(device, dtype, device_map, trust_remote_code), chat=chat)
    found, single, recommended = _run(loaded, request, target, requests, num, options)
    if out is not None:
        _write(out, found, single, recommended)
        terminal.wrote(out)
    if as_json:
        terminal.emit_json({"trace": found.model_dump(), "recommended": recommended})
    else:
        _show(found, recommended, out)


def _one_request(prompt: str | None, subject: str | None, target: str | None, facts: str | None) -> EditRequest | None:
    given = {"--prompt": prompt, "--subject": subject, "--target": target}
    named = [name for name, value in given.items() if value is not None]
    if facts is not None and not named:
        return None
    if facts is not None or prompt is None or subject is None:
        raise ConfigError(
            "There is nothing to trace." if facts is None and not named else "What to trace is not clear.",
            expected="either --prompt and --subject, or --facts FILE",
            found=", ".join(named + ["--facts"] * (facts is not None)) or "neither",
        )
    from palimpsest.requests import EditRequest

    # The request says what the model answers today; a new answer plays no part in a trace.
    return EditRequest(prompt, "another answer", subject=subject, target_old=target)


def _drawn(facts: str, seed: int) -> list[EditRequest]:
    """All facts in an order drawn by the seed: the first of a file are often all of one kind."""
    found = records.find_dataset(facts, None)
    return list(found.sample(len(found.requests), seed).requests)


def _run(
    model: EditableModel,
    request: EditRequest | None,
    target: str | None,
    requests: list[EditRequest],
    num: int,
    options: TraceOptions,
) -> tuple[CausalTrace | AverageTrace, list[CausalTrace], dict[str, Any]]:
    """The trace to show, the traces it is made of, and the layers it recommends."""
    from palimpsest.tracing import layers_ending_at, recommended_layers, trace_facts, trace as run  # noqa: I001

    found: CausalTrace | AverageTrace
    with terminal.progress_bar("tracing") as progress:
        if request is None:
            found, single = trace_facts(model, requests, num_facts=num, options=options, progress=progress)
            requests = [one for one in requests if one.prompt in set(found.prompts)]
        else:
            found = run(model, request.prompt, str(request.subject), target, options=options, progress=progress)
            single, requests = [found], [request]
        layers, record = recommended_layers(model, requests, seed=options.seed, options=options, progress=progress)
    several = layers_ending_at(
        layers[0], min(SEVERAL, (model.num_layers + 1) // 2), record["first_layer"], model.num_layers
    )
    return found, single, {**record, "layer": layers[0], "several_layers": several}


def _write(
    out: Path, found: CausalTrace | AverageTrace, single: list[CausalTrace], recommended: dict[str, Any]
) -> None:
    from palimpsest.files import new_folder
    from palimpsest.report import save_trace

    with terminal.status("drawing"), new_folder(out) as draft:
        (draft / "trace.json").write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (draft / "layers.json").write_text(json.dumps(recommended, indent=1) + "\n", encoding="utf-8")
        if found not in single:
            lines = "".join(one.model_dump_json() + "\n" for one in single)
            (draft / "traces.jsonl").write_text(lines, encoding="utf-8")
        save_trace(found, draft / "trace.png")


def _show(found: CausalTrace | AverageTrace, recommended: dict[str, Any], out: Path | None) -> None:
    from palimpsest.report import labelled_rows
    from palimpsest.tracing import CausalTrace

    rows, is_one = labelled_rows(found), isinstance(found, CausalTrace)
    table = [
        (label, *(_best(rows[kind][label], found.corrupted if is_one else 0.0) for kind in rows))
        for label in rows["hidden"]
    ]
    terminal.print_table(
        ("token" if is_one else "tokens", *(f"{kind} (layer)" for kind in rows)),
        table,
        caption=f"{'Probability' if is_one else 'Gain in probability'} with the best state of the kind put back.",
    )
    what = f"answer {found.answer.strip()!r}" if isinstance(found, CausalTrace) else f"{len(found.prompts)} prompts"
    terminal.say(
        f"{what}: probability {found.clean:.3f}, {found.corrupted:.3f} with the subject corrupted; windows of "
        f"{terminal.count(found.window, 'layer')}"
    )
    for note in _notes(found):
        terminal.say(f"note: {note}")
    several = recommended["several_layers"]
    terminal.say(
        f"layer to edit: {recommended['layer']}; for methods of several layers {several[0]} to {several[-1]}"
        f" ({recommended['rule']})"
    )
    if out is not None:
        terminal.say(f"written: {out}")


def _notes(found: CausalTrace | AverageTrace) -> list[str]:
    from palimpsest.tracing import CausalTrace

    if not isinstance(found, CausalTrace):
        return [f"{terminal.count(number, 'fact')} passed over: {reason}" for reason, number in found.skipped.items()]
    return [] if found.is_first else ["the model does not give this answer by itself, so there is little to trace"]


def _best(row: list[float], nothing: float) -> str:
    """The largest value with its layer, or a dash where nothing is gained."""
    layer = max(range(len(row)), key=row.__getitem__)
    return f"{row[layer]:.3f} ({layer})" if row[layer] > nothing + 5e-4 else "-"
