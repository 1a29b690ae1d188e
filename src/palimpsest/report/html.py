"""The page: one HTML file that needs nothing else, for a screen or a phone, by day or by night."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.errors import DataError
from palimpsest.files import write_text
from palimpsest.report import comparing, leading, reading, settings, tables
from palimpsest.report.definitions import METRICS, SHORT, label, protocol_text, scoring_text
from palimpsest.report.settings import SettingGroup
from palimpsest.report.tables import ReportRun

if TYPE_CHECKING:
    from palimpsest.evaluation import PublishedFigure, RunRecord

_EDITS_BUDGET = 1_200_000
_SHOWN_SETTINGS = 6
_DATA_BUDGET = 1_000_000


def build_report(records: Sequence[RunRecord], out: str | Path, *, published: Sequence[PublishedFigure] = ()) -> None:
    """Writes the page: findings, tables, plots, every edit to read, how it was measured, and the data.

    Arguments:
        records: the runs. Those of one model, data set and protocol stand in one table, seeds put together.
        out: the file.
        published: published figures, for comparison with ours.

    Raises `DataError` when there are no records, `OutputError` when the disk refuses.
    """
    if not records:
        raise DataError("There are no runs to report on.", expected="at least one run", found="none")
    write_text(Path(out), page(tables.label_runs(records), settings.group(records), published))


def page(runs: Sequence[ReportRun], groups: Sequence[SettingGroup], published: Sequence[PublishedFigure] = ()) -> str:
    """The whole page as text."""
    names = tables.scorings(runs) or ["generate"]
    read_under = names[0]
    views = reading.collect(runs, read_under)
    edits, num_shown = reading.render(views, runs, budget=_EDITS_BUDGET)
    data, has_probes = _data(runs)
    switch, shows_chosen = _switch(names)
    sections = [
        _header(runs, groups, read_under),
        _section("compare", _compared(groups), switch + comparing.sections(groups, names, published)),
        _edits_section(edits, num_shown, len(views), runs, read_under, views),
        _section("how", "How it was measured", _method_section(runs, names)),
        _section("data", "The data", _data_section(has_probes)),
    ]
    title = f"Palimpsest: {_title(runs)}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_asset('page.css')}{shows_chosen}</style>\n</head>\n<body>\n"
        "<main>\n" + "\n".join(sections) + "\n</main>\n"
        f'<script type="application/json" id="records">{data}</script>\n'
        f"<script>\n{_asset('page.js')}</script>\n</body>\n</html>\n"
    )


def _header(runs: Sequence[ReportRun], groups: Sequence[SettingGroup], scoring: str) -> str:
    said = tables.in_words(groups[0].runs) if len(groups) == 1 else _in_short(groups)
    findings = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
    links = "".join(
        f'<a href="#{anchor}">{text}</a>'
        for anchor, text in (
            ("compare", "compare"),
            ("edits", "every edit"),
            ("how", "how"),
            ("data", "data"),
        )
    )
    return (
        f"<header><p class=brand>Palimpsest</p><h1>{escape(_title(runs))}</h1><div class=leading>"
        f'{leading.one_edit(groups[0].runs, scoring)}<ul class="findings">{findings}</ul></div>'
        f"<nav>{links}</nav></header>"
    )


def _compared(groups: Sequence[SettingGroup]) -> str:
    return "Methods side by side" if any(len(group.runs) > 1 for group in groups) else "What became of the edits"


def _in_short(groups: Sequence[SettingGroup]) -> list[str]:
    """One sentence for each setting: the first of its summary."""
    said = [(one.setting.title, tables.in_words(one.runs)) for one in groups]
    shown = [f"{title}: {sentences[0]}" for title, sentences in said if sentences][:_SHOWN_SETTINGS]
    more = len(groups) - len(shown)
    return shown + ([f"And {more} more settings below."] if more > 0 else [])


def _title(runs: Sequence[ReportRun]) -> str:
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


def _switch(names: Sequence[str]) -> tuple[str, str]:
    """The choice of a scoring, and the rules that show the chosen one: nothing runs for it."""
    if len(names) < 2:
        return "", ""
    choices = "".join(
        f'<label title="{escape(scoring_text(name))}"><input type="radio" name="scoring" id="scoring-{number}"'
        f"{' checked' if number == 0 else ''}> {escape(SHORT.get(name, name))}</label>"
        for number, name in enumerate(names)
    )
    rules = "".join(
        f"main:has(#scoring-{number}:checked) .scoring:not(.scoring-{number}) {{ display: none; }}\n"
        for number in range(len(names))
    )
    return f'<fieldset class="switch"><legend>Scoring</legend>{choices}</fieldset>', rules


def _edits_section(
    edits: str, num_shown: int, num_all: int, runs: Sequence[ReportRun], scoring: str, views: Sequence[reading.EditView]
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
        f'<p class="note">What the model wrote, before and after. Verdicts are by {SHORT.get(scoring, scoring)}; '
        f"answers that several methods gave stand together.{cut}</p>"
    )
    return _section("edits", "Every edit to read", f'{note}{controls}<div class="edits">{edits}</div>')


def _method_section(runs: Sequence[ReportRun], names: Sequence[str]) -> str:
    used = sorted({metric for name in names for metric in tables.metrics(runs, name)}, key=list(METRICS).index)
    protocols = sorted({run.record.specification.protocol for run in runs})
    parts = [
        "<h3>Metrics</h3>" + _definitions([(label(name), METRICS[name]) for name in used]),
        "<h3>Scorings</h3>" + _definitions([(SHORT.get(name, name), scoring_text(name)) for name in names]),
        "<h3>Protocol</h3>" + _definitions([(name, protocol_text(name)) for name in protocols]),
        "<h3>Intervals</h3><p>95%, by Wilson's formula on the effective number of probes: probes of one edit stand or "
        "fall together, so they count for less than as many independent ones.</p>",
        "<h3>Runs</h3>" + "".join(_run_details(run) for run in runs),
    ]
    return "".join(parts)


def _definitions(pairs: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs) + "</dl>"


def _run_details(run: ReportRun) -> str:
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
    table = f'<div class="scroll" tabindex="0"><table class="plain">{rows}</table></div>'
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


def _data(runs: Sequence[ReportRun]) -> tuple[str, bool]:
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
