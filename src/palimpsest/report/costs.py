"""Costs of editing: seconds by stage, training, memory, bytes, and further measures before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from palimpsest.report import tables
from palimpsest.report.markup import cell, described, table
from palimpsest.report.tables import ReportRun
from palimpsest.showing import size

# What a run's seconds go to beside the edits themselves.
_TESTING = frozenset({"evaluation", "base_answers", "perplexity", "measures", "saving", "total"})
_TOKEN, _DISTANCE = "token_seconds", "weight_distance."
_LEAST_SHARE = 0.005


def sections(runs: Sequence[ReportRun]) -> str:
    """All tables of costs that the runs have something for."""
    return _cost_table(runs) + _stage_table(runs) + _distance_table(runs) + _measure_table(runs)


def _cost_table(runs: Sequence[ReportRun]) -> str:
    scoring = (tables.scorings(runs) or ["generate"])[0]
    seconds, sizes = (
        tables.best(tables.among_holding(runs, scoring, values), is_lower_better=True)
        for values in ([run.record.seconds_per_edit for run in runs], [run.record.patch_bytes for run in runs])
    )
    columns: dict[str, Callable[[int, ReportRun], str]] = {
        "seconds per edit": lambda index, run: cell(
            tables.duration(run.record.seconds_per_edit), run.record.seconds_per_edit, is_best=index in seconds
        ),
        "patch size": lambda index, run: cell(
            size(run.record.patch_bytes), run.record.patch_bytes, is_best=index in sizes
        ),
        "peak memory": lambda _, run: _cell(size, run.record.peak_memory_bytes or None),
    }
    if any(run.record.specification.training for run in runs):
        columns["training"] = lambda _, run: _cell(_minutes, run.record.specification.training.get("seconds"))
    if any(_TOKEN in run.record.measures for run in runs):
        columns["a written token"] = lambda _, run: _cell(tables.duration, _measured(run, _TOKEN, "after"))
        columns["more than before"] = lambda _, run: _cell(_signed, _more(run))
    if any(run.record.perplexity.get("before") for run in runs):
        columns["perplexity before"] = lambda _, run: _cell(_perplexity, run.record.perplexity.get("before"))
        columns["perplexity after"] = lambda _, run: _cell(_perplexity, run.record.perplexity.get("after"))
    caption = (
        f"{described(runs)} Peak memory is of the whole process up to the end of the run. "
        "Best in bold, among methods whose edits hold."
    )
    if "a written token" in columns:
        caption += " A token's time includes its share of reading the prompt."
    return _of_runs(runs, columns, caption)


def _stage_table(runs: Sequence[ReportRun]) -> str:
    """Seconds per edit, by what they went to."""
    stages: dict[str, float] = {}
    for run in runs:
        for stage, spent in run.record.seconds.items():
            if stage not in _TESTING:
                stages[stage] = stages.get(stage, 0.0) + spent
    shown = [stage for stage, spent in stages.items() if spent > _LEAST_SHARE * sum(stages.values())]
    if len(shown) < 2:
        return ""
    columns = {stage: _stage_column(stage) for stage in sorted(shown, key=lambda stage: (stage == "other", stage))}
    caption = f"Seconds per edit by stage; stages that take next to nothing anywhere are left out. {described(runs)}"
    return f"<h3>Where the time goes</h3>{_of_runs(runs, columns, caption)}"


def _stage_column(stage: str) -> Callable[[int, ReportRun], str]:
    def found(_: int, run: ReportRun) -> str:
        spent = run.record.seconds.get(stage)
        return _cell(tables.duration, spent / run.record.specification.num_edits if spent else None)

    return found


def _distance_table(runs: Sequence[ReportRun]) -> str:
    """How far the weights of each layer moved."""
    places = _names(runs, lambda name: name.startswith(_DISTANCE))
    if not places:
        return ""
    columns = {name.removeprefix(_DISTANCE): _number_column(name, "after", "{:.2f}") for name in places}
    caption = "Euclidean distance of each part's weights from the unedited model's, by layer; the mean over patches."
    return f"<h3>How far weights move</h3>{_of_runs(_having(runs, places), columns, caption)}"


def _measure_table(runs: Sequence[ReportRun]) -> str:
    """Further measures before and after."""
    names = _names(runs, lambda name: name != _TOKEN and not name.startswith(_DISTANCE))
    if not names:
        return ""
    columns = {f"{name} {when}": _number_column(name, when, "{:.3g}") for name in names for when in ("before", "after")}
    return f"<h3>Besides</h3>{_of_runs(_having(runs, names), columns, f'{described(runs)} The mean over patches.')}"


def _names(runs: Sequence[ReportRun], is_wanted: Callable[[str], bool]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.record.measures if is_wanted(name)))


def _number_column(name: str, when: str, form: str) -> Callable[[int, ReportRun], str]:
    def found(_: int, run: ReportRun) -> str:
        return _cell(form.format, _measured(run, name, when))

    return found


def _having(runs: Sequence[ReportRun], names: Sequence[str]) -> list[ReportRun]:
    return [run for run in runs if any(name in run.record.measures for name in names)]


def _of_runs(runs: Sequence[ReportRun], columns: Mapping[str, Callable[[int, ReportRun], str]], caption: str) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in ("method", *columns))
    lines = [
        f'<tr><th scope="row">{escape(run.label)}</th>{"".join(write(index, run) for write in columns.values())}</tr>'
        for index, run in enumerate(runs)
    ]
    return table(head, lines, caption, kind="runs costs")


def _cell(write: Callable[[float], str], value: float | None) -> str:
    return cell("–" if value is None else write(value), value)


def _measured(run: ReportRun, name: str, when: str) -> float | None:
    return run.record.measures.get(name, {}).get(when)


def _more(run: ReportRun) -> float | None:
    before, after = (_measured(run, _TOKEN, when) for when in ("before", "after"))
    return None if not before or after is None else after / before - 1


def _signed(share: float) -> str:
    return f"{100 * share:+.0f}%"


def _minutes(seconds: float) -> str:
    return tables.duration(seconds) if seconds < 120 else f"{seconds / 60:.0f} min"


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.2g}"
