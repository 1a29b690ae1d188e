"""The record of a run: its specification, one result per probe, and the aggregated numbers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.answers import shown
from palimpsest.models import ChatRecord
from palimpsest.showing import counted, html_table, named

Share = Annotated[float, Field(ge=0, le=1)]
Status = Literal["ok", "failed", "cancelled"]
Phase = Literal["final", "immediate"]


class Estimate(BaseModel):
    """A mean with its 95% interval, clustered by edit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: Share
    low: Share
    high: Share
    n: int
    """How many probes it is the mean of."""


Scores = dict[str, dict[str, Estimate]]
"""Scoring to metric to estimate."""


class Specification(BaseModel):
    """Everything that determines a run's results, and where it ran."""

    model_config = ConfigDict(extra="forbid")

    method: str
    preset: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    """The method's options with their values, defaults included."""
    model: str
    model_fingerprint: dict[str, Any]
    stacked_on: list[str] = Field(default_factory=list)
    """Labels of patches that were on the model already; they belong to the base here."""
    chat: ChatRecord | None = None
    """The chat that prompts were put in; `None` for plain prompts."""
    dataset: str
    dataset_fingerprint: str
    """Of the sampled edits with their probes."""
    protocol: str
    protocol_options: dict[str, Any] = Field(default_factory=dict)
    num_edits: int
    seed: int
    """Of the sample; the method's own seed is in its config."""
    scorings: list[str]
    scoring_version: int = 1
    """Of the definition of what counts as the answer, `palimpsest.answers.VERSION`; records without it have 1."""
    max_new_tokens: int
    """Tokens that are generated at most."""
    neutral_text_fingerprint: str | None = None
    perplexity_of: Literal["whole texts", "second halves"] = "whole texts"
    """What of the neutral texts is predicted; an encoder-decoder is given their first halves."""
    measures: list[str] = Field(default_factory=list)
    """What else is measured; see `evaluation.measures`."""
    training: dict[str, float] = Field(default_factory=dict)
    """What the editor took to train, for a method that is trained: `seconds`, `peak_memory_bytes`, `num_parameters`."""
    versions: dict[str, str]
    hardware: dict[str, Any]
    created: str

    def by_path(self) -> dict[str, Any]:
        """Every field, JSON-ready, those inside others by their path: `config.seed`."""
        return _flat(self.model_dump(mode="json"))

    def differences(self, other: Specification) -> list[str]:
        """Sentences that name what this and another run differ in; time and machine do not count."""
        mine, theirs = self.by_path(), other.by_path()
        ignored = ("created", "hardware", "training")
        return [
            f"{name} is {theirs.get(name)!r}, was {mine.get(name)!r}"
            for name in sorted({*mine, *theirs})
            if mine.get(name) != theirs.get(name) and name.split(".")[0] not in ignored
        ]


class ProbeResult(BaseModel):
    """One probe of one edit, asked once."""

    model_config = ConfigDict(extra="forbid")

    edit_id: str
    kind: str = Field(pattern=r"^(reliability|generality|locality|portability)(\.|$)")
    prompt: str
    expected: str | None = None
    accepts: list[str] = Field(default_factory=list)
    """Other names of the expected answer, as right as it under `generate`."""
    expected_old: str | None = None
    """What followed from the old fact, where the probe says so."""
    target_new: str
    target_old: str | None = None
    before: str | None = None
    """What the base model generated; `None` when text was not asked for, or its thought did not end."""
    after: str | None = None
    """What the edited model generated."""
    thought_before: str | None = None
    """What the base model thought before it answered; `None` where it answered at once."""
    thought: str | None = None
    """What the edited model thought."""
    phase: Phase = "final"
    """`immediate`: right after this edit, in the sequential protocol; `final`: after all edits so far."""
    checkpoint: int | None = None
    """How many edits had been made, in the sequential protocol."""
    values: dict[str, Share | None] = Field(default_factory=dict)
    """Scoring to a number from 0 to 1, or `None`: unscored, failed or left out, as `reasons` says."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """Why a value is missing, by scoring."""
    old_answer: dict[str, Share | None] = Field(default_factory=dict)
    """Scoring to whether the old answer is still given: the edit's, or what followed from it (`expected_old`)."""
    old_thought: Share | None = None
    """Whether the thought names that old answer, whatever the answer says."""
    degenerate: Share | None = None
    """Whether the edited model babbles where the unedited one does not."""
    leak: Share | None = None
    """Whether the new answer is given to a locality probe where the unedited model does not give it."""
    ceiling: dict[str, Share | None] = Field(default_factory=dict)
    """Scoring to whether the unedited model gives its true answer here."""
    is_failed: bool = False
    """The edit or the model broke, so that there is nothing to score."""
    is_left_out: bool = False
    """A locality probe whose fact was itself edited."""

    def shown_before(self) -> str | None:
        """The base model's answer, without the text behind it."""
        return None if self.before is None else shown(self.before, self._names())

    def shown_after(self) -> str | None:
        """The edited model's answer, without the text behind it; the whole text if it is degenerate."""
        if self.after is None or self.degenerate:
            return self.after
        return shown(self.after, self._names())

    def _names(self) -> list[str]:
        names = (self.expected, *self.accepts, self.expected_old, self.target_new, self.target_old)
        return [name for name in names if name]

    def outcome(self, scoring: str) -> Literal["scored", "unscored", "failed", "left_out"]:
        """Returns the outcome of the probe under a scoring."""
        if self.values.get(scoring) is not None:
            return "scored"
        if self.is_left_out:
            return "left_out"
        return "failed" if self.is_failed else "unscored"


class SequenceCheckpoint(BaseModel):
    """All edits so far, tested after some number of them."""

    model_config = ConfigDict(extra="forbid")

    num_edits: int
    scores: Scores
    perplexity: float | None = None
    patch_norm: float | None = None
    """Frobenius norm of all changes of weights so far, added up."""
    counts: dict[str, int] = Field(default_factory=dict)


class FailedEdit(BaseModel):
    """Edits that could not be made, with the reason."""

    model_config = ConfigDict(extra="forbid")

    edit_ids: list[str]
    error: str


class RunRecord(BaseModel):
    """A run: what it was, what came out, and at what cost."""

    model_config = ConfigDict(extra="forbid")

    specification: Specification
    status: Status
    error: str | None = None
    probes: list[ProbeResult] = Field(default_factory=list)
    scores: Scores = Field(default_factory=dict)
    """The final phase. Metrics that no probe has a value for are not in it; see `unscored`."""
    ceilings: Scores = Field(default_factory=dict)
    """What the unedited model reaches for its true answers at the same probes, where they are known."""
    immediate: Scores = Field(default_factory=dict)
    """Sequential only: each edit's own reliability and generality right after it."""
    checkpoints: list[SequenceCheckpoint] = Field(default_factory=list)
    """Sequential only: retention, all edits so far after some number of them."""
    perplexity: dict[str, float | int | None] = Field(default_factory=dict)
    """`before`, `after` (the mean over patches that were undone one by one, `median` besides), and `n`: how many
    sentences. `None` without neutral text or when not finite."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """By stage, over all edits; `total` is their sum."""
    seconds_per_edit: float | None = None
    """Time spent editing, not testing, by number of edits."""
    peak_memory_bytes: int = 0
    patch_bytes: int | None = None
    """Size of the final patch; the mean over patches where each edit or batch has its own."""
    measures: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    """What else was asked for: `before` and `after` by name; after the last checkpoint, or the mean over patches."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Values (one per probe and scoring) of the final phase: scored, unscored, failed, left_out."""
    unscored: dict[str, dict[str, dict[str, int]]] = Field(default_factory=dict)
    """Why values are missing in the final phase: scoring, metric, reason, how often."""
    failed_edits: list[FailedEdit] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    def __repr__(self) -> str:
        spec, status = self.specification, "" if self.status == "ok" else self.status
        reached = [
            f"{metric} {100 * one.mean:.0f}%"
            for metric, one in next(iter(self.scores.values()), {}).items()
            if metric in ("reliability", "generality")
        ]
        edits = counted(spec.num_edits, "edit")
        return named(
            self, f"{spec.method} on {spec.model}", f"{edits} of {spec.dataset}", spec.protocol, status, *reached
        )

    # pydantic's own would write out every probe.
    __str__ = __repr__

    def _repr_html_(self) -> str:
        """The scores, and the first probes before and after."""
        metrics = list(dict.fromkeys(metric for by_metric in self.scores.values() for metric in by_metric))
        scores = [[metric, *(_cell(one.get(metric)) for one in self.scores.values())] for metric in metrics]
        probes = [
            (probe.kind, probe.prompt, probe.shown_before(), probe.shown_after(), probe.expected)
            for probe in self.probes
            if probe.phase == "final"
        ]
        return html_table(repr(self), ("metric", *self.scores), scores) + html_table(
            "The first probes", ("probe", "prompt", "before", "after", "expected"), probes
        )

    def to_json(self) -> dict[str, Any]:
        """The object that `palimpsest eval --json` prints. Scripts rely on its shape."""
        spec = self.specification
        result: dict[str, Any] = {
            "method": spec.method,
            "model": spec.model,
            "dataset": spec.dataset,
            "protocol": spec.protocol,
            "num_edits": spec.num_edits,
            "seed": spec.seed,
            "status": self.status,
            "scores": _plain(self.scores),
            "perplexity": self.perplexity,
            "seconds": self.seconds,
            "seconds_per_edit": self.seconds_per_edit,
            "peak_memory_bytes": self.peak_memory_bytes,
            "patch_bytes": self.patch_bytes,
            "counts": self.counts,
            "scoring_version": spec.scoring_version,
        }
        if self.ceilings:
            result["ceilings"] = _plain(self.ceilings)
        if self.measures:
            result["measures"] = self.measures
        if spec.training:
            result["training"] = spec.training
        if spec.protocol == "sequential":
            result["immediate"] = _plain(self.immediate)
            result["checkpoints"] = [
                {
                    "num_edits": point.num_edits,
                    "scores": _plain(point.scores),
                    "perplexity": point.perplexity,
                    "patch_norm": point.patch_norm,
                }
                for point in self.checkpoints
            ]
        if self.error:
            result["error"] = self.error
        return result

    def table(self) -> str:
        """The scores for people: one line per metric, one column per scoring, named with protocol and n."""
        spec = self.specification
        lines = [
            f"{spec.method} on {spec.model}, {spec.dataset}, {spec.protocol} protocol, "
            f"{spec.num_edits} {'edit' if spec.num_edits == 1 else 'edits'}, seed {spec.seed}: {self.status}"
        ]
        if self.error:
            lines.append(self.error)
        lines += _grid("metric", self.scores)
        if self.ceilings:
            lines += ["", *_grid("ceiling: the unedited model's true answers", self.ceilings)]
        if self.immediate:
            lines += ["", *_grid("right after each edit", self.immediate)]
        if self.checkpoints:
            lines += ["", *_grid("reliability after", _by_checkpoint(self.checkpoints))]
        lines += ["", "mean [95% interval, clustered by edit] (number of probes)", self._summary()]
        broken = [probe for probe in self.probes if probe.is_failed]
        if broken:
            lines.append(f"the first failed probe: {next(iter(broken[0].reasons.values()), 'no reason is recorded')}")
        return "\n".join(lines)

    def _summary(self) -> str:
        parts = [f"{number} {name.replace('_', ' ')}" for name, number in self.counts.items() if number]
        before, after = self.perplexity.get("before"), self.perplexity.get("after")
        if before is not None:
            shown = "not finite" if after is None else f"{after:.2f}"
            parts.append(f"perplexity {before:.2f} -> {shown}")
        if self.seconds_per_edit is not None:
            parts.append(f"{self.seconds_per_edit:.2f} s per edit")
        return ", ".join(parts)


def _by_checkpoint(points: list[SequenceCheckpoint]) -> Scores:
    """Scoring to a line a checkpoint, as `_grid` takes it."""
    found: Scores = {}
    for point in points:
        for scoring, metrics in point.scores.items():
            if "reliability" in metrics:
                line = f"{point.num_edits} {'edit' if point.num_edits == 1 else 'edits'}"
                found.setdefault(scoring, {})[line] = metrics["reliability"]
    return found


def _grid(head: str, scores: Scores) -> list[str]:
    metrics = list(dict.fromkeys(metric for by_metric in scores.values() for metric in by_metric))
    rows = [[head, *scores]]
    rows += [[metric, *(_cell(by_metric.get(metric)) for by_metric in scores.values())] for metric in metrics]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(one: Estimate | None) -> str:
    return "-" if one is None else f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}] ({one.n})"


def _plain(scores: Scores) -> dict[str, Any]:
    return {
        scoring: {metric: one.model_dump() for metric, one in by_metric.items()}
        for scoring, by_metric in scores.items()
    }


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {key: one for part, inner in value.items() for key, one in _flat(inner, f"{name}.{part}").items()}
    return {name.lstrip("."): value}
