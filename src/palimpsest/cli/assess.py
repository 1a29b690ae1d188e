"""`assess` says which facts a model holds wrongly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli import inputs, records, terminal
from palimpsest.cli.thinking import ThinkingOption, ThinkingTokensOption, chosen_thinking
from palimpsest.errors import DataError, unknown_name

if TYPE_CHECKING:
    from palimpsest.evaluation import Assessment

EXAMPLES = (
    "palimpsest assess world --facts facts.csv --wrong to-be-edited.jsonl",
    "palimpsest assess world --facts world-counterfact --answer old --against relations --json",
)
PANEL = terminal.MEASURING

SHOWN = 20


def assess(
    model: inputs.ModelArgument,
    facts: Annotated[
        str, typer.Option("--facts", help="A file of edits, or a data set by name.", show_default=False, metavar="FILE")
    ],
    answer: Annotated[
        str, typer.Option("--answer", help="Which answer of a record is right: `new` (target_new) or `old`.")
    ] = "new",
    against: Annotated[
        str,
        typer.Option(
            "--against",
            help="What it is held against: wrong `answers` to the same prompt, or the prompts of other `relations` with"
            " the same answer, as in CaliNET's paper.",
        ),
    ] = "answers",
    distractors: Annotated[
        Path | None,
        typer.Option("--distractors", help="A JSON object of ids or prompts to lists of wrong answers of your own."),
    ] = None,
    num_contrasts: Annotated[int, typer.Option("--num-contrasts", min=1, help="Most contrasts per fact.")] = 3,
    smoothing: Annotated[float, typer.Option("--smoothing", min=0, help="Added to both probabilities.")] = 0.0,
    threshold: Annotated[
        float, typer.Option("--threshold", help="The lowest score at which the model knows a fact.")
    ] = 1.0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N records.")] = None,
    patch: Annotated[
        list[Path] | None, typer.Option("--patch", help="A patch to apply; repeatable, the first one lowest.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A new JSON file for all scores.")] = None,
    wrong: Annotated[
        Path | None,
        typer.Option(
            "--wrong", help="A new JSONL file of the facts held wrongly: edits, as `edit --edits` takes them."
        ),
    ] = None,
    seed: inputs.SeedOption = 0,
    chat: inputs.RecordedChatOption = None,
    thinking: ThinkingOption = None,
    thinking_tokens: ThinkingTokensOption = None,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Find the facts that a model holds wrongly: is the right answer more probable than wrong ones?"""
    from palimpsest.files import require_absent, require_apart, write_text

    for file in (out, wrong):
        if file is not None:
            require_absent(file)
    require_apart(out, wrong)
    for option, value, known in (("answer", answer, ("new", "old")), ("contrast", against, ("answers", "relations"))):
        if value not in known:
            raise unknown_name(option, value, known)
    own = _distractors(distractors)
    data = records.find_dataset(facts, None)
    for note in records.notes_of(data):
        terminal.log(f"{facts}: {note}")
    patches = inputs.read_patches(patch or [])
    placement = inputs.Placement(device, dtype, device_map, trust_remote_code)
    thinks = chosen_thinking(thinking, thinking_tokens, chat=chat, recorded=True)
    loaded = inputs.load_model(model, placement, chat=inputs.chat_of(patches, chat), thinking=thinks)
    from palimpsest.evaluation import assess as run

    options: dict[str, Any] = {"answer": answer, "against": against, "smoothing": smoothing, "threshold": threshold}
    with loaded.patched(*patches), terminal.progress_bar("asking") as progress:
        found = run(
            loaded,
            data.requests[:limit],
            distractors=own,
            num_contrasts=num_contrasts,
            seed=seed,
            progress=progress,
            **options,
        )
    if out is not None:
        write_text(out, json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n")
        terminal.wrote(out)
    if wrong is not None:
        write_text(wrong, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in _edits(found)))
    if as_json:
        terminal.emit_json(found.to_json())
    else:
        _show(found, [file for file in (out, wrong) if file is not None])


def _distractors(file: Path | None) -> dict[str, list[str]]:
    """Wrong answers of one's own. Raises `DataError` for a file that does not hold them."""
    if file is None:
        return {}
    from palimpsest.files import FileKind

    kind = FileKind(
        DataError,
        "The distractors cannot be read.",
        expected='a JSON object of ids or prompts to lists of texts, such as {"The capital of France is": ["Lyon"]}',
    )
    found = kind.json(file)
    if isinstance(found, dict) and all(
        isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts)
        for texts in found.values()
    ):
        return found
    raise kind.refused(file, json.dumps(found, ensure_ascii=False)[:80])


def _edits(found: Assessment) -> list[dict[str, str]]:
    """The facts held wrongly as records of edits."""
    fields = [
        {"id": one.id, "prompt": one.prompt, "subject": one.subject, "target_new": one.answer} for one in found.wrong
    ]
    return [{name: value for name, value in one.items() if value is not None} for one in fields]


def _show(found: Assessment, files: Sequence[Path]) -> None:
    name = "prompt" if found.settings["against"] == "relations" else "answer"
    rows = []
    for one in found.wrong[:SHOWN]:
        best = max(one.contrasts, key=lambda contrast: contrast.probability)
        likely = (getattr(best, name), f"{best.probability:.3f}")
        rows.append((one.prompt, one.answer, f"{one.probability:.3f}", *likely, f"{one.score:.3g}"))
    if rows:
        terminal.print_table(
            ("prompt", "answer", "probability", f"most probable other {name}", "its own", "score"), rows
        )
    more = len(found.wrong) - SHOWN
    if more > 0:
        terminal.say(f"and {more} more")
    share = terminal.share(len(found.wrong) / len(found.facts) if found.facts else None, digits=1)
    terminal.say(f"{len(found.wrong)} of {len(found.facts)} facts are held wrongly ({share}).")
    if found.unfinished:
        count = terminal.count(len(found.unfinished), "fact")
        terminal.say(f"{count} not assessed: the thought did not end within its tokens (--thinking-tokens).")
    if found.left_out:
        terminal.say(f"{terminal.count(len(found.left_out), 'fact')} left out: nothing to hold them against.")
    for file in files:
        terminal.say(f"Written to {file}.")
