"""The page: one HTML file that needs nothing else, for a screen or a phone, by day or by night."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.errors import DataError
from palimpsest.provenance import write_text
from palimpsest.report import plots, reading, tables
from palimpsest.report.definitions import MEASURES, PROTOCOLS, SCORINGS, label
from palimpsest.report.tables import Run, percent

if TYPE_CHECKING:
    from palimpsest.evaluation.records import RunRecord

_EDITS_BUDGET = 1_200_000
_DATA_BUDGET = 1_000_000
_SHORT = {"generate": "free generation", "teacher_forced": "teacher-forced", "log_prob": "log-probability"}


def build_report(records: Sequence[RunRecord], out: str | Path) -> None:
    """Writes the page: findings, table, plots, every edit to read, how it was measured, and the data.

    Raises `DataError` when there are no records, `OutputError` when the disk refuses.
    """
    if not records:
        raise DataError("There are no runs to report on.", expected="at least one run", found="none")
    write_text(Path(out), page(tables.label_runs(records)))


def page(runs: Sequence[Run]) -> str:
    """The whole page as text."""
    names = tables.scorings(runs) or ["generate"]
    read_under = names[0]
    views = reading.collect(runs, read_under)
    edits, num_shown = reading.render(views, runs, budget=_EDITS_BUDGET)
    data, has_probes = _data(runs)
    switch = _switch(names)
    sections = [
        _header(runs),
        _section(
            "compare", "Methods side by side", switch + "".join(_for_scoring(name, runs, names) for name in names)
        ),
        _section("cost", "What it costs", _scroll(plots.costs_plot(runs)) + _cost_table(runs)),
        _edits_section(edits, num_shown, len(views), runs, read_under, views),
        _section("how", "How it was measured", _method_section(runs, names)),
        _section("data", "The data", _data_section(has_probes)),
    ]
    title = f"Palimpsest: {_title(runs)}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n"
        f'<main data-scoring="{names[0]}">\n' + "\n".join(sections) + "\n</main>\n"
        f'<script type="application/json" id="records">{data}</script>\n'
        f"<script>\n{_asset('page.js')}</script>\n</body>\n</html>\n"
    )


def _header(runs: Sequence[Run]) -> str:
    findings = "".join(f"<li>{escape(sentence)}</li>" for sentence in tables.in_words(runs))
    links = "".join(
        f'<a href="#{anchor}">{text}</a>'
        for anchor, text in (
            ("compare", "compare"),
            ("cost", "cost"),
            ("edits", "every edit"),
            ("how", "how"),
            ("data", "data"),
        )
    )
    return (
        f"<header><p class=brand>Palimpsest</p><h1>{escape(_title(runs))}</h1>"
        f'<ul class="findings">{findings}</ul><nav>{links}</nav></header>'
    )


def _title(runs: Sequence[Run]) -> str:
    specs = [run.record.specification for run in runs]
    methods, models = {spec.method for spec in specs}, sorted({_model_name(spec.model) for spec in specs})
    counts = sorted({spec.num_edits for spec in specs})
    amount = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    facts = "fact" if counts == [1] else "facts"
    which = f"the model {models[0]}" if len(models) == 1 else tables.listed(models)
    how = next(iter(methods)) if len(methods) == 1 else f"{len(methods)} methods"
    return f"{amount} {facts} of {which}, edited by {how}"


def _model_name(model: str) -> str:
    return Path(model).name if model.startswith(("/", ".", "~")) else model


def _section(anchor: str, title: str, body: str) -> str:
    return f'<section id="{anchor}"><h2>{title}</h2>{body}</section>'


def _switch(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" data-choose="{name}" aria-pressed="{str(name == names[0]).lower()}">'
        f"{escape(_SHORT.get(name, name))}</button>"
        for name in names
    )
    return f'<div class="switch" role="group" aria-label="Scoring">Scoring: {buttons}</div>'


def _for_scoring(scoring: str, runs: Sequence[Run], names: Sequence[str]) -> str:
    hidden = "" if scoring == names[0] else " hidden"
    heat = plots.locality_plot(runs, scoring)
    curves = plots.curves_plot(runs, scoring)
    parts = [
        f'<p class="note">{escape(SCORINGS.get(scoring, scoring))}</p>',
        _score_table(runs, scoring),
        f"<h3>With intervals</h3>{_scroll(plots.metrics_plot(runs, scoring))}",
    ]
    if heat:
        parts.append(f"<h3>What stayed as it was, by kind</h3>{_scroll(heat)}")
    if curves:
        parts.append(f"<h3>As edits add up</h3>{_scroll(curves)}")
    return f'<div class="scoring" data-scoring="{scoring}"{hidden}>{"".join(parts)}</div>'


def _score_table(runs: Sequence[Run], scoring: str) -> str:
    names = tables.metrics(runs, scoring)
    best = {name: tables.best_of_metric(runs, scoring, name) for name in names}
    same_n = {name: _common_n(runs, scoring, name) for name in names}
    head = "".join(
        f'<th scope="col" title="{escape(MEASURES.get(name, name))}">{_column_head(name)}'
        + (f"<small>n = {same_n[name]}</small>" if same_n[name] is not None else "")
        + "</th>"
        for name in names
    )
    lines = []
    for index, run in enumerate(runs):
        cells = "".join(_score_cell(run, scoring, name, index in best[name], same_n[name] is None) for name in names)
        lines.append(f'<tr><th scope="row">{escape(run.label)}{_state(run)}</th>{cells}</tr>')
    caption = (
        f"Scoring: {_SHORT.get(scoring, scoring)}. {_setting(runs)} Mean with its 95% interval, clustered by edit; "
        f"n is the number of probes. Best in bold; for locality, among methods whose edits hold (reliability of "
        f"{percent(tables.HOLDS)} or more), since what does nothing disturbs nothing."
    )
    return _table(f'<th scope="col">method</th>{head}', lines, caption)


def _column_head(metric: str) -> str:
    head, _, kind = label(metric).partition(": ")
    return f"{escape(head)}<br>{escape(kind)}" if kind else escape(head)


def _score_cell(run: Run, scoring: str, metric: str, is_best: bool, shows_n: bool) -> str:
    found = run.estimate(scoring, metric)
    if found is None:
        return '<td class="missing">–</td>'
    mean = f"<b>{percent(found.mean)}</b>" if is_best else percent(found.mean)
    count = f" n = {found.n}" if shows_n else ""
    return f"<td>{mean}<small>{100 * found.low:.0f}–{100 * found.high:.0f}{count}</small></td>"


def _common_n(runs: Sequence[Run], scoring: str, metric: str) -> int | None:
    counts = {found.n for run in runs if (found := run.estimate(scoring, metric))}
    return counts.pop() if len(counts) == 1 else None


def _state(run: Run) -> str:
    if run.record.status == "ok":
        return ""
    return f'<span class="state" title="{escape(run.record.error or "")}">{run.record.status}</span>'


def _cost_table(runs: Sequence[Run]) -> str:
    scoring = (tables.scorings(runs) or ["generate"])[0]
    seconds, sizes = (
        tables.best(tables.among_holding(runs, scoring, values), is_lower_better=True)
        for values in ([run.record.seconds_per_edit for run in runs], [run.record.patch_bytes for run in runs])
    )
    has_perplexity = any(run.record.perplexity.get("before") for run in runs)
    lines = []
    for index, run in enumerate(runs):
        record = run.record
        cells = [
            _cost(tables.duration(record.seconds_per_edit), index in seconds),
            _cost(tables.size(record.patch_bytes), index in sizes),
            _cost(tables.size(record.peak_memory_bytes or None)),
        ]
        if has_perplexity:
            cells += [_cost(_perplexity(record.perplexity.get(name))) for name in ("before", "after")]
        lines.append(f'<tr><th scope="row">{escape(run.label)}</th>{"".join(cells)}</tr>')
    heads = ["method", "seconds per edit", "patch size", "peak memory"]
    heads += ["perplexity before", "perplexity after"] if has_perplexity else []
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    caption = (
        f"{_setting(runs)} Peak memory is of the whole process up to the end of the run. "
        "Best in bold, among methods whose edits hold."
    )
    return _table(head, lines, caption)


def _cost(text: str, is_best: bool = False) -> str:
    return f"<td>{f'<b>{text}</b>' if is_best else text}</td>"


def _perplexity(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 1000 else f"{value:.2g}"


def _table(head: str, lines: Sequence[str], caption: str) -> str:
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="caption">{escape(caption)}</p>'
    )


def _scroll(drawing: str) -> str:
    return f'<figure class="scroll" tabindex="0">{drawing}</figure>' if drawing else ""


def _setting(runs: Sequence[Run]) -> str:
    """Data set, protocol, number of edits and seed in a sentence; several where runs differ."""
    specs = [run.record.specification for run in runs]
    datasets = tables.listed(sorted({spec.dataset for spec in specs}))
    protocols = tables.listed(sorted({spec.protocol for spec in specs}))
    counts = tables.listed([str(number) for number in sorted({spec.num_edits for spec in specs})])
    seeds = tables.listed([str(number) for number in sorted({spec.seed for spec in specs})])
    return f"Data set {datasets}, protocol {protocols}, {counts} edits, seed {seeds}."


def _edits_section(
    edits: str, num_shown: int, num_all: int, runs: Sequence[Run], scoring: str, views: Sequence[reading.EditView]
) -> str:
    kinds = sorted(
        {question.kind for view in views for question in view.questions.values()}, key=lambda kind: label(kind)
    )
    kind_options = "".join(f'<option value="{escape(kind)}">{escape(label(kind))}</option>' for kind in kinds)
    run_options = "".join(f'<option value="{escape(run.label)}">{escape(run.label)}</option>' for run in runs)
    cut = (
        f" The first {num_shown} of {num_all} edits are shown; the records have them all."
        if num_shown < num_all
        else ""
    )
    controls = (
        '<form class="filters" hidden>'
        '<label class="wide">Search'
        '<input type="search" name="text" placeholder="a word of a question or an answer"></label>'
        f'<label>Question<select name="kind"><option value="">every kind</option>{kind_options}</select></label>'
        f'<label>Method<select name="run"><option value="">every method</option>{run_options}</select></label>'
        '<label>Verdict<select name="verdict"><option value="">right or wrong</option>'
        '<option value="no">wrong</option><option value="yes">right</option></select></label>'
        '<output aria-live="polite"></output></form>'
    )
    note = (
        f'<p class="note">What the model wrote, before and after. Verdicts are by {_SHORT.get(scoring, scoring)}; '
        f"answers that several methods gave stand together.{cut}</p>"
    )
    return _section("edits", "Every edit to read", note + controls + edits)


def _method_section(runs: Sequence[Run], names: Sequence[str]) -> str:
    used = sorted({metric for name in names for metric in tables.metrics(runs, name)}, key=list(MEASURES).index)
    protocols = sorted({run.record.specification.protocol for run in runs})
    parts = [
        "<h3>Measures</h3>" + _definitions([(label(name), MEASURES[name]) for name in used]),
        "<h3>Scorings</h3>" + _definitions([(_SHORT.get(name, name), SCORINGS.get(name, name)) for name in names]),
        "<h3>Protocol</h3>" + _definitions([(name, PROTOCOLS.get(name, name)) for name in protocols]),
        "<h3>Intervals</h3><p>95%, by Wilson's formula on the effective number of probes: probes of one edit stand or "
        "fall together, so they count for less than as many independent ones.</p>",
        "<h3>Runs</h3>" + "".join(_run_details(run) for run in runs),
    ]
    return "".join(parts)


def _definitions(pairs: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs) + "</dl>"


def _run_details(run: Run) -> str:
    record, spec = run.record, run.record.specification
    facts: list[tuple[str, Any]] = [
        ("model", spec.model),
        ("preset", spec.preset or "none"),
        ("options", spec.config),
        ("data set", f"{spec.dataset} (fingerprint {spec.dataset_fingerprint})"),
        ("protocol", f"{spec.protocol} {json.dumps(spec.protocol_options) if spec.protocol_options else ''}"),
        ("edits and seed", f"{spec.num_edits}, seed {spec.seed}"),
        ("values", record.counts),
        ("seconds", {name: round(value, 2) for name, value in record.seconds.items()}),
        ("versions", spec.versions),
        ("hardware", spec.hardware),
        ("made", spec.created),
    ]
    if record.error:
        facts.insert(0, ("error", record.error))
    if record.failed_edits:
        facts.insert(0, ("failed edits", [failed.model_dump() for failed in record.failed_edits]))
    facts += [("note", note) for note in record.notes]
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(_readable(value))}</td></tr>' for name, value in facts
    )
    table = f'<div class="scroll"><table class="plain">{rows}</table></div>'
    return f"<details><summary>{escape(run.label)}</summary>{table}</details>"


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return (
            ", ".join(f"{key} = {json.dumps(item, default=str, ensure_ascii=False)}" for key, item in value.items())
            or "none"
        )
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _data_section(has_probes: bool) -> str:
    what = "all scores and every answer" if has_probes else "all scores; every answer is in the runs' own folders"
    return (
        f"<p>This page carries its own data: {what}. "
        '<a id="download" href="#data" download="palimpsest-runs.json" hidden>'
        "Download as JSON</a><noscript>It is the JSON at the end of this file.</noscript></p>"
    )


def _data(runs: Sequence[Run]) -> tuple[str, bool]:
    """The records as JSON that cannot end its script element, and whether the probes are in it."""
    whole = [{"label": run.label, **run.record.model_dump(mode="json")} for run in runs]
    text = json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
    has_probes = len(text) <= _DATA_BUDGET
    if not has_probes:
        for record in whole:
            record.pop("probes")
        text = json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"), has_probes


def _asset(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
