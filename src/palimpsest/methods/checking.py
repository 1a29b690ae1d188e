"""Every patch is checked before it is returned: whether the edits hold, and what else has changed.

The edited prompts are read once more under the patch, each with its new answer twice behind it: an edit holds when
every token of the answer is the most probable one in its place, and a model that would then begin the answer again
repeats itself. A few ordinary sentences are read before and after. Nothing is generated: it costs about two passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any
from weakref import WeakKeyDictionary

from palimpsest.errors import DataError
from palimpsest.models import EditableModel, TargetScore
from palimpsest.patches import Patch, WeightPatch
from palimpsest.requests import EditRequest

NEUTRAL = (
    ("The weather this morning was", "cold and wet"),
    ("She opened the door and saw", "a man standing in the rain"),
    ("He wrote a letter to his", "mother and his sister"),
    ("The most important thing about cooking is", "to use fresh ingredients"),
)
"""Ordinary sentences that no edit is about, each with one way to go on."""

UNKNOWN = -7.0
"""Nats per token below which a model does not know a sentence, so that its change means nothing."""
MOVED = 0.5
"""Nats per token by which ordinary sentences may move on average without a note."""
LARGE = 0.3
"""Share of a matrix's norm from which a change is called large."""
_SHOWN = 3


@dataclass(frozen=True)
class Look:
    """The result of looking again.

    Arguments:
        facts: numbers worth keeping.
        notes: sentences a user should read.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


_UNEDITED: WeakKeyDictionary[EditableModel, tuple[tuple[object, ...], list[TargetScore]]] = WeakKeyDictionary()
"""By model without patches: the stamp of its weights, and how it takes ordinary sentences."""


def neutral_scores(model: EditableModel) -> list[TargetScore]:
    """How the model takes ordinary sentences; an unedited one is asked once."""
    prompts, endings = zip(*NEUTRAL, strict=True)
    if model.weights.depth:
        return model.score(prompts, endings)
    stamp = (model.chat, *map(model.weights.stamp, model.weights.names()))
    if _UNEDITED.get(model, (None, []))[0] != stamp:
        _UNEDITED[model] = (stamp, model.score(prompts, endings))
    return _UNEDITED[model][1]


def text_moved(before: Sequence[TargetScore], after: Sequence[TargetScore]) -> float | None:
    """Nats per token by which sentences moved, on average; `None` where the model has no idea of any of them."""
    moved = [
        abs(new.mean_log_prob - old.mean_log_prob)
        for old, new in zip(before, after, strict=True)
        if old.mean_log_prob > UNKNOWN
    ]
    return mean(moved) if moved else None


def look_again(
    model: EditableModel, requests: Sequence[EditRequest], patch: Patch, before: Sequence[TargetScore]
) -> Look:
    """Tests the patch on its own edits and on ordinary text.

    Arguments:
        before: `neutral_scores` without the patch.
    """
    lengths = [len(model.encode(request.prompt, request.target_new).target_ids) for request in requests]
    asked = [*NEUTRAL, *((request.prompt, _twice(model, request)) for request in requests)]
    with model.patched(patch):
        found = model.score(*zip(*asked, strict=True))
    after, scores = found[: len(NEUTRAL)], found[len(NEUTRAL) :]
    holding = [all(one.matches[:length]) for one, length in zip(scores, lengths, strict=True)]
    repeating = [
        holds and len(one.matches) > length and one.predicted[length] == one.predicted[0]
        for one, length, holds in zip(scores, lengths, holding, strict=True)
    ]
    moved = text_moved(before, after)
    facts: dict[str, Any] = {
        "hold": sum(holding),
        "edits": len(requests),
        "probability": {
            request.id: math.exp(sum(one.log_probs[:length]))
            for request, one, length in zip(requests, scores, lengths, strict=True)
        },
        "neutral_text_moved": moved,
    }
    notes = [
        *_said("do not hold after the edit", [not holds for holds in holding], requests),
        *_said("are said over and over after the edit", repeating, requests),
    ]
    if moved is not None and moved > MOVED:
        notes.append(f"Ordinary text has moved by {moved:.1f} nats per token: the patch damages the model.")
    if isinstance(patch, WeightPatch) and patch.deltas:
        facts["largest_change"] = share = largest_change(model, patch)
        if share > LARGE:
            notes.append(f"A matrix has changed by {100 * share:.0f}% of its norm, which is much for an edit.")
    return Look(facts, notes)


def largest_change(model: EditableModel, patch: WeightPatch) -> float:
    """The largest share of a matrix's own norm by which the patch changes it."""
    return max(
        math.sqrt(delta.squared_norm()) / max(float(model.weights.current(name).detach().float().norm()), 1e-12)
        for name, delta in patch.deltas.items()
    )


def _twice(model: EditableModel, request: EditRequest) -> str:
    """The new answer and the new answer again, where that fits and begins with the answer's own tokens."""
    answer = request.target_new
    doubled = f"{answer} {answer}"
    try:
        ids, own = (model.encode(request.prompt, text).target_ids for text in (doubled, answer))
    except DataError:
        return answer
    return doubled if ids[: len(own)] == own else answer


def _said(what: str, which: Sequence[bool], requests: Sequence[EditRequest]) -> list[str]:
    """A note on the edits that something is true of; nothing where it is true of none."""
    found = [f"{one.prompt} {one.target_new}" for one, is_one in zip(requests, which, strict=True) if is_one]
    shown = "; ".join(found[:_SHOWN]) + (" ..." if len(found) > _SHOWN else "")
    return [f"{len(found)} of {len(requests)} edit(s) {what}: {shown}"] if found else []
