"""Runs of one setting stand in one table, seeds put together, published figures beside them."""

from __future__ import annotations

import csv
import re

import pytest

import fake_runs as fakes
from palimpsest.errors import OutputError
from palimpsest.evaluation import PublishedFigure
from palimpsest.report import build_report
from palimpsest.report.exports import write_tables
from palimpsest.report.plots import batches
from palimpsest.report.score_tables import overview
from palimpsest.report.settings import group, pooled

PAPER = PublishedFigure(
    source="arXiv:0000.00000, table 1",
    model="world",
    dataset="world-counterfact",
    method="rome",
    reliability=91.2,
    generality=83.4,
)


def placed(record, model="world", batch_size=None):
    options = {} if batch_size is None else {"batch_size": batch_size}
    specification = record.specification.model_copy(update={"model": model, "protocol_options": options})
    return record.model_copy(update={"specification": specification})


def several():
    """Two models with two methods and two seeds, and batches of two sizes on one of them."""
    single = [
        placed(fakes.record(method, seed=seed), model)
        for model in ("world", "world-t5")
        for method in ("ft", "rome")
        for seed in (0, 1)
    ]
    return single + [
        placed(fakes.record(method, protocol="batch"), batch_size=size)
        for size in (10, 100)
        for method in ("ft", "rome")
    ]


def test_seeds_are_pooled_and_settings_kept_apart():
    groups = group(several())
    assert [one.setting.title for one in groups] == [
        "world, world-counterfact, single edits",
        "world-t5, world-counterfact, single edits",
        "world, world-counterfact, batches of 10",
        "world, world-counterfact, batches of 100",
    ]
    assert [[run.label for run in one.runs] for one in groups] == [["ft", "rome"]] * 4


def test_a_pooled_run_has_the_probes_of_all_seeds():
    records = [fakes.record("ft", seed=seed) for seed in (0, 1, 2)]
    one = pooled(records)
    for metric, found in one.scores["generate"].items():
        parts = [record.scores["generate"][metric] for record in records]
        assert found.n == sum(part.n for part in parts)
        assert found.mean == pytest.approx(sum(part.mean * part.n for part in parts) / found.n)
        # Fifteen edits say more than five.
        assert found.high - found.low < max(part.high - part.low for part in parts)
    assert one.seconds_per_edit == pytest.approx(sum(record.seconds_per_edit for record in records) / 3)
    assert one.specification.config["seeds"] == [0, 1, 2]
    assert pooled(records[:1]) is records[0]


def test_a_pooled_sequence_keeps_its_checkpoints():
    one = pooled([fakes.record("ft", protocol="sequential", seed=seed) for seed in (0, 1)])
    assert [point.num_edits for point in one.checkpoints] == [1, 2, 5]
    assert one.checkpoints[-1].scores == one.scores
    assert one.scores["generate"]["reliability"].n == 10


def test_the_page_has_every_setting_and_the_published_figures(tmp_path):
    build_report(several(), tmp_path / "page.html", published=[PAPER])
    page = (tmp_path / "page.html").read_text()
    assert page.count('<details class="setting"') == 4
    assert page.count('<details class="setting" open>') == 1
    # Every setting of this model and data set has the method, under three scorings.
    row = (
        '<td class="paper detail begins" data-sort="91.2">91%</td><td class="paper detail" data-sort="83.4">83%</td>'
        '<td class="paper detail">–</td>'
    )
    assert page.count(row) == 3 * 3
    assert "arXiv:0000.00000, table 1; another model" in page
    assert "Every method in every setting" in page
    assert "As batches grow" in page


def test_plots_of_several_settings_and_none_where_there_is_nothing_to_compare():
    groups = group(several())
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', overview(groups, "generate"))
    shares = {name: [float(one) for one in re.findall(r'data-sort="(.*?)"', cells)] for name, cells in rows}
    for name, found in shares.items():
        runs = [run for one in groups for run in one.runs if run.label == name]
        assert found == pytest.approx([run.score("generate") for run in runs])
    means = [sum(found) / len(found) for found in shares.values()]
    assert len(shares) == 2 and means == sorted(means, reverse=True)
    assert "facts in a batch" in batches(groups, "generate")
    assert batches(groups[:2], "generate") == ""
    # Nothing was scored in that way: no empty axes either.
    assert batches(groups, "hits_at_1") == ""


def test_tables_as_files(tmp_path):
    groups = group(several())
    write_tables(groups, tmp_path / "tables", [PAPER])
    names = sorted(file.name for file in (tmp_path / "tables").iterdir())
    assert len(names) == 1 + 4 * 3 * 2
    found = groups[0].runs[1].estimate("generate", "reliability")
    markdown = (tmp_path / "tables" / "01-world-world-counterfact-single-edits-generate.md").read_text()
    row = next(line for line in markdown.splitlines() if line.startswith("| rome"))
    assert f"{100 * found.mean:.1f}" in row
    assert row.endswith("| 91.2 / 83.4 / - |")
    latex = (tmp_path / "tables" / "01-world-world-counterfact-single-edits-generate.tex").read_text()
    assert latex.count(r"\\") == 3
    assert latex.count("&") == 3 * (markdown.splitlines()[2].count("|") - 2)
    with (tmp_path / "tables" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    mine = [
        one for one in rows if (one["setting"], one["scoring"], one["method"], one["metric"])
        == (groups[0].setting.title, "generate", "rome", "reliability")
    ]  # fmt: skip
    assert [float(one["mean"]) for one in mine] == [found.mean]
    with pytest.raises(OutputError):
        write_tables(groups, tmp_path / "tables")


def test_names_cannot_break_a_latex_table(tmp_path):
    record = fakes.record("ft_l & 100%")
    write_tables(group([record]), tmp_path / "tables")
    (latex,) = (tmp_path / "tables").glob("*-generate.tex")
    assert r"ft\_l \& 100\%" in latex.read_text()


def test_a_method_is_one_line_over_all_sizes_of_batches_whatever_the_numbers_of_edits():
    def of(method, num_edits, size):
        record = fakes.record(method, protocol="batch")
        specification = record.specification.model_copy(update={"num_edits": num_edits})
        return placed(record.model_copy(update={"specification": specification}), batch_size=size)

    groups = group([of("ft", 5, 10), of("ft", 20, 10), of("rome", 20, 10), of("ft", 100, 100), of("rome", 100, 100)])
    assert "ft (5 edits)" in [run.label for run in groups[0].runs]
    drawn = batches(groups, "generate")
    assert "ft" in drawn and "rome" in drawn and " edits)" not in drawn and "#2" not in drawn
