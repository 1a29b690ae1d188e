"""Runs side by side: what to call them, which metrics they share, which is best, and what to say of it in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import harmonic_mean
from typing import TYPE_CHECKING

from palimpsest.evaluation import aggregate
from palimpsest.report.definitions import LOWER_IS_BETTER

if TYPE_CHECKING:
    from palimpsest.evaluation import Estimate, RunRecord

_PREFERRED = ("generate", "exact", "teacher_forced", "log_prob")
HOLDS = 0.9
SCORED = ("reliability", "generality", "locality")


@dataclass(frozen=True)
class ReportRun:
    """A record under the name it has on this page."""

    label: str
    record: RunRecord

    def estimate(self, scoring: str, metric: str) -> Estimate | None:
        """The mean with its interval, or `None` when nothing was scored."""
        return self.record.scores.get(scoring, {}).get(metric)

    def mean(self, scoring: str, metric: str) -> float | None:
        """The mean alone."""
        found = self.estimate(scoring, metric)
        return None if found is None else found.mean

    def family_mean(self, scoring: str, family: str) -> float | None:
        """The plain mean over the kinds of a family, such as all kinds of locality; each kind counts once."""
        return mean_over_kinds(self.record.scores.get(scoring, {}), family)

    def score(self, scoring: str) -> float | None:
        """The run's `score` under a scoring."""
        return score(self.record.scores.get(scoring, {}))

    def ceiling(self, scoring: str) -> float | None:
        """The same score of the unedited model's true answers, at the same probes; `None` where they are not known."""
        return score(self.record.ceilings.get(scoring, {}))


def mean_over_kinds(scores: Mapping[str, Estimate], family: str) -> float | None:
    """The plain mean over a family's kinds, each kind counting once; `None` when none was scored."""
    means = [one.mean for kind, one in scores.items() if kind.split(".")[0] == family]
    return sum(means) / len(means) if means else None


def score(scores: Mapping[str, Estimate]) -> float | None:
    """One number to sort methods by: the harmonic mean of reliability, generality and locality.

    It is zero where one of them is (arXiv:2202.05262, section 3.3); `None` where one was not asked.
    """
    means = [mean for family in SCORED if (mean := mean_over_kinds(scores, family)) is not None]
    return harmonic_mean(means) if len(means) == len(SCORED) else None


def ranked(runs: Sequence[ReportRun], scoring: str) -> list[ReportRun]:
    """The runs by their score, the best first; those without one by reliability, behind the others."""

    def key(run: ReportRun) -> tuple[bool, float, float]:
        reached = run.score(scoring)
        return reached is None, -(reached or 0.0), -(run.mean(scoring, "reliability") or 0.0)

    return sorted(runs, key=key)


_TOLD = ("model", "dataset", "protocol", "num_edits", "seed")


def label_runs(records: Iterable[RunRecord], *, told: Sequence[str] = _TOLD) -> list[ReportRun]:
    """Names the runs by their method and by whatever else differs among them.

    Arguments:
        told: fields of the specification that a name tells where they differ.
    """
    listed = list(records)
    specs = [record.specification for record in listed]
    varying = [field for field in told if len({getattr(spec, field) for spec in specs}) > 1]
    runs: list[ReportRun] = []
    taken: dict[str, int] = {}
    for record, spec in zip(listed, specs, strict=True):
        parts = [
            f"{getattr(spec, field)} edit{'' if getattr(spec, field) == 1 else 's'}"
            if field == "num_edits"
            else str(getattr(spec, field))
            for field in varying
        ]
        name = f"{spec.method} ({', '.join(parts)})" if parts else spec.method
        taken[name] = taken.get(name, 0) + 1
        runs.append(ReportRun(name if taken[name] == 1 else f"{name} #{taken[name]}", record))
    return runs


def scorings(runs: Sequence[ReportRun]) -> list[str]:
    """The scorings that any run has, what a user sees first."""
    present = {name for run in runs for name, metrics in run.record.scores.items() if metrics}
    return [name for name in _PREFERRED if name in present] + sorted(present - set(_PREFERRED))


def metrics(runs: Sequence[ReportRun], scoring: str) -> list[str]:
    """The metrics that any run has under a scoring, in reading order."""
    present = {name for run in runs for name in run.record.scores.get(scoring, {})}
    order = {head: place for place, head in enumerate(aggregate.METRICS)}
    return sorted(present, key=lambda name: (order.get(name.split(".")[0], len(order)), name))


def best(values: Sequence[float | None], *, is_lower_better: bool = False) -> set[int]:
    """Indices of the best values; none when fewer than two are known or all are alike."""
    known = [value for value in values if value is not None]
    if len(known) < 2 or max(known) == min(known):
        return set()
    goal = min(known) if is_lower_better else max(known)
    return {
        index for index, value in enumerate(values) if value is not None and math.isclose(value, goal, abs_tol=1e-9)
    }


def best_of_metric(runs: Sequence[ReportRun], scoring: str, metric: str) -> set[int]:
    """Indices of the runs that are best at a metric.

    At locality only runs whose edits hold compete: what does nothing disturbs nothing, and deserves no prize.
    """
    values = [run.mean(scoring, metric) for run in runs]
    if metric.startswith("locality"):
        values = among_holding(runs, scoring, values)
    return best(values, is_lower_better=metric in LOWER_IS_BETTER)


def among_holding(runs: Sequence[ReportRun], scoring: str, values: Sequence[float | None]) -> list[float | None]:
    """The values of runs whose edits hold (reliability of 90% or more); `None` instead of the others."""
    return [
        value if (run.mean(scoring, "reliability") or 0) >= HOLDS else None
        for run, value in zip(runs, values, strict=True)
    ]


def percent(value: float | None) -> str:
    """A share as a whole percentage, or a dash."""
    return "–" if value is None else f"{100 * value:.0f}%"


def duration(seconds: float | None) -> str:
    """Seconds for people: two figures are all that a timing is worth."""
    if seconds is None:
        return "–"
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def in_words(runs: Sequence[ReportRun]) -> list[str]:
    """The findings as a few plain sentences, under the scoring that a user would see; the figures are in the tables."""
    names = scorings(runs)
    if not names:
        return ["No run has any score."]
    scoring = names[0]
    sentences = [
        _reliability(runs, scoring),
        _generality(runs, scoring),
        _locality(runs, scoring),
        _noise(runs, scoring),
    ]
    failed = [run.label for run in runs if run.record.status != "ok"]
    if failed:
        sentences.append(f"Not finished: {listed(failed)}.")
    return [sentence for sentence in sentences if sentence]


def listed(names: Sequence[str], *, shown: int = 4) -> str:
    """Names as a list in a sentence."""
    if len(names) > shown:
        return f"{', '.join(names[: shown - 1])} and {len(names) - shown + 1} others"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"


def _reliability(runs: Sequence[ReportRun], scoring: str) -> str:
    known = {run.label: mean for run in runs if (mean := run.mean(scoring, "reliability")) is not None}
    if len(known) < 2:
        return ""
    winners, losers = _extremes(known)
    amount = "every edited prompt" if max(known.values()) == 1 else "the most edited prompts"
    if len(winners) == len(known):
        return f"All {len(known)} runs wrote the new answer to {amount}." if amount.startswith("every") else ""
    return f"{listed(winners)} wrote the new answer to {amount}; {listed(losers)} to the fewest."


def _generality(runs: Sequence[ReportRun], scoring: str) -> str:
    known = {run.label: mean for run in runs if (mean := run.mean(scoring, "generality")) is not None}
    winners, _ = _extremes(known)
    if len(winners) == len(known):
        return ""
    return f"Rephrased questions got the new answer most often with {listed(winners)}."


def _locality(runs: Sequence[ReportRun], scoring: str) -> str:
    holding = [run for run in runs if (run.mean(scoring, "reliability") or 0) >= HOLDS]
    known = {run.label: mean for run in holding if (mean := run.family_mean(scoring, "locality")) is not None}
    if len(known) < 2:
        return ""
    best_kept, least_kept = _extremes(known)
    if len(best_kept) == len(known):
        return "All whose edits hold disturbed other answers alike."
    return (
        f"Among those whose edits hold (reliability of {percent(HOLDS)} or more), {listed(best_kept)} disturbed other "
        f"answers least and {listed(least_kept)} most."
    )


def _extremes(means: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """Who has the most and who the least; shares that look alike in print are a tie, not a rounding error's choice."""
    shown = {name: percent(mean) for name, mean in means.items()}
    top, bottom = (percent(choose(means.values(), default=None)) for choose in (max, min))
    return [name for name in shown if shown[name] == top], [name for name in shown if shown[name] == bottom]


def _noise(runs: Sequence[ReportRun], scoring: str) -> str:
    found = [one for run in runs for metric in metrics([run], scoring) if (one := run.estimate(scoring, metric))]
    if not found:
        return ""
    widest = max((one.high - one.low) / 2 for one in found)
    return f"The intervals reach up to {100 * widest:.0f} points to a side: read smaller differences as noise."
