"""ROME and R-ROME: one layer, one fact, a change of rank one.

With C = E[k k^T], k* the mean key over contexts, k the prompt's own key, v the value there and delta the target vector,

    Delta = r (C^-1 k_u)^T / (k_d^T C^-1 k_u)            (ROME, eq. 2, arXiv:2202.05262)

    `keys`             k_u    k_d    r
    mean-and-prompt    k*     k      delta                       ROME, as its code has it
    mean               k*     k*     v + delta - mean of values  R-ROME (arXiv:2403.07175)
    prompt             k      k      delta                       p-ROME (same)

Where k_u and k_d differ, the divisor may come close to zero or turn negative, and such an edit destroys the model. It
is made as R-ROME makes it then, and a note says so.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import ClassVar, Literal, Self, final

from pydantic import model_validator

from palimpsest.locating import PROMPT_ALONE, as_patch, kept_rows, subject_rows, subject_vectors
from palimpsest.methods.base import MethodConfig, MethodState
from palimpsest.methods.edited_keys import WrittenKeys, edited_keys
from palimpsest.methods.locate_then_edit import LocateThenEdit
from palimpsest.methods.problem import LocateThenEditConfig, Problem, Solutions
from palimpsest.models import Point
from palimpsest.models.sites import MLP_DOWN
from palimpsest.solve import RELATIVE_STRENGTH, EarlierKeys, Solution, cosine, rank_one

SMALLEST_COSINE = 0.1
"""Cosine, in C's metric, of a fact's mean key and its prompt's key, below which ROME's divisor is too small: its update
is larger than R-ROME's by one over it. A choice from a few facts, not measured over many."""


class RomeConfig(LocateThenEditConfig):
    """Options of `rome` and `r-rome`."""

    num_layers: int | None = 1
    """How many layers `auto` takes. With several, each finds and writes what those before it have left."""
    keys: Literal["mean-and-prompt", "mean", "prompt"] = "mean-and-prompt"
    """Which keys the update is made of: ROME's, R-ROME's or p-ROME's."""
    history: bool = False
    """Whether the keys of earlier edits, carried in the state, are asked to stay: C becomes C + H / w, H the sum of
    their k k^T and w a tenth of a key's number of dimensions, as in `memit`."""

    @model_validator(mode="after")
    def _writes_one_vector(self) -> Self:
        if self.targets.chunk:
            raise ValueError("rome writes one vector for each fact: take memit, or set targets.chunk = 0")
        return self


@final
class Rome(LocateThenEdit[RomeConfig]):
    """Facts of one call are edited one after another, each on top of those before."""

    Config: ClassVar[type[MethodConfig]] = RomeConfig
    State: ClassVar[type[MethodState] | None] = WrittenKeys

    @property
    def carries_state(self) -> bool:
        return bool(self.options.get("history"))

    def solutions(self, problem: Problem[RomeConfig]) -> Solutions:
        model, requests, run = problem.model, problem.requests, problem.run
        found: Solutions = {layer: [] for layer in problem.layers}
        earlier: dict[int, EarlierKeys] = {}
        if problem.config.history:
            widths = {layer: factor.width for layer, factor in problem.metrics.items()}
            earlier = {layer: EarlierKeys.none(width) for layer, width in widths.items()}
            earlier |= WrittenKeys.before(run.state, widths, method=f"{self.name} with history")
        with ExitStack() as edited:
            for done, request in enumerate(requests):
                run.progress("edits", done, len(requests))
                # What is written for the prompt alone is searched there; its first part holds behind contexts.
                templates = problem.templates[:1] if request.id.endswith(PROMPT_ALONE) else problem.templates
                one = replace(problem, requests=[request], templates=templates)
                for layer in problem.layers:
                    solution = solved(one, layer, earlier.get(layer))
                    found[layer].append(solution)
                    edited.enter_context(model.patched(as_patch(model, {layer: [solution]})))
                for layer, before in earlier.items():
                    rows = subject_rows(model, [request], templates)
                    keys = edited_keys(model, rows, [layer], "half-clean")[layer]
                    earlier[layer] = before.without(keys).joined(keys, keys.new_zeros(keys.shape[1], 0))
        run.progress("edits", len(requests), len(requests))
        run.state = WrittenKeys(earlier) if problem.config.history else run.state
        return found


def solved(problem: Problem[RomeConfig], layer: int, earlier: EarlierKeys | None) -> Solution:
    """The change of a layer that writes one fact, on top of what is on the model.

    Arguments:
        earlier: keys that are asked to stay.
    """
    model, (request,), templates, run = problem.model, problem.requests, problem.templates, problem.run
    factor, config = problem.metrics[layer], problem.config
    wanted = problem.targets(layer)
    with run.clock.stage("solving"):
        read, written = Point(MLP_DOWN, layer, "input"), Point(MLP_DOWN, layer)
        vectors = subject_vectors(model, subject_rows(model, [request], templates), [read, written])
        keys, values = vectors[read][0], vectors[written][0]
        mean, prompt, residual = keys.mean(0), keys[0], wanted.deltas[0]
        if earlier is not None:
            factor = factor.plus(earlier.without(keys).sum() / (RELATIVE_STRENGTH * factor.width))
        how = config.keys
        if how == "mean-and-prompt" and cosine(factor, mean, prompt) < SMALLEST_COSINE:
            run.diagnostics.notes.append(
                f"The key of edit {request.id} behind contexts is hardly that of its prompt alone, so ROME's"
                " divisor is too small and its update would destroy the model; it is made as r-rome makes it."
            )
            how = "mean"
        if how == "mean":
            residual = values[0] + residual - values.mean(0)
        along, at = {
            "mean-and-prompt": (mean, prompt),
            "mean": (mean, mean),
            "prompt": (prompt, prompt),
        }[how]
        rows = kept_rows(model, [request])
        kept = None if rows is None else subject_vectors(model, rows, [read])[read][:, 0]
        solution = rank_one(factor, along, residual, applied_to=at, kept=kept)
    if solution.vanishing:
        run.diagnostics.notes.append(f"The edit {request.id} was left out: its keys are too small or orthogonal.")
    return solution
