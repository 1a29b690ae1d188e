"""`auto`: no method to choose. It edits, tests every fact, goes further where one does not hold, back where it damages.

    standing = examine(model)                                   which facts hold already, what must stay
    for attempt in ladder:                                      each goes further than the one before
        change = attempt.edit(model + patch, facts that do not hold)
        factor = the largest of FACTORS at which enough stays   model + patch + factor * change, examined
        patch  = patch + factor * change                        if more facts hold than before
    then half of the facts that do not hold, and half of those, until enough stays

Changes of weights are one such patch, what stands beside the weights another: weights are tried for facts that are not
true with the latter, and the better patch is handed over.

What is handed over was looked at: each fact has a verdict, and one that does not hold has the reason.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

from palimpsest.checkpoints import is_gguf
from palimpsest.locating import unrelated_prompts
from palimpsest.methods.auto.climb import Climb, OutOfTime, Reached
from palimpsest.methods.auto.config import AutoConfig
from palimpsest.methods.auto.examination import Examination, Standing, Verdict
from palimpsest.methods.auto.ladder import LADDER, Attempt, editable_by, usable
from palimpsest.methods.auto.own_words import in_own_words
from palimpsest.methods.auto.trials import make_trials, ordinary_texts
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig
from palimpsest.models import EditableModel
from palimpsest.patches import Manifest, Patch, WeightPatch
from palimpsest.requests import EditRequest

SPARE = 3
"""Neighbours that are looked at for each one that is needed: about many subjects a model has no sure answer."""

_BESIDE = (
    "The facts stand beside the weights, which stay as they are. An adapter or an edited GGUF file needs a change of"
    " weights: edit again with weights_only = true; more of what is near the facts changes then."
)


@final
class Auto(Method[AutoConfig]):
    """See the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = AutoConfig
    capabilities: ClassVar[Capabilities] = Capabilities(gives_weight_patch=False)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # What cannot be an attempt must not wait for a model to be loaded.
        given = AutoConfig.parse({**self.variant, **self.options}, owner=f"method {self.name!r}")
        for attempt in given.ladder or ():
            attempt.make(given.seed)
        self._usable: list[tuple[Attempt, Method[Any]]] = []
        # Kept from call to call, since each method keeps what it has factorised.
        self._made: dict[str, Method[Any]] = {}

    def check_model(self, model: EditableModel, config: AutoConfig) -> None:
        """See `Method.check_model`: at least one attempt must be able to edit the model."""
        ladder = LADDER if config.ladder is None else config.ladder
        weights_only = is_gguf(model.name) if config.weights_only is None else config.weights_only
        self._usable = usable(model, ladder, config.seed, weights_only=weights_only, kept=self._made)

    def compute(self, model: EditableModel, requests: Sequence[EditRequest], config: AutoConfig, run: EditRun) -> Patch:
        deadline = None if config.max_seconds is None else time.monotonic() + config.max_seconds
        with run.clock.stage("examining"):
            count = min(config.num_neighbours, max(2, config.num_neighbours * 20 // len(requests)))
            trials = make_trials(
                model, requests, num_contexts=config.num_contexts, num_neighbours=SPARE * count, seed=config.seed
            )
            texts = ordinary_texts(model, config.seed)
            examination = Examination(model, trials, unrelated_prompts(requests), count, texts)
            start = examination.start()
            replies = [verdict.reply for verdict in start.verdicts]
            run.worded = in_own_words(model, requests, replies) if config.own_words else requests
        nothing = Reached(WeightPatch({}, Manifest(label=self.name)), start)
        climb = Climb(model, examination, config, run, deadline, best=nothing, weights=nothing, beside=nothing)
        is_over = False
        weights = [one for one in self._usable if one[1].capabilities.gives_weight_patch]
        # At last, where all facts together are too much, as many as are not.
        rounds = [(climb.attempt, *one) for one in self._usable] + [(climb.with_fewer, *one) for one in weights[:1]]
        for number, (climbs, attempt, made) in enumerate(rounds):
            is_last = number == len(self._usable)
            chosen = self._chosen(climb, run.worded, attempt, made, 0.0 if is_last else config.elsewhere)
            if not chosen:
                continue
            run.progress("attempts", min(number, len(self._usable) - 1), len(self._usable))
            try:
                climbs(attempt.method, made, chosen)
            except OutOfTime:
                run.diagnostics.notes.append(f"The time was over during the attempt by {attempt.method} (max_seconds).")
                is_over = True
                break
        run.progress("attempts", len(self._usable), len(self._usable))
        if climb.is_beside_weights:
            run.diagnostics.notes.append(_BESIDE)
        _report(requests, start, climb.best.standing, _why_not(climb.tried, config, is_over=is_over), run)
        run.diagnostics.facts["attempts"] = climb.tried
        targets = {new.id: new.target_new for new, old in zip(run.worded, requests, strict=True) if new != old}
        run.diagnostics.facts |= {"own_words": targets} if targets else {}
        return climb.best.patch

    @staticmethod
    def _chosen(
        climb: Climb, requests: Sequence[EditRequest], attempt: Attempt, made: Method[Any], elsewhere: float
    ) -> list[EditRequest]:
        """The facts that an attempt is for: those that do not hold yet with patches of its kind."""
        on_weights = made.capabilities.gives_weight_patch
        if on_weights and climb.is_beside_weights:
            # Changes of weights begin anew: not for a wording that is lacking, nor for the last few facts of many.
            elsewhere = 0.0
            verdicts = zip(requests, climb.best.standing.verdicts, strict=True)
            untrue = [request for request, verdict in verdicts if not verdict.is_true]
            if all(request.subject for request in untrue) and 2 * len(untrue) < len(requests):
                return []
        if all(verdict.holds(elsewhere) for verdict in climb.best.standing.verdicts):
            return []
        standing = (climb.weights if on_weights else climb.beside).standing
        share = 0.0 if attempt.only_untrue else elsewhere
        found = zip(requests, standing.verdicts, strict=True)
        return editable_by(made, [request for request, verdict in found if not verdict.holds(share)])


def _report(
    requests: Sequence[EditRequest],
    start: Standing,
    end: Standing,
    why: str,
    run: EditRun,
) -> None:
    """Puts into the diagnostics what became of every fact, and into the notes what a user should know."""
    run.diagnostics.replies = [one.reply for one in start.verdicts], [one.reply for one in end.verdicts]
    run.diagnostics.facts |= {
        "facts": [
            {
                "id": request.id,
                "holds": after.is_true,
                "held_before": before.is_true,
                "elsewhere": [sum(after.elsewhere), len(after.elsewhere)],
                "kept": [sum(after.kept), len(after.kept)],
                "reply": after.reply,
                "why": None if after.is_true else _babble(after) or why,
            }
            for request, before, after in zip(requests, start.verdicts, end.verdicts, strict=True)
        ],
        "kept": end.kept,
        "elsewhere": end.elsewhere,
        "unrelated_kept": [sum(end.unrelated), len(end.unrelated)],
    }
    held = sum(verdict.is_true for verdict in start.verdicts)
    failed = Counter(_babble(verdict) or why for verdict in end.verdicts if not verdict.is_true)
    if held:
        run.diagnostics.notes.append(f"{held} of {len(requests)} facts held before any edit.")
    for reason, count in failed.items():
        run.diagnostics.notes.append(f"{count} of {len(requests)} facts do not hold: {reason}.")
    if babbling := sum(start.babbles):
        run.diagnostics.notes.append(
            f"To {babbling} of {len(requests)} prompts the model repeats itself before any edit."
        )


def _why_not(tried: Sequence[Mapping[str, Any]], config: AutoConfig, *, is_over: bool) -> str:
    """Why facts are left that do not hold, as far as the attempts tell."""
    if is_over and not tried:
        return "no attempt came to its end in time; give more, or leave max_seconds out"
    if not tried:
        return "no method that can edit this model had what it needs; a `subject` in each edit lets more of them try"
    best = max(tried, key=lambda one: (one["true"], one["kept"]))
    if not best["keeps"]:
        return (
            f"{best['method']} would make {best['true']} true and keep {best['kept']:.0%} of the other answers, where"
            f" {config.keep:.0%} are asked for (keep)"
        )
    if best["moved"] > config.most_moved:
        return (
            f"{best['method']} would make {best['true']} true and move ordinary text by {best['moved']:.2g} nats per"
            f" token, where {config.most_moved:g} are allowed (most_moved)"
        )
    return "no attempt made the model give the answer"


def _babble(verdict: Verdict) -> str | None:
    return "the model repeats itself behind the answer" if verdict.says and verdict.is_degenerate else None
