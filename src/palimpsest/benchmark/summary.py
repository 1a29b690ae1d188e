"""The results of a recipe in one small file: the outcome, scores and costs of every unit, without the answers."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from palimpsest.answers import VERSION
from palimpsest.benchmark.folder import ResultsFolder
from palimpsest.benchmark.units import WorkUnit
from palimpsest.files import write_text
from palimpsest.provenance import hardware, now, versions

SUMMARY = "summary.json"
_COSTS = ("seconds", "seconds_per_edit", "peak_memory_bytes", "patch_bytes", "perplexity", "measures", "training")
_ALWAYS = (*_COSTS, "counts", "ceilings", "known_to_model", "prepared", "choice")
_IN_SEQUENCE = ("immediate", "checkpoints")


def write_summary(folder: ResultsFolder) -> None:
    """Writes `summary.json` into a folder of results; what was not done is `cancelled`. Candidates stand with what was
    chosen among them. Raises `OutputError` when the disk refuses.
    """
    rows = [_row(folder, unit) for unit in folder.plan.units if unit.candidate is None]
    record = {
        "recipe": folder.plan.recipe.name,
        "updated": now(),
        "scoring_version": VERSION,
        "versions": versions(),
        "hardware": hardware(),
        "states": dict(Counter(row["state"] for row in rows)),
    }
    head = json.dumps(record, indent=1, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(_rounded(row), ensure_ascii=False) for row in rows)
    write_text(folder.path / SUMMARY, f'{head},\n "rows": [\n  {lines}\n ]\n}}\n')


def _row(folder: ResultsFolder, unit: WorkUnit) -> dict[str, Any]:
    done, row = folder.finished(unit), unit.labels()
    if done is None:
        return {**row, "state": "cancelled"}
    row |= {"state": done.state, "unit_seconds": done.seconds}
    if done.error:
        row["error"] = done.error.splitlines()[0]
    row["scores"] = done.result.get("scores", {})
    row |= {key: done.result[key] for key in _ALWAYS if done.result.get(key) is not None}
    return row | {key: done.result[key] for key in _IN_SEQUENCE if done.result.get(key)}


def _rounded(value: Any) -> Any:
    """Numbers to four figures: the intervals are wider."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
