"""Runs that were measured under an earlier definition of what counts as the answer, under the names of today."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from palimpsest.evaluation.records import ProbeResult, Specification

T = TypeVar("T")

# Version 1 called `generate` what is now `exact`.
_RENAMED = {"generate": "exact"}


def renamed(specification: Specification, results: Iterable[ProbeResult]) -> Specification:
    """The specification with the present names of its scorings; the results of its probes are renamed in place."""
    if specification.scoring_version > 1:
        return specification
    for result in results:
        result.values = _keys(result.values)
        result.reasons = _keys(result.reasons)
        result.old_answer = _keys(result.old_answer)
    scorings = [_RENAMED.get(name, name) for name in specification.scorings]
    return specification.model_copy(update={"scorings": scorings})


def _keys(by_scoring: dict[str, T]) -> dict[str, T]:
    return {_RENAMED.get(name, name): value for name, value in by_scoring.items()}
