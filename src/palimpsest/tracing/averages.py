"""Traces of many prompts, averaged by the part a token plays in its prompt (Meng et al., figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import mean

from pydantic import BaseModel, ConfigDict

from palimpsest.errors import DataError
from palimpsest.models import EditableModel
from palimpsest.requests import EditRequest
from palimpsest.stopwatch import Progress, silent
from palimpsest.tracing.causal import KINDS, CausalTrace, TraceOptions, trace_question
from palimpsest.tracing.questions import embedding_deviation, known_questions

CLASSES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)


class AverageTrace(BaseModel):
    """Means over prompts. A prompt without a token of some class takes no part in that class's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    prompts: list[str]
    """The prompts that were traced."""
    skipped: dict[str, int]
    """Reasons why others were not, with their numbers."""
    clean: float
    corrupted: float
    counts: dict[str, int]
    """Class of tokens to the number of prompts that have such tokens."""
    effects: dict[str, dict[str, list[float]]]
    """Kind of state to class of tokens to the average indirect effect by layer: restored minus corrupted."""
    window: int
    samples: int
    noise: float
    seed: int


def trace_facts(
    model: EditableModel,
    requests: Sequence[EditRequest],
    *,
    num_facts: int | None = None,
    options: TraceOptions | None = None,
    progress: Progress = silent,
) -> tuple[AverageTrace, list[CausalTrace]]:
    """The traces of facts that the model knows, and their average.

    Arguments:
        requests: facts with subjects; what is traced is the old answer, or the model's own if there is none.
        num_facts: how many are traced at most, the first ones that can be; all when left out.
        progress: called as `(stage, done, total)` with the number of facts.

    Raises `DataError` when the model knows none of them.
    """
    options = options or TraceOptions()
    known, skipped = known_questions(model, requests, at_most=num_facts)
    reasons = [reason for _, reason in skipped]
    counts = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    if not known:
        raise DataError(
            "There is no fact to trace.",
            expected="prompts that go on after their subject, and whose old answer the model gives",
            found="; ".join(f"{number} of {len(requests)}: {reason}" for reason, number in counts.items())
            or "no facts",
            where=f"model {model.name!r}",
        )
    # One deviation for all, as published: the noise of a prompt must not depend on its own subject's norm.
    options = options.model_copy(update={"deviation": options.deviation or embedding_deviation(model, known)})
    traces = []
    for done, asked in enumerate(known):
        progress("tracing", done, len(known))
        traces.append(trace_question(model, asked, options))
    progress("tracing", len(known), len(known))
    return average(traces, skipped=counts), traces


def average(traces: Sequence[CausalTrace], *, skipped: dict[str, int] | None = None) -> AverageTrace:
    """The mean of traces made with one model and one set of options.

    A class with several tokens in a prompt counts with their mean, so that every prompt weighs the same.
    """
    places = [token_classes(one) for one in traces]
    effects: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    for kind, name in product(KINDS, CLASSES):
        rows = [_effect(one, kind, at[name]) for one, at in zip(traces, places, strict=True) if name in at]
        if rows:
            effects[kind][name] = _columns(rows)
    first = traces[0]
    return AverageTrace(
        model=first.model,
        prompts=[one.prompt for one in traces],
        skipped=skipped or {},
        clean=mean(one.clean for one in traces),
        corrupted=mean(one.corrupted for one in traces),
        counts={name: sum(name in at for at in places) for name in CLASSES},
        effects=effects,
        window=first.window,
        samples=first.samples,
        noise=first.noise,
        seed=first.seed,
    )


def token_classes(one: CausalTrace) -> dict[str, list[int]]:
    """Class to the indices of its tokens; classes without tokens are left out.

    Every token from the subject on has one class. The last of its subject is that and nothing else, also where it is
    the only one, and so is the last of the prompt. Tokens in front of the subject are untouched by its corruption.
    """
    (start, end), last = one.subject_span, len(one.tokens) - 1
    found = {
        "first subject token": [start] if end - start > 1 else [],
        "middle subject tokens": list(range(start + 1, end - 1)),
        "last subject token": [end - 1],
        "first subsequent token": [end] if end < last else [],
        "further tokens": list(range(end + 1, last)),
        "last token": [last] if end <= last else [],
    }
    return {name: tokens for name, tokens in found.items() if tokens}


def _effect(one: CausalTrace, kind: str, tokens: Sequence[int]) -> list[float]:
    """By layer, the mean over some tokens of what restoring them changes."""
    return [value - one.corrupted for value in _columns([one.restored[kind][token] for token in tokens])]


def _columns(rows: Sequence[Sequence[float]]) -> list[float]:
    return [mean(column) for column in zip(*rows, strict=True)]
