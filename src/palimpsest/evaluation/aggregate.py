"""From many probes to one number with its uncertainty.

A mean is over probes. Probes of one edit are not independent (an edit that misses misses them all), so
intervals are clustered by edit: the clustered variance over the variance of independent probes is the design
effect, the number of probes over it is the effective number, and Wilson's interval for that many is what is
reported.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from palimpsest.evaluation.records import Estimate, ProbeResult, Scores

METRICS = (
    "reliability",
    "generality",
    "locality",
    "portability",
    "old_answer_rate",
    "old_thought_rate",
    "old_deduced_rate",
    "leak_rate",
    "degenerate_rate",
)
"""In the order in which they are read."""
Z = 1.959963984540054  # 97.5% quantile of the normal distribution


def estimate(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """The mean of values from 0 to 1 and its 95% interval, clustered.

    Arguments:
        values: at least one.
        clusters: which edit each value belongs to.

    When all values are equal their correlation cannot be seen; each edit then counts as one observation, as
    it does when there is only one edit. Shares between 0 and 1 vary less than zeros and ones, so theirs is
    wider than need be.
    """
    n = len(values)
    mean = math.fsum(values) / n
    low, high = wilson(mean, effective_n(values, clusters))
    return Estimate(mean=mean, low=low, high=high, n=n)


def effective_n(values: Sequence[float], clusters: Sequence[str]) -> float:
    """How many independent values would tell as much: from 1 to the number of values."""
    n = len(values)
    mean = math.fsum(values) / n
    residuals: dict[str, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        residuals[cluster] += value - mean
    groups = len(residuals)
    squares = math.fsum((value - mean) ** 2 for value in values)
    if groups == 1 or squares < 1e-12:
        return float(groups)
    independent = squares / (n - 1) / n
    clustered = groups / (groups - 1) * math.fsum(total**2 for total in residuals.values()) / n**2
    design_effect = max(1.0, clustered / independent)
    return max(1.0, n / design_effect)


def wilson(mean: float, n: float) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion. `n` need not be whole."""
    scale = 1 + Z**2 / n
    centre = (mean + Z**2 / (2 * n)) / scale
    half = Z * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2)) / scale
    # The bounds are exactly the mean at 0 and 1; rounding must not put them on the wrong side.
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def scores(results: Iterable[ProbeResult], scorings: Sequence[str]) -> Scores:
    """Every metric under every scoring, `old_answer_rate` and `old_deduced_rate`, and under `generate` what else its
    texts show.

    A metric without any value is not in it.
    """

    def values(result: ProbeResult, scoring: str) -> Iterable[tuple[str, float | None]]:
        yield result.kind, result.values.get(scoring)
        is_follow_up = result.kind.startswith("portability")
        yield "old_deduced_rate" if is_follow_up else "old_answer_rate", result.old_answer.get(scoring)
        if scoring == "generate":
            yield "old_thought_rate", result.old_thought
            yield "leak_rate", result.leak
            yield "degenerate_rate", result.degenerate

    return _means(results, scorings, values)


def ceilings(results: Iterable[ProbeResult], scorings: Sequence[str]) -> Scores:
    """Returns the unedited model's scores for its true answers, by scoring and metric; empty if there are none."""

    def values(result: ProbeResult, scoring: str) -> Iterable[tuple[str, float | None]]:
        yield result.kind, result.ceiling.get(scoring)

    return {scoring: metrics for scoring, metrics in _means(results, scorings, values).items() if metrics}


def _means(
    results: Iterable[ProbeResult],
    scorings: Sequence[str],
    values_of: Callable[[ProbeResult, str], Iterable[tuple[str, float | None]]],
) -> Scores:
    found: dict[str, dict[str, tuple[list[float], list[str]]]] = {name: {} for name in scorings}
    for result in results:
        for scoring in scorings:
            for metric, value in values_of(result, scoring):
                if value is not None:
                    values, clusters = found[scoring].setdefault(metric, ([], []))
                    values.append(value)
                    clusters.append(result.edit_id)
    return {
        scoring: {metric: estimate(*metrics[metric]) for metric in sorted(metrics, key=_reading_order)}
        for scoring, metrics in found.items()
    }


def _reading_order(metric: str) -> tuple[int, str]:
    return METRICS.index(metric.split(".")[0]), metric


def counts(results: Iterable[ProbeResult], scorings: Sequence[str]) -> dict[str, int]:
    """How many values (one per probe and scoring) were scored, unscored, failed, and left out."""
    found = {"scored": 0, "unscored": 0, "failed": 0, "left_out": 0}
    for result in results:
        for scoring in scorings:
            found[result.outcome(scoring)] += 1
    return found


def reasons(results: Iterable[ProbeResult], scorings: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
    """Why values are missing: scoring, metric, reason, and how often."""
    found: dict[str, dict[str, dict[str, int]]] = {name: {} for name in scorings}
    for result in results:
        for scoring in scorings:
            reason = result.reasons.get(scoring)
            if reason is not None:
                metric = found[scoring].setdefault(result.kind, {})
                metric[reason] = metric.get(reason, 0) + 1
    return found
