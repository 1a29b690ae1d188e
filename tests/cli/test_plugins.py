"""What the page on plugins shows, installed as a distribution of its own and used through every door."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

import palimpsest as ps
import tiny
from evaluation.head_editor import HeadEditor, facts
from palimpsest import registry
from palimpsest.errors import ConfigError
from palimpsest.evaluation import PROTOCOLS, find_measure, find_scoring, load_run, make_protocol
from palimpsest.methods import METHODS
from palimpsest.report.definitions import protocol_text, scoring_text
from palimpsest.statistics import TEXTS, open_text

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
METHOD = """

def methods():
    return {"acme-ft": Row("palimpsest.methods.fine_tuning:FineTuning", "ft under another name", {"epochs": 3})}
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Writes a module and its distribution's metadata where Python finds them."""

    def installed(module: str, points: dict[str, dict[str, str]]) -> None:
        site = tmp_path / "site"
        metadata = site / "acme_editing-1.0.dist-info"
        metadata.mkdir(parents=True)
        (site / "acme_editing.py").write_text(module)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-editing\nVersion: 1.0\n")
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in rows.items()) for group, rows in points.items()]
        (metadata / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(str(site))
        registry.plugins.cache_clear()

    yield installed
    sys.modules.pop("acme_editing", None)
    registry.plugins.cache_clear()


@pytest.fixture
def acme(install):
    toml = "\n".join(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
    points = tomllib.loads(toml)["project"]["entry-points"] | {"palimpsest.methods": {"acme": "acme_editing:methods"}}
    install("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)) + METHOD, points)


def test_every_group_of_the_page_is_one_that_is_looked_for(acme):
    from palimpsest.datasets import DATASETS
    from palimpsest.evaluation import MEASURES, SCORINGS

    groups = {one.group for one in (METHODS, DATASETS, SCORINGS, PROTOCOLS, MEASURES, TEXTS)}
    assert groups | {"palimpsest.architectures"} == set(re.findall(r"^\| `(palimpsest\.\w+)` \|", PAGE, re.MULTILINE))
    names = ("acme-ft", "acme-capitals", "mention", "backwards", "answer-length", "acme-notes")
    for table, name in zip((METHODS, DATASETS, SCORINGS, PROTOCOLS, MEASURES, TEXTS), names, strict=True):
        assert name in table and table[name].summary


def test_a_run_with_a_plugin_s_scoring_protocol_and_measure(acme, tmp_path):
    model, data = tiny.tiny_model("gpt2"), facts(3)
    record = ps.evaluate(
        model,
        HeadEditor(),
        data,
        protocol=make_protocol("backwards"),
        scorings=["generate", "mention"],
        measures=["answer-length"],
        out=tmp_path / "run",
    )
    assert record.status == "ok" and record.specification.protocol == "backwards"
    assert record.specification.protocol_options == {}
    assert record.scores["mention"]["reliability"].mean == 1.0
    assert set(record.measures["answer_length"]) == {"before", "after"}
    for probe in record.probes:
        if not probe.kind.startswith("locality"):
            assert probe.values["mention"] == float((probe.expected or "").lower() in probe.after.lower())
    order = list(dict.fromkeys(probe.edit_id for probe in record.probes))
    assert order == [request.id for request in reversed(data.requests)]
    assert load_run(tmp_path / "run").scores == record.scores
    assert scoring_text("mention") == "The expected answer is mentioned anywhere in the text."
    assert "the last one first" in protocol_text("backwards")


def test_a_killed_run_of_a_plugin_s_protocol_goes_on(acme, tmp_path):
    model, data, options = tiny.tiny_model("gpt2"), facts(3), {"scorings": ["mention"], "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        ps.evaluate(model, HeadEditor(interrupt_at=2), data, protocol=make_protocol("backwards"), **options)
    editor = HeadEditor()
    ps.evaluate(model, editor, data, protocol=make_protocol("backwards"), resume=True, **options)
    assert editor.calls == [(data.requests[1].id,), (data.requests[0].id,)]


def test_a_plugin_s_method_data_set_and_text(acme):
    assert ps.method("acme-ft").resolve(tiny.tiny_model("gpt2"))[0].epochs == 3
    assert [edit.target_new for edit in ps.dataset("acme-capitals").requests] == ["Oslo"]
    assert list(open_text("acme-notes").texts()) == ["The capital of France is Paris.", "Rome is in Italy."]


def test_commands_know_a_plugin_s_names(acme, run, tmp_path):
    folder = tiny.tiny_folder(tmp_path / "model", "gpt2")
    names = [row["name"] for row in run("list", "metrics", "--json").json()]
    assert {"mention", "answer-length", "reliability", "generate"} <= set(names)
    assert "backwards" in [row["name"] for row in run("list", "protocols", "--json").json()]
    arguments = ("eval", folder, "--dataset", "acme-capitals", "--protocol", "backwards", "-m", "acme-ft")
    found = run(*arguments, "--json").json()
    assert (found["method"], found["protocol"], found["dataset"]) == ("acme-ft", "backwards", "acme-capitals")
    refused = run(*arguments, "--batch-size", "2")
    assert refused.code == 2
    assert "'backwards' has no option 'batch_size'" in refused.err and "batch or sequential" in refused.err


def test_unknown_names_get_near_matches_from_plugins_too(acme):
    for find, name, near in (
        (find_scoring, "menton", "mention"),
        (make_protocol, "backward", "backwards"),
        (find_measure, "answer-lenght", "answer-length"),
    ):
        with pytest.raises(ConfigError, match=near):
            find(name)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("from palimpsest.registry import Row\ndef rows(): return {'generate': Row('x:y', 'z')}", "registered twice"),
        ("import nothing_of_the_kind", "cannot be loaded"),
        ("def rows(): return {'mine': 'acme_editing:Mine'}", "no rows"),
        ("def rows(): return [1]", "no rows"),
        ("def rows(): raise RuntimeError('broken')", "cannot be loaded"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named(install, module, message):
    install(module, {"palimpsest.scorings": {"acme": "acme_editing:rows"}})
    with pytest.raises(ConfigError, match=message) as caught:
        find_scoring("generate")
    assert "acme" in str(caught.value) and "palimpsest.scorings" in str(caught.value)


def test_a_row_that_leads_nowhere_is_named(install):
    module = "from palimpsest.registry import Row\ndef rows(): return {'mine': Row('acme_editing:Mine', 'x')}"
    install(module, {"palimpsest.scorings": {"acme": "acme_editing:rows"}})
    assert find_scoring("generate")
    with pytest.raises(ConfigError, match="'Mine' cannot be imported"):
        find_scoring("mine")
