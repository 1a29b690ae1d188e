"""`verify` runs a patch's own tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.cli.thinking import ThinkingOption, ThinkingTokensOption, chosen_thinking
from palimpsest.errors import DataError

if TYPE_CHECKING:
    from palimpsest.evaluation import ProbeResult, RunRecord
    from palimpsest.patches import Patch
    from palimpsest.requests import EditRequest

EXAMPLES = (
    "palimpsest verify world my-patch",
    "palimpsest verify world my-patch --min-generality 0.8 --min-locality 0.9",
)
PANEL = terminal.MEASURING

LARGEST_DEGENERATE_SHARE = 0.02
"""Of all prompts asked, at which an edited model may babble where it did not before; at no edited prompt."""
_SHOWN_FAILURES = 20
_HOW = {
    "in other words": "in other words",
    "babbles": "babbles",
    "old answer": "old answer",
    "other answer": "failed",
}


def verify(
    model: inputs.ModelArgument,
    patch: Annotated[Path, typer.Argument(metavar="PATCH", help="A patch folder.", show_default=False)],
    min_generality: Annotated[
        float | None, typer.Option("--min-generality", min=0, max=1, help="Fail below this share of rephrasings.")
    ] = None,
    min_locality: Annotated[
        float | None,
        typer.Option("--min-locality", min=0, max=1, help="Fail when any kind of locality is below this share."),
    ] = None,
    chat: inputs.RecordedChatOption = None,
    thinking: ThinkingOption = None,
    thinking_tokens: ThinkingTokensOption = None,
    max_new_tokens: inputs.AnswerTokensOption = None,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Run the tests that a patch carries with it.

    Exit 1 when an edited prompt does not get its new answer, or when the model babbles where it did not before: at an
    edited prompt, or at more than 2% of all prompts asked.
    """
    [read] = inputs.read_patches([patch])
    if not read.manifest.edits:
        raise DataError(
            "The patch carries no edits, so there is nothing to verify.",
            expected="a patch that `palimpsest edit` made",
            found=f"{read.manifest.label!r}, without edits in its manifest",
            where=str(patch),
        )
    thinks = chosen_thinking(thinking, thinking_tokens, chat=chat, recorded=True)
    placement = inputs.Placement(device, dtype, device_map, trust_remote_code)
    loaded = inputs.load_model(model, placement, chat=inputs.chat_of([read], chat), thinking=thinks)
    from palimpsest.datasets import Dataset
    from palimpsest.evaluation import Batch, evaluate
    from palimpsest.requests import EditRequest

    requests = tuple(EditRequest.from_dict(edit) for edit in read.manifest.edits)
    with terminal.progress_bar("verifying") as progress:
        record = evaluate(
            loaded,
            StoredPatch(read),
            Dataset(name=f"the tests of {patch}", requests=requests, skipped=(), notes=()),
            protocol=Batch(),
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
    terminal.wrote("the exit code's verdict")
    result = _result(
        model, patch, record, read.manifest.edits, {"generality": min_generality, "locality": min_locality}
    )
    if as_json:
        terminal.emit_json(result)
    else:
        _show(result)
    if not result["passed"]:
        raise typer.Exit(1)


@dataclass(frozen=True)
class StoredPatch:
    """An editor whose edit has been made already: what evaluation needs to score a patch from disk."""

    patch: Patch
    State: ClassVar[None] = None

    @property
    def name(self) -> str:
        return self.patch.manifest.method or self.patch.manifest.label

    def resolve(self, _model: Any) -> tuple[Any, None]:
        """No options of its own: the patch's manifest has them."""
        from palimpsest.methods import MethodConfig

        return MethodConfig(seed=self.patch.manifest.seed or 0), None

    def check(self, _requests: Sequence[Any]) -> None:
        """Nothing to check: the edit has been made."""

    def training_cost(self, _model: Any) -> dict[str, float]:
        """Not on record in a patch."""
        return {}

    def edit(self, _model: Any, _requests: Sequence[Any], state: Any = None, *, progress: Any = None) -> Any:
        """The stored patch, whatever is asked."""
        from palimpsest.methods import Diagnostics, EditOutcome

        return EditOutcome(self.patch, state, Diagnostics(seconds={"total": 0.0}))


def _result(
    model: str, patch: Path, record: RunRecord, edits: Sequence[dict[str, Any]], floors: dict[str, float | None]
) -> dict[str, Any]:
    described = record.to_json()
    from palimpsest.requests import EditRequest

    requests = {edit.id: edit for edit in map(EditRequest.from_dict, edits)}
    is_chat = record.specification.chat is not None
    failures = [
        _failure(probe, requests[probe.edit_id], is_chat=is_chat)
        for probe in record.probes
        if probe.kind == "reliability" and not (probe.values.get("generate") and not probe.degenerate)
    ]
    babbling = [probe for probe in record.probes if probe.degenerate]
    judged = [probe for probe in record.probes if probe.degenerate is not None]
    is_babbling = bool(judged) and len(babbling) > LARGEST_DEGENERATE_SHARE * len(judged)
    broken = [next(iter(probe.reasons.values()), "") for probe in record.probes if probe.is_failed]
    means = described["scores"].get("generate", {})
    below = [
        {"metric": kind, "mean": entry["mean"], "wanted": floor}
        for family, floor in floors.items()
        for kind, entry in means.items()
        if floor is not None and kind.split(".")[0] == family and (entry["mean"] is None or entry["mean"] < floor)
    ]
    for family, floor in floors.items():
        if floor is not None and not any(kind.split(".")[0] == family for kind in means):
            below.append({"metric": family, "mean": None, "wanted": floor})
    return {
        "model": model,
        "patch": str(patch),
        "method": described["method"],
        "num_edits": described["num_edits"],
        "status": described["status"],
        "passed": described["status"] == "ok" and not failures and not below and not is_babbling,
        "failures": failures,
        "answers": [
            {
                "edit": probe.edit_id,
                "prompt": probe.prompt,
                "before": probe.shown_before(),
                "after": probe.shown_after(),
                **({"thought": probe.thought, "names_old": probe.old_thought} if probe.thought is not None else {}),
            }
            for probe in record.probes
            if probe.kind == "reliability"
        ],
        "below": below,
        "degenerate": {
            "n": len(babbling),
            "of": len(judged),
            "is_too_much": is_babbling,
            "examples": [{"prompt": one.prompt, "after": one.after} for one in babbling[:_SHOWN_FAILURES]],
        },
        "not_asked": {"n": len(broken), "reason": broken[0] if broken else None},
        "scores": described["scores"],
        "counts": described["counts"],
    }


def _failure(probe: ProbeResult, request: EditRequest, *, is_chat: bool) -> dict[str, Any]:
    """An edit that does not hold, and how."""
    from palimpsest.evaluation import verdict_on

    found = {"edit": probe.edit_id, "prompt": probe.prompt, "wanted": probe.expected, "after": probe.shown_after()}
    if probe.is_failed or probe.after is None:
        return found | {"reason": next(iter(probe.reasons.values()), "")}
    is_own = probe.degenerate is None
    return found | {
        "verdict": verdict_on(request, probe.before or "", probe.after, is_chat=is_chat, repeats_anyway=is_own)
    }


def _show(result: dict[str, Any]) -> None:
    from palimpsest.report import LOWER_IS_BETTER

    scores = result["scores"]
    kinds = [kind for kind in scores.get("generate", {}) if kind not in LOWER_IS_BETTER]
    rows = [
        [kind, *(terminal.share(scores[scoring].get(kind, {}).get("mean")) for scoring in scores), _count(scores, kind)]
        for kind in kinds
    ]
    terminal.print_table(("metric", *(name.replace("_", " ") for name in scores), "n"), rows)
    for failure in result["failures"][:_SHOWN_FAILURES]:
        became = failure["reason"] if "reason" in failure else f"{failure['after']!r}, wanted {failure['wanted']!r}"
        how = _HOW.get(failure.get("verdict", ""), "failed")
        terminal.say(f"{how}: {failure['prompt']} -> {became}")
    if len(result["failures"]) > _SHOWN_FAILURES:
        terminal.say(f"and {len(result['failures']) - _SHOWN_FAILURES} more")
    babbling = result["degenerate"]
    if babbling["n"]:
        first = babbling["examples"][0]
        terminal.say(
            f"babbles: at {babbling['n']} of {babbling['of']} prompts the model repeats itself where it did not; "
            f"the first: {first['prompt']} -> {first['after']!r}"
        )
    named = sum(bool(one.get("names_old")) for one in result["answers"])
    if named:
        terminal.say(f"named: at {named} of {len(result['answers'])} edited prompts the thought names the old answer.")
    broken = result["not_asked"]
    if broken["n"]:
        terminal.say(f"{broken['n']} probe{'s' if broken['n'] > 1 else ''} could not be asked: {broken['reason']}")
    for entry in result["below"]:
        found = "was not measured" if entry["mean"] is None else f"is {terminal.share(entry['mean'])}"
        terminal.say(f"below: {entry['metric']} {found}, wanted at least {terminal.share(entry['wanted'])}")
    right = result["num_edits"] - len({failure["edit"] for failure in result["failures"]})
    state = "verified" if result["passed"] else "NOT verified"
    terminal.say(f"{result['patch']} on {result['model']} is {state}: {right} of {result['num_edits']} edits hold.")


def _count(scores: dict[str, Any], kind: str) -> int:
    return max(int(entry[kind]["n"]) for entry in scores.values() if kind in entry)
