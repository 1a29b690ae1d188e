import json
import re
from html.parser import HTMLParser

import pytest

import fake_runs as fakes
from palimpsest.errors import DataError
from palimpsest.evaluation import aggregate
from palimpsest.report import build_report, label, settings
from palimpsest.report.score_tables import score_table
from palimpsest.report.tables import best, best_of_metric, duration, in_words, label_runs, metrics, ranked, score
from palimpsest.showing import size

VOID = {"meta", "input", "br", "path", "use", "circle", "rect", "line"}


class Balance(HTMLParser):
    """Complains about elements that are closed in the wrong order or never."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.references = [], [], []

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "action", "xmlns") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "page.html"
    build_report([fakes.record(method) for method in fakes.METHODS], out)
    return out.read_text(encoding="utf-8")


def test_the_page_is_whole_and_needs_nothing_else(page):
    reader = Balance()
    reader.feed(page)
    assert reader.open == []
    assert "http://" not in page
    assert "https://" not in page
    assert all(reference.startswith("#") for reference in reader.references)
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(page) < 3_000_000


def test_every_method_measure_and_scoring_is_in_it(page):
    for method in fakes.METHODS:
        assert f'<th scope="row">{method}</th>' in page
    for text in ("free generation", "teacher-forced", "log-probability", "protocol single", "n = 5", "portability"):
        assert text in page
    assert page.count('data-scoring="') == 3


def test_the_data_can_be_taken_out_of_it(page):
    found = re.search(r'<script type="application/json" id="records">(.*?)</script>', page, re.DOTALL)
    records = json.loads(found[1])
    assert [record["label"] for record in records] == list(fakes.METHODS)
    assert len(records[0]["probes"]) == 50


def test_text_of_models_and_people_cannot_become_markup(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    record = fakes.record(num_edits=1)
    probes = [
        probe.model_copy(update={"prompt": evil + probe.prompt, "after": evil, "before": evil, "target_old": evil})
        for probe in record.probes
    ]
    record = record.model_copy(update={"probes": probes, "error": evil, "status": "failed", "notes": [evil]})
    record.specification.method = evil
    build_report([record], tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert "<script>alert" not in page
    assert "<img" not in page
    assert page.count("</script>") == 2
    Balance().feed(page)


def test_runs_with_checkpoints_have_curves(tmp_path):
    build_report([fakes.record(method, protocol="sequential") for method in ("ft", "lora")], tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert "As edits add up" in page
    assert "edits so far" in page


def test_a_large_run_stays_small_and_says_what_is_missing(tmp_path):
    build_report([fakes.record(method, num_edits=400) for method in ("ft", "lora")], tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert len(page) < 3_000_000
    assert "every answer is in the runs" in page


def test_a_run_without_scores_or_with_one_scoring(tmp_path):
    empty = fakes.record(scores={}, probes=[], status="failed", error="No edit could be made.", patch_bytes=None,
                         seconds_per_edit=None, perplexity={})  # fmt: skip
    build_report([empty], tmp_path / "empty.html")
    assert "No run has any score" in (tmp_path / "empty.html").read_text()
    one = fakes.record()
    build_report([one.model_copy(update={"scores": {"log_prob": one.scores["log_prob"]}})], tmp_path / "one.html")
    assert "log-probability" in (tmp_path / "one.html").read_text()
    with pytest.raises(DataError, match="no runs"):
        build_report([], tmp_path / "none.html")


def test_labels_tell_runs_apart():
    assert [run.label for run in label_runs([fakes.record("ft"), fakes.record("lora")])] == ["ft", "lora"]
    runs = label_runs([fakes.record("ft", seed=1), fakes.record("ft", seed=2), fakes.record("ft", seed=2)])
    assert [run.label for run in runs] == ["ft (1)", "ft (2)", "ft (2) #2"]


def test_best_is_only_where_there_is_a_difference():
    assert best([0.5, 1.0, None, 1.0]) == {1, 3}
    assert best([3.0, 2.0], is_lower_better=True) == {1}
    assert best([1.0, 1.0]) == set()
    assert best([None, 1.0]) == set()


def test_a_method_that_does_nothing_wins_no_prize_for_locality():
    strong, idle, weak = (fakes.record(name) for name in ("strong", "idle", "weak"))

    def scored(record, reliability, locality):
        estimates = dict(record.scores["generate"])
        for name, mean in (("reliability", reliability), ("locality.neighborhood", locality)):
            estimates[name] = estimates[name].model_copy(update={"mean": mean})
        return record.model_copy(update={"scores": {"generate": estimates}})

    runs = label_runs([scored(strong, 1.0, 0.8), scored(idle, 0.0, 1.0), scored(weak, 0.95, 0.7)])
    assert best_of_metric(runs, "generate", "locality.neighborhood") == {0}
    assert best_of_metric(runs, "generate", "reliability") == {0}
    words = " ".join(in_words(runs))
    assert "strong wrote the new answer to every edited prompt; idle to the fewest" in words
    assert "idle disturbed" not in words


def test_the_score_is_the_harmonic_mean_of_three_and_zero_where_one_is():
    one = fakes.record().scores["generate"]["reliability"]

    def scored(**means):
        return score({name.replace("_", "."): one.model_copy(update={"mean": mean}) for name, mean in means.items()})

    # Locality is the mean of its kinds, 0.5; 3 / (1 + 2 + 2) by hand.
    assert scored(reliability=1.0, generality=0.5, locality_neighborhood=0.8, locality_namesake=0.2) == pytest.approx(
        0.6
    )
    assert scored(reliability=1.0, generality=0.0, locality_neighborhood=1.0) == 0
    assert scored(reliability=1.0, generality=1.0) is None


def test_methods_stand_by_their_score_and_those_without_one_last():
    runs = label_runs([fakes.record(method) for method in fakes.METHODS] + [fakes.record("none", scores={})])
    reached = [run.score("generate") for run in ranked(runs, "generate")]
    assert reached[-1] is None and reached[:-1] == sorted(reached[:-1], reverse=True)


def test_the_page_leads_with_an_edit_before_and_after_by_the_best_method(page):
    lead = page[: page.index('id="compare"')]
    run = ranked(label_runs([fakes.record(method) for method in fakes.METHODS]), "generate")[0]
    assert f"by {run.label}, first in the table below" in lead
    shown = [run.record.probes[place] for place in (0, 1, 9, 3)]
    assert [probe.kind.split(".")[0] for probe in shown] == ["reliability", "generality", "portability", "locality"]
    rows = re.findall(r"<li>(.*?)</li>", lead.split('class="told"')[1].split("</ol>")[0])
    assert len(rows) == 4
    for row, probe in zip(rows, shown, strict=True):
        assert f"</small> {probe.prompt}</p>" in row
        assert f"before</small> {probe.shown_before()}</p>" in row
        assert f"</span> {probe.shown_after()}</p>" in row
        assert ('aria-label="right"' in row) == (probe.values["generate"] == 1)


def test_an_edit_without_any_text_does_not_lead(tmp_path):
    record = fakes.record()
    silent = [probe.model_copy(update={"before": None, "after": None}) for probe in record.probes]
    build_report([record.model_copy(update={"probes": silent})], tmp_path / "p.html")
    assert 'class="told"' not in (tmp_path / "p.html").read_text()


def test_ceilings_stand_below_the_table_and_each_that_differs_has_a_line(tmp_path):
    def known(record, *shares):
        probes = [
            probe.model_copy(update={"ceiling": {"generate": shares[place % len(shares)]}})
            for place, probe in enumerate(record.probes)
        ]
        found = aggregate.ceilings(probes, ["generate"])
        return record.model_copy(update={"probes": probes, "ceilings": found})

    build_report([known(fakes.record("ft"), 1.0), known(fakes.record("lora"), 1.0)], tmp_path / "alike.html")
    foot = re.findall(r"<tfoot>(.*?)</tfoot>", (tmp_path / "alike.html").read_text())
    assert len(foot) == 1 and foot[0].count(">ceiling") == 1
    assert set(re.findall(r'data-sort="(.*?)"', foot[0])) == {"1"}
    build_report([known(fakes.record("ft"), 1.0), known(fakes.record("lora"), 1.0, 0.0)], tmp_path / "differ.html")
    [foot] = re.findall(r"<tfoot>(.*?)</tfoot>", (tmp_path / "differ.html").read_text())
    assert foot.count(">ceiling") == 2 and "of ft</small>" in foot and "of lora</small>" in foot


def test_a_figure_stands_once():
    """A mean with its interval is in one cell, under the chosen scoring."""
    run = label_runs([fakes.record("ft")])[0]
    (group,) = settings.group([run.record])
    table = score_table(group, "generate", (), with_score=True)
    for metric, found in run.record.scores["generate"].items():
        assert table.count(f'data-name="{label(metric)}"') == 1
        assert f'data-sort="{found.mean:.9g}"' in table
    assert table.count('<i class="interval"') == len(run.record.scores["generate"]) + 2


def test_metrics_stand_in_reading_order():
    names = metrics(label_runs([fakes.record()]), "generate")
    assert names[:2] == ["reliability", "generality"]
    assert names[-1] == "old_answer_rate"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.3e7, "23 MB")]
)
def test_sizes(value, text):
    assert size(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.0123, "12 ms"), (1.25, "1.2 s"), (120, "120 s")])
def test_durations(value, text):
    assert duration(value) == text
