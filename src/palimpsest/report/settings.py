"""Runs that may stand in one table: one model, one data set, one protocol; seeds are put together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from palimpsest.evaluation import aggregate
from palimpsest.report.tables import ReportRun, label_runs

if TYPE_CHECKING:
    from palimpsest.evaluation import ProbeResult, PublishedFigure, RunRecord, SequenceCheckpoint


@dataclass(frozen=True)
class Setting:
    """The setting that all runs of a table share."""

    model: str
    dataset: str
    protocol: str
    batch_size: int | None = None

    @classmethod
    def of(cls, record: RunRecord) -> Setting:
        """A run's setting."""
        spec = record.specification
        return cls(spec.model, spec.dataset, spec.protocol, spec.protocol_options.get("batch_size"))

    @property
    def how(self) -> str:
        """The protocol in words."""
        if self.protocol == "batch":
            return "one batch" if self.batch_size is None else f"batches of {self.batch_size}"
        steps = f", {self.batch_size} at a time" if (self.batch_size or 1) > 1 else ""
        return {"single": "single edits", "sequential": f"sequential edits{steps}"}.get(self.protocol, self.protocol)

    @property
    def title(self) -> str:
        """The setting in a few words."""
        return f"{self.model}, {self.dataset}, {self.how}"


@dataclass(frozen=True)
class SettingGroup:
    """The runs of one setting, one for each method."""

    setting: Setting
    runs: list[ReportRun]

    def beside(self, run: ReportRun, published: Sequence[PublishedFigure]) -> PublishedFigure | None:
        """The published figure for comparison with a run, if there is one."""
        method = run.record.specification.method
        return next((one for one in published if one.fits(self.setting.model, self.setting.dataset, method)), None)


def group(records: Iterable[RunRecord]) -> list[SettingGroup]:
    """Runs by setting, in the order in which they come; those that differ only in their seed are pooled."""
    by_setting: dict[Setting, dict[str, list[RunRecord]]] = {}
    for record in records:
        key = json.dumps(_identity(record), sort_keys=True, default=str)
        by_setting.setdefault(Setting.of(record), {}).setdefault(key, []).append(record)
    return [
        SettingGroup(setting, label_runs([pooled(one) for one in same.values()]))
        for setting, same in by_setting.items()
    ]


def pooled(records: Sequence[RunRecord]) -> RunRecord:
    """One record of runs that differ in their seed: all probes together, each seed's edits being edits of their own.

    Costs are means; perplexities too. The specification is that of the first, with all seeds in its options.
    """
    first = records[0]
    if len(records) == 1:
        return first
    probes = [
        probe.model_copy(update={"edit_id": f"seed {one.specification.seed}: {probe.edit_id}"})
        for one in records
        for probe in one.probes
    ]
    seeds = [one.specification.seed for one in records]
    specification = first.specification.model_copy(update={"config": {**first.specification.config, "seeds": seeds}})
    scorings = first.specification.scorings
    return first.model_copy(
        update={
            "specification": specification,
            "status": next((one.status for one in records if one.status != "ok"), "ok"),
            "error": next((one.error for one in records if one.error), None),
            "probes": probes,
            "scores": aggregate.scores(_last(probes), scorings),
            "ceilings": aggregate.ceilings(_last(probes), scorings),
            "immediate": aggregate.scores([one for one in probes if one.phase == "immediate"], scorings),
            "checkpoints": [_checkpoint(point, records, probes, scorings) for point in first.checkpoints],
            "perplexity": {
                name: _mean([one.perplexity.get(name) for one in records])
                for name in ("before", "after", "median", "n")
            },
            "seconds": {name: _mean([one.seconds.get(name) for one in records]) or 0.0 for name in first.seconds},
            "seconds_per_edit": _mean([one.seconds_per_edit for one in records]),
            "peak_memory_bytes": max(one.peak_memory_bytes for one in records),
            "measures": {
                name: {
                    when: _mean([one.measures.get(name, {}).get(when) for one in records])
                    for when in ("before", "after")
                }
                for name in dict.fromkeys(name for one in records for name in one.measures)
            },
            "patch_bytes": round(_mean([one.patch_bytes for one in records]) or 0) or None,
            "counts": {name: sum(one.counts.get(name, 0) for one in records) for name in first.counts},
        }
    )


def _identity(record: RunRecord) -> dict[str, Any]:
    spec = record.specification
    options = {name: value for name, value in spec.config.items() if name != "seed"}
    return {"method": spec.method, "preset": spec.preset, "options": options, "num_edits": spec.num_edits}


def _last(probes: Sequence[ProbeResult]) -> list[ProbeResult]:
    """The final phase; in a sequence, what was asked at its end."""
    final = [one for one in probes if one.phase == "final"]
    end = max((one.checkpoint or 0 for one in final), default=0)
    return [one for one in final if (one.checkpoint or 0) == end]


def _checkpoint(
    point: SequenceCheckpoint, records: Sequence[RunRecord], probes: Sequence[ProbeResult], scorings: Sequence[str]
) -> SequenceCheckpoint:
    asked = [one for one in probes if one.phase == "final" and one.checkpoint == point.num_edits]
    alike = [one for record in records for one in record.checkpoints if one.num_edits == point.num_edits]
    return point.model_copy(
        update={
            "scores": aggregate.scores(asked, scorings),
            "perplexity": _mean([one.perplexity for one in alike]),
            "patch_norm": _mean([one.patch_norm for one in alike]),
        }
    )


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    # Exact sums: a model that fell apart has perplexities whose plain sum is too large for a number.
    return mean(known) if known else None
