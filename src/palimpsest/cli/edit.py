"""`edit` makes a patch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli import completing, inputs, records, terminal
from palimpsest.cli.thinking import ThinkingOption, ThinkingTokensOption, chosen_thinking
from palimpsest.errors import ConfigError
from palimpsest.files import expanded

if TYPE_CHECKING:
    from palimpsest.methods import EditOutcome, Method
    from palimpsest.models import EditableModel
    from palimpsest.requests import EditRequest

EXAMPLES = (
    "palimpsest edit world --method f-learning-lora-ft --edits facts.csv --out my-patch",
    'palimpsest edit world --method ft --prompt "The capital of France is" --subject France --target-new Lyon '
    "--target-old Paris --out lyon",
    "palimpsest edit world --method ft-l --edits facts.csv --out my-patch -o layers=[3] -o learning_rate=1e-3",
)
PANEL = terminal.EDITING

SHOWN_EDITS = 20


def edit(
    model: inputs.ModelArgument,
    out: Annotated[Path, typer.Option("--out", help="The patch: a new folder.", show_default=False)],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            help="`auto` tests each fact and tries until it holds; see `palimpsest list methods`.",
            autocompletion=completing.methods,
        ),
    ] = "auto",
    edits: Annotated[
        Path | None, typer.Option("--edits", help="A file of edits: .csv, .tsv, .jsonl or .json.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="One edit instead of a file: its prompt; {} stands for the subject.")
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option("--subject", help="The subject of the fact; guessed from the prompt if left out, none if empty."),
    ] = None,
    target_new: Annotated[str | None, typer.Option("--target-new", help="The answer it should get.")] = None,
    target_old: Annotated[str | None, typer.Option("--target-old", help="The answer it gets today.")] = None,
    option: inputs.MethodOptions = None,
    keep: Annotated[
        float | None,
        typer.Option(
            "--keep", min=0, max=1, help="With `auto`: share of other answers that must stay.", show_default="0.95"
        ),
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", min=0, help="With `auto`: time for all of its attempts.")
    ] = None,
    preset: inputs.PresetOption = "auto",
    seed: inputs.SeedOption = 0,
    chat: inputs.ChatOption = False,
    thinking: ThinkingOption = None,
    thinking_tokens: ThinkingTokensOption = None,
    skip_bad: inputs.SkipBadOption = False,
    editor: inputs.EditorOption = None,
    forget_patch: Annotated[
        Path | None,
        typer.Option("--forget-patch", help="A patch that taught the old answers, for the f-learning methods."),
    ] = None,
    patch: Annotated[
        list[Path] | None, typer.Option("--patch", help="A patch to edit on top of; repeatable, the first one lowest.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            help="A file in which a method such as alphaedit carries on what it has edited before: read if it is"
            " there, written afterwards.",
        ),
    ] = None,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    max_new_tokens: inputs.AnswerTokensOption = None,
    as_json: inputs.JsonOption = False,
) -> None:
    """Make a patch that lets a model give new answers. The model itself is not changed. Exit 1 when no edit holds."""
    from palimpsest.files import require_absent, require_apart

    require_absent(out)
    if state is not None:
        require_absent(state, overwrite=True)
    require_apart(out, state)
    inline = records.inline_edit(prompt, subject, target_new, target_old)
    requests, notes = _requests(edits, inline, subject, skip_bad=skip_bad)
    forget = None if forget_patch is None else str(forget_patch)
    trained = None if editor is None else str(editor)
    maker = inputs.make_method(
        method, preset, option, seed=seed, forget_patch=forget, editor=trained, keep=keep, max_seconds=max_seconds
    )
    maker.check(requests)
    carried = _carried(maker, state)
    thinks = chosen_thinking(thinking, thinking_tokens)
    below = inputs.read_patches(patch or [])
    placement = inputs.Placement(device, dtype, device_map, trust_remote_code)
    loaded = inputs.load_model(model, placement, chat=chat, thinking=thinks)

    with loaded.patched(*below):
        with terminal.progress_bar(f"editing with {method}") as progress:
            outcome = maker.edit(loaded, requests, carried, progress=progress)
        outcome.save(out, state=state)
        terminal.wrote(out)
        before, after = _replies(loaded, requests, outcome, max_new_tokens)
    result = _result(loaded, maker, requests, before, after, outcome, out, notes)
    if as_json:
        terminal.emit_json(result)
    else:
        _show(result)
    if not any(one["is_right"] for one in result["edits"]):
        terminal.log("No edit holds: try other options (-o), another --preset or another --method.")
        raise typer.Exit(1)


def _replies(
    model: EditableModel, requests: Sequence[EditRequest], outcome: EditOutcome, max_new_tokens: int | None
) -> tuple[list[str], list[str]]:
    """Returns the model's replies to the prompts without and with the patch; reuses those that the method recorded."""
    if outcome.diagnostics.replies is not None and max_new_tokens is None:
        return outcome.diagnostics.replies
    from palimpsest.models import replies_to

    with terminal.status("asking the model"):
        before = replies_to(model, requests, max_new_tokens)
        with model.patched(outcome.patch):
            return before, replies_to(model, requests, max_new_tokens)


def _carried(editor: Method[Any], state: Path | None) -> Any:
    """The state in a file, nothing if there is none yet. Raises `ConfigError` for a method that carries nothing."""
    if state is None:
        return None
    if editor.State is None or not editor.carries_state:
        raise ConfigError(
            f"The method {editor.name!r} keeps no state between edits.",
            expected="a sequential method, such as alphaedit or ultraedit",
            found="--state",
            remedy="leave --state out" + (", or say -o history=true" if editor.State is not None else ""),
        )
    from palimpsest.methods import settle_state

    settle_state(state)
    return editor.State.load(state) if state.exists() else None


def _requests(
    file: Path | None, inline: EditRequest | None, subject: str | None, *, skip_bad: bool
) -> tuple[list[EditRequest], list[str]]:
    if (file is None) == (inline is None):
        raise ConfigError(
            "There are no edits." if file is None else "Edits are given twice.",
            expected="either --edits FILE, or one edit as --prompt, --subject, --target-new, --target-old",
            found="neither" if file is None else "both",
        )
    if file is not None:
        return records.read_edits(expanded(file), skip_bad=skip_bad)
    return ([inline], records.remarks_on(inline, subject)) if inline else ([], [])


def _result(
    model: EditableModel,
    editor: Method[Any],
    requests: Sequence[EditRequest],
    before: Sequence[str],
    after: Sequence[str],
    outcome: EditOutcome,
    out: Path,
    notes: list[str],
) -> dict[str, Any]:
    from palimpsest.batches import originals
    from palimpsest.evaluation import verified

    found, patch = outcome.diagnostics, outcome.patch
    outcomes = verified(model, requests, before, after)
    tests = {
        fact["id"]: {key: fact[key] for key in ("held_before", "elsewhere", "kept", "why")}
        for fact in found.facts.get("facts", [])
    }
    return {
        "patch": str(out),
        "method": editor.name,
        "model": model.name,
        "preset": patch.manifest.preset,
        "config": patch.manifest.config,
        "seed": patch.manifest.seed,
        "edits": [
            {
                "id": request.id,
                "prompt": request.prompt,
                "subject": request.subject,
                "target_new": request.target_new,
                "target_old": request.target_old,
                **one.to_dict(),
                "is_right": one.holds,
                **tests.get(original.id, {}),
            }
            for request, original, one in zip(requests, originals(requests), outcomes, strict=True)
        ],
        "touched": patch.touched(),
        "num_parameters": patch.num_parameters,
        "patch_bytes": patch.num_bytes,
        "seconds": found.seconds,
        "peak_memory_bytes": found.peak_memory_bytes,
        "notes": [*notes, *found.notes],
    }


def _show(result: dict[str, Any]) -> None:
    from palimpsest.evaluation import VERDICT_WORDS
    from palimpsest.showing import size

    edits = result["edits"]
    # `auto` has tested more than the prompts.
    more = [one for one in ("elsewhere", "kept") if edits and one in edits[0]]
    rows = [
        (one["prompt"], one["before"], one["after"], one["target_new"], VERDICT_WORDS[one["verdict"]])
        + tuple("{} of {}".format(*one[key]) if one[key][1] else "not asked" for key in more)
        for one in edits[:SHOWN_EDITS]
    ]
    terminal.print_table(("prompt", "before", "after", "wanted", "ok", *more), rows)
    if len(edits) > SHOWN_EDITS:
        terminal.say(f"and {len(edits) - SHOWN_EDITS} more edits; --json shows all of them")
    right = sum(one["is_right"] for one in edits)
    touched = result["touched"]
    terminal.say(f"{right} of {len(edits)} edited prompts get the new answer.")
    for line in _otherwise(edits):
        terminal.say(line)
    terminal.say(
        f"patch {result['patch']}: {result['num_parameters']:,} numbers, {size(result['patch_bytes'])}, "
        f"in {len(touched)} tensor{'s' if len(touched) != 1 else ''}; {result['seconds'].get('total', 0):.1f} s"
    )
    preset = result["preset"]
    terminal.say(f"preset: {preset}" if preset else "preset: none for this model, so the method's own defaults")
    for note in result["notes"]:
        terminal.say(f"note: {note}")
    if right:
        terminal.say(f"next: palimpsest verify {result['model']} {result['patch']}")


def _otherwise(edits: Sequence[dict[str, Any]]) -> list[str]:
    """Describes the edits that do not hold and the answers that do not end, one line per kind."""
    found = Counter(one["verdict"] if one["verdict"] != "other answer" else _other_answer(one) for one in edits)
    lines = {
        "in other words": "state the new answer in other words, not where the answer begins",
        "old answer": "still give the old answer",
        "babbles": "make the model repeat itself, so the edit is too strong",
        "as before": "answer as before the edit, not with the new answer",
        "neither": "give another answer than before the edit, neither the new one nor the old one",
        "changed": "give another answer than before the edit, but not the new one",
        "anyway": "are followed by a repetition, as they are without the edit",
        "still thinking": "have a thought that does not end within its tokens, and so no answer (--thinking-tokens)",
        "named": "name the old answer in the thought",
    }
    found["anyway"] = sum(one["repeats_anyway"] for one in edits)
    found["named"] = sum(bool(one.get("names_old")) for one in edits)
    return [f"{found[kind]} of {len(edits)} {words}." for kind, words in lines.items() if found[kind]]


def _other_answer(edit: dict[str, Any]) -> str:
    """Which kind of wrong answer: only where an old answer was given can one be neither the new nor the old."""
    if edit["before"] == edit["after"]:
        return "as before"
    return "changed" if edit["target_old"] is None else "neither"
