"""Rows by option values, candidates, and which candidate is chosen by which criterion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from palimpsest.benchmark.entries import Axes, ChoiceRule, MethodEntry, label_of
from palimpsest.errors import ConfigError


def combinations(axes: Axes | Sequence[Axes]) -> Iterator[dict[str, Any]]:
    """Every combination of the values, by dotted option name; of several tables one after the other."""
    for one in [axes] if isinstance(axes, Mapping) else axes:
        for values in product(*one.values()):
            yield dict(zip(one, values, strict=True))


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Options put together: later ones go before earlier ones, and those inside an option are merged likewise."""
    whole: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            both = isinstance(value, Mapping) and isinstance(whole.get(name), Mapping)
            whole[name] = merged(whole[name], value) if both else value
    return whole


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Options by dotted names as tables inside tables."""
    whole: dict[str, Any] = {}
    for name, value in flat.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        whole = merged(whole, value)
    return whole


def in_words(flat: Mapping[str, Any]) -> str:
    """Options by dotted names, for a label: `learning_rate 0.001, layers [1, 2]`."""
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in flat.items())


def swept(row: MethodEntry) -> list[MethodEntry]:
    """The rows that `sweep` makes of a row; itself if there is none. Raises `ConfigError` for one with `swept`."""
    if row.swept:
        raise ConfigError(
            "`swept` is written by `sweep`.", expected="`sweep = {OPTION = [VALUES]}`", found="swept",
            where=f"method {label_of(row)!r}",
        )  # fmt: skip
    if not row.sweep:
        return [row]
    return [
        row.model_copy(
            update={
                "label": f"{label_of(row)}, {in_words(values)}",
                "options": merged(row.options, nested(values)),
                "sweep": {},
                "swept": values,
            }
        )
        for values in combinations(row.sweep)
    ]


def candidates(row: MethodEntry) -> list[dict[str, Any]]:
    """The combinations of a row's `grid`, by dotted option name; none where it has no grid."""
    return list(combinations(row.grid)) if row.grid else []


def quality(result: Mapping[str, Any], rule: ChoiceRule) -> tuple[float | None, dict[str, float | None]]:
    """How good a candidate is, and the metrics that say so.

    Arguments:
        result: what `palimpsest eval --json` prints of it; empty for a unit that failed.

    The harmonic mean is zero where a metric is zero, and `None` where one is missing.
    """
    scores = result.get("scores", {}).get(rule.scoring, {})
    metrics = {name: _metric(scores, name) for name in dict.fromkeys([*rule.by, *rule.at_least])}
    values = [metrics[name] for name in rule.by]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, metrics
    return (len(known) / sum(1 / value for value in known) if all(known) else 0.0), metrics


def best(qualities: Sequence[tuple[float | None, Mapping[str, float | None]]], rule: ChoiceRule) -> int | None:
    """The place of the candidate that the rule chooses; `None` when none could be measured."""
    measured = [place for place, (score, _) in enumerate(qualities) if score is not None]
    good = [
        place
        for place in measured
        if all((qualities[place][1].get(name) or 0.0) >= value for name, value in rule.at_least.items())
    ]
    taken = good or measured
    if not taken:
        return None
    top = max(qualities[place][0] or 0.0 for place in taken)
    return next(place for place in taken if (qualities[place][0] or 0.0) >= top - rule.tie)


def account_in_words(account: Mapping[str, Any]) -> str:
    """The grid and what was chosen of it as a sentence; see `LaterOptions.account`."""
    on, listed = account["on"], account["candidates"]
    tried = "; ".join(
        f"{in_words(one['options'])}: {'not measured' if one['score'] is None else format(one['score'], '.3f')}"
        for one in listed
    )
    chosen = "none" if account["chosen"] is None else in_words(account["chosen"])
    facts = "all" if on["num_edits"] is None else on["num_edits"]
    return (
        f"Options chosen by {account['criterion']} on {facts} facts of {on['dataset']}, {on['protocol']}, seed "
        f"{on['seed']}: {chosen}. Candidates: {tried}."
    )


def _metric(scores: Mapping[str, Any], name: str) -> float | None:
    """A metric's mean; of a family such as `locality` the plain mean over its kinds."""
    kinds = [one["mean"] for metric, one in scores.items() if metric == name or metric.split(".")[0] == name]
    known = [float(value) for value in kinds if value is not None]
    return sum(known) / len(known) if known else None
