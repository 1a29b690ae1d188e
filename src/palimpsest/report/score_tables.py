"""Tables of scores: the runs of one setting, the best first, and every setting beside the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING

from palimpsest.report import tables
from palimpsest.report.definitions import LOWER_IS_BETTER, METRICS, SHORT, label
from palimpsest.report.markup import cell, described, interval, table
from palimpsest.report.settings import SettingGroup
from palimpsest.report.tables import ReportRun, percent

if TYPE_CHECKING:
    from palimpsest.evaluation import Estimate, PublishedFigure

_PUBLISHED = {"reliability": "rel.", "generality": "gen.", "locality": "loc."}
_PAPER = ("paper detail begins", "paper detail", "paper detail")
_FAMILIES = ("reliability", "generality", "locality", "portability")
# Heads as short as their columns are narrow: under "lower is better", and on a phone.
_SHORT = MappingProxyType(
    {
        "old_answer_rate": "old answer",
        "old_thought_rate": "old thought",
        "old_deduced_rate": "old deduced",
        "leak_rate": "leak",
        "degenerate_rate": "babble",
    }
)
_PHONE = MappingProxyType({"reliability": "rel.", "generality": "gen.", "locality": "loc.", "portability": "port."})
_SCORE = "Score: the harmonic mean of reliability, generality and locality (locality's kinds count alike)."


@dataclass(frozen=True)
class _Column:
    """One column of scores."""

    name: str
    """The metric, or the family whose kinds it is the mean of."""
    num_kinds: int = 1
    group: str = ""
    """What stands above it and its neighbours; columns of a group are left out on a phone until they are asked for."""
    begins: bool = False
    """Whether it is the first of its group."""

    @property
    def is_mean(self) -> bool:
        """Whether it is a mean over several kinds."""
        return self.num_kinds > 1

    @property
    def kind(self) -> str:
        """Its CSS class."""
        return ("detail begins" if self.begins else "detail") if self.group else ""


def score_table(group: SettingGroup, scoring: str, published: Sequence[PublishedFigure], *, with_score: bool) -> str:
    """The runs of a setting by their score, every metric with its interval.

    Arguments:
        with_score: whether the score is a column; not where an overview has it already.
    """
    runs = tables.ranked(group.runs, scoring)
    columns = _columns(runs, scoring)
    beside = [group.beside(run, published) for run in runs]
    sources = list(dict.fromkeys(one.source for one in beside if one is not None))
    best = {column.name: _best(runs, scoring, column) for column in columns}
    same_n = {column.name: None if column.is_mean else _common_n(runs, scoring, column.name) for column in columns}
    with_score = with_score and any(run.score(scoring) is not None for run in runs)
    head = '<th scope="col">method</th>' + ('<th scope="col">score</th>' if with_score else "")
    head += "".join(_head(column, same_n[column.name]) for column in columns)
    if sources:
        head += "".join(
            f'<th scope="col" class="{kind}" data-name="paper: {name}">{short}</th>'
            for kind, (name, short) in zip(_PAPER, _PUBLISHED.items(), strict=True)
        )
    groups = _groups(columns, num_before=2 if with_score else 1, has_published=bool(sources))
    lines = []
    for index, run in enumerate(runs):
        cells = _score_cell(run.score(scoring)) if with_score else ""
        cells += "".join(
            _cell(run, scoring, column, index in best[column.name], same_n[column.name] is None) for column in columns
        )
        cells += _published_cells(beside[index]) if sources else ""
        lines.append(f'<tr><th scope="row">{escape(run.label)}{_state(run)}</th>{cells}</tr>')
    ceilings = _ceiling_lines(runs, scoring, columns, with_score=with_score, num_more=3 if sources else 0)
    caption = f"Scoring: {SHORT.get(scoring, scoring)}. {described(runs)} The best score first. {_SCORE} "
    caption += (
        "Below each mean its 95% interval, clustered by edit; n is the number of probes. Best in bold; for locality, "
        f"among methods whose edits hold (reliability of {percent(tables.HOLDS)} or more), since what does nothing "
        "disturbs nothing."
    )
    if ceilings:
        caption += " Ceiling: how often the unedited model gives its own true answers to the same questions."
    if sources:
        caption += (
            f" Paper: {'; '.join(sources)}; another model, teacher-forced, so orderings compare and levels do not."
        )
    more = ""
    if any(column.group for column in columns):
        more = '<label class="more"><input type="checkbox" class="every-kind"> every kind</label>'
    return f'<div class="scores">{more}{table(head, lines, caption, groups=groups, foot=ceilings)}</div>'


def overview(groups: Sequence[SettingGroup], scoring: str) -> str:
    """The score of every method in every setting, the best on average first; nothing if there is no score."""
    reached = [
        {run.label: score for run in group.runs if (score := run.score(scoring)) is not None} for group in groups
    ]
    names = list(dict.fromkeys(name for one in reached for name in one))
    if not names:
        return ""

    def average(name: str) -> float:
        known = [one[name] for one in reached if name in one]
        return sum(known) / len(known)

    head = '<th scope="col">method</th>'
    head += "".join(f'<th scope="col">{escape(group.setting.title).replace(", ", ", <br>")}</th>' for group in groups)
    lines = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(_score_cell(one.get(name)) for one in reached)}</tr>'
        for name in sorted(names, key=average, reverse=True)
    ]
    caption = f"Scoring: {SHORT.get(scoring, scoring)}. The best on average first. {_SCORE}"
    ceilings = [
        next((found for run in group.runs if (found := run.ceiling(scoring)) is not None), None) for group in groups
    ]
    foot = ""
    if any(one is not None for one in ceilings):
        cells = "".join(_score_cell(one) for one in ceilings)
        foot = f'<tr><th scope="row">ceiling</th>{cells}</tr>'
        caption += " Ceiling: the same of the unedited model's true answers."
    return table(head, lines, caption, foot=foot)


def _columns(runs: Sequence[ReportRun], scoring: str) -> list[_Column]:
    """The four families first; then the kinds of a family that has several, and what is worse when higher."""
    names = tables.metrics(runs, scoring)
    first: list[_Column] = []
    grouped: dict[str, list[str]] = {}
    for family in _FAMILIES:
        kinds = [name for name in names if name.split(".")[0] == family]
        if kinds:
            first.append(_Column(kinds[0] if len(kinds) == 1 else family, num_kinds=len(kinds)))
        if len(kinds) > 1:
            grouped[f"{family} by kind"] = kinds
    others = [name for name in names if name.split(".")[0] not in _FAMILIES]
    grouped["lower is better"] = [name for name in others if name in LOWER_IS_BETTER]
    grouped["others"] = [name for name in others if name not in LOWER_IS_BETTER]
    return first + [
        _Column(name, group=group, begins=place == 0)
        for group, inside in grouped.items()
        for place, name in enumerate(inside)
    ]


def _groups(columns: Sequence[_Column], *, num_before: int, has_published: bool) -> str:
    """Heads over the groups; empty if there is none."""
    counts: dict[str, int] = {}
    for column in columns:
        counts[column.group] = counts.get(column.group, 0) + 1
    if has_published:
        counts["paper"] = len(_PUBLISHED)
    if set(counts) == {""}:
        return ""
    cells = f'<td colspan="{num_before + counts.pop("", 0)}"></td>'
    return cells + "".join(
        f'<th scope="colgroup" colspan="{count}" class="detail begins">{group}</th>' for group, count in counts.items()
    )


def _best(runs: Sequence[ReportRun], scoring: str, column: _Column) -> set[int]:
    if not column.is_mean:
        return tables.best_of_metric(runs, scoring, column.name)
    values = [run.family_mean(scoring, column.name) for run in runs]
    return tables.best(tables.among_holding(runs, scoring, values) if column.name == "locality" else values)


def _head(column: _Column, same_n: int | None) -> str:
    name = label(column.name)
    head, _, kind = name.partition(": ")
    text = escape(_SHORT.get(column.name) or (kind if column.group and kind else head))
    if not column.group:
        text = f'<span class="long">{text}</span><span class="short" aria-hidden="true">{_PHONE.get(head, text)}</span>'
        text += f" <br>{escape(kind)}" if kind else ""
    below = f"mean of {column.num_kinds}" if column.is_mean else f"n = {same_n}" if same_n is not None else ""
    classes = f' class="{column.kind}"' if column.kind else ""
    title = f"The mean over {column.num_kinds} kinds." if column.is_mean else METRICS.get(column.name, column.name)
    small = f" <small>{below}</small>" if below else ""
    return f'<th scope="col"{classes} data-name="{escape(name)}" title="{escape(title)}">{text}{small}</th>'


def _score_cell(score: float | None) -> str:
    if score is None:
        return cell("–", kind="missing")
    return cell(percent(score), score, below=interval(0, score, score), kind="score")


def _cell(run: ReportRun, scoring: str, column: _Column, is_best: bool, shows_n: bool) -> str:
    if column.is_mean:
        mean = run.family_mean(scoring, column.name)
        if mean is None:
            return cell("–", kind="missing")
        return cell(percent(mean), mean, is_best=is_best, below=interval(mean, mean, mean))
    return _estimate_cell(run.estimate(scoring, column.name), column, is_best=is_best, shows_n=shows_n)


def _estimate_cell(found: Estimate | None, column: _Column, *, is_best: bool = False, shows_n: bool = False) -> str:
    if found is None:
        return cell("–", kind=f"missing {column.kind}".strip())
    count = f" n = {found.n}" if shows_n else ""
    below = f" <small>{100 * found.low:.0f}–{100 * found.high:.0f}{count}</small>"
    below += interval(found.low, found.mean, found.high)
    return cell(percent(found.mean), found.mean, is_best=is_best, below=below, kind=column.kind)


def _ceiling_lines(
    runs: Sequence[ReportRun], scoring: str, columns: Sequence[_Column], *, with_score: bool, num_more: int
) -> str:
    """Returns the unedited model's scores: one line if all runs asked the same, else one per distinct set."""
    found: dict[str, tuple[ReportRun, list[str]]] = {}
    for run in runs:
        if ceilings := run.record.ceilings.get(scoring):
            key = repr(sorted((name, one.mean, one.n) for name, one in ceilings.items()))
            found.setdefault(key, (run, []))[1].append(run.label)
    lines = []
    for run, names in found.values():
        ceilings = run.record.ceilings[scoring]
        cells = _score_cell(run.ceiling(scoring)) if with_score else ""
        for column in columns:
            if column.is_mean:
                mean = tables.mean_over_kinds(ceilings, column.name)
                cells += cell(percent(mean), mean, kind="missing" if mean is None else "")
            else:
                cells += _estimate_cell(ceilings.get(column.name), column)
        cells += cell("", kind="detail") * num_more
        which = "" if len(found) == 1 else f" <small>of {escape(tables.listed(names))}</small>"
        lines.append(f'<tr><th scope="row">ceiling{which}</th>{cells}</tr>')
    return "".join(lines)


def _published_cells(one: PublishedFigure | None) -> str:
    values = [None if one is None else getattr(one, name) for name in _PUBLISHED]
    return "".join(
        cell("–" if value is None else f"{value:.0f}%", value, kind=kind)
        for kind, value in zip(_PAPER, values, strict=True)
    )


def _common_n(runs: Sequence[ReportRun], scoring: str, metric: str) -> int | None:
    counts = {found.n for run in runs if (found := run.estimate(scoring, metric))}
    return counts.pop() if len(counts) == 1 else None


def _state(run: ReportRun) -> str:
    if run.record.status == "ok":
        return ""
    return f'<span class="state" title="{escape(run.record.error or "")}">{run.record.status}</span>'
