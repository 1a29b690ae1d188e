"""How things show themselves: short at a prompt, as an escaped table in a notebook."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

import palimpsest as ps
import tiny
from evaluation.head_editor import HeadEditor, facts
from palimpsest.evaluation import assess
from palimpsest.methods import Diagnostics, EditOutcome
from palimpsest.patches import Manifest, WeightPatch
from palimpsest.showing import MOST_ROWS, html_table

SCRIPT = "<script>alert('x')</script> & <b>Lyon</b>"


class Cells(HTMLParser):
    """The texts of a table's cells, as a browser would show them, and the tags that stand in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


PLAIN = {"table", "caption", "thead", "tbody", "tr", "th", "td", "br"}


def shown(value) -> Cells:
    found = Cells(value._repr_html_())
    assert found.tags <= PLAIN, "a text came through as markup"
    return found


def test_a_table_is_escaped_and_short():
    html = html_table(SCRIPT, ("a<b", "c"), [(SCRIPT, None), (0.123456, True), *[("x" * 100, 3)] * MOST_ROWS])
    cells = Cells(html)
    assert cells.tags <= PLAIN and "<script" not in html
    assert cells.rows[0] == ["a<b", "c"]
    assert cells.rows[1] == [SCRIPT, ""] and cells.rows[2] == ["0.1235", "yes"]
    assert len(cells.rows[3][0]) == 80 and cells.rows[3][0].endswith("...")
    assert cells.rows[-1] == ["and 2 more"] and len(cells.rows) == 1 + MOST_ROWS + 1


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_model_names_its_family_size_and_patches(family):
    model = tiny.tiny_model(family)
    millions = sum(one.numel() for one in model.module.parameters()) / 1e6
    text = repr(model)
    assert text.startswith("EditableModel('") and "3 layers" in text and f"{millions:,.1f}M parameters" in text
    assert "float32 on cpu" in text and "patches" not in text and "\n" not in text
    patch = (
        HeadEditor(steps=1).edit(model, tiny.requests(1)).patch
        if family == "gpt2"
        else WeightPatch({}, Manifest(label="x"))
    )
    with model.patched(patch):
        assert f"patches: {patch.manifest.label}" in repr(model)
        assert ["patches", patch.manifest.label] in shown(model).rows
    assert ["patches", "none"] in shown(model).rows


def test_a_patch_and_an_outcome_show_before_and_after():
    model = tiny.tiny_model("gpt2")
    requests = [*tiny.requests(2), ps.EditRequest("He said", SCRIPT, id="odd")]
    outcome = ps.method("ft", epochs=1, preset="none").edit(model, requests)
    assert repr(outcome.patch).startswith("WeightPatch('ft', 3 edits, ") and "numbers" in repr(outcome.patch)
    assert repr(outcome).startswith("EditOutcome(WeightPatch('ft'") and "of 3 edits hold" in repr(outcome)
    for value in (outcome.patch, outcome):
        rows = shown(value).rows
        assert rows[0][:3] == ["prompt", "before", "after"]
        assert rows[1][:3] == [requests[0].prompt, requests[0].target_old, requests[0].target_new]
        assert rows[3][:3] == ["He said", "", SCRIPT]
    probability = outcome.diagnostics.facts["checked"]["probability"]["fact-0"]
    assert shown(outcome).rows[1][3] == f"{probability:.4g}"


def test_what_a_method_asked_the_model_is_shown_in_place_of_the_answers():
    edits = [request.to_dict() for request in tiny.requests(1)]
    diagnostics = Diagnostics(notes=[SCRIPT], replies=(["Paris, of course"], ["Lyon."]))
    outcome = EditOutcome(WeightPatch({}, Manifest(label="x", edits=edits)), None, diagnostics)
    assert shown(outcome).rows[1][1:3] == ["Paris, of course", "Lyon."]
    twice = EditOutcome(WeightPatch({}, Manifest(label="x", edits=edits * 2)), None, diagnostics)
    assert shown(twice).rows[2][1:3] == [edits[0]["target_old"], edits[0]["target_new"]]


def test_a_record_shows_scores_and_probes():
    data = facts(3)
    record = ps.evaluate(tiny.tiny_model("gpt2"), HeadEditor(), data, scorings=["generate"])
    assert repr(record) == str(record)
    assert (
        repr(record).startswith("RunRecord(head on ")
        and "3 edits of " in repr(record)
        and "reliability" in repr(record)
    )
    rows = shown(record).rows
    assert rows[0] == ["metric", "generate"]
    assert ["probe", "prompt", "before", "after", "expected"] in rows
    first = record.probes[0]
    assert [first.kind, first.prompt, first.shown_before(), first.shown_after(), first.expected] in rows
    assert repr(data) == f"Dataset({data.name!r}, 3 edits)" and shown(data).rows[1][0] == data.requests[0].prompt


def test_a_method_and_an_assessment():
    assert repr(ps.method("memit", layers=[1, 2])) == "Memit('memit', layers=[1, 2])"
    found = assess(tiny.tiny_model("gpt2"), tiny.requests(3))
    assert f"{len(found.wrong)} of {len(found.facts)} facts held wrongly" in repr(found)
    assert shown(found).rows[1][0] == found.facts[0].prompt
