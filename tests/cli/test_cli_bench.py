"""`palimpsest bench`: a plan is shown, run, shown again, and reported under its labels."""

from __future__ import annotations

import io
import json
import shutil

import pytest

from benchmark.workplace import build

RECIPE = """
name = "tiny"
models = ["model"]
datasets = [{ name = "jsonl", path = "facts.jsonl", label = "facts" }]
scorings = ["generate"]
max_new_tokens = 4
num_edits = 2

[[methods]]
name = "ft"
label = "fine-tuning, briefly"
preset = "none"
options = { epochs = 1 }

[[methods]]
name = "kn"
label = "neurons, impossible"
preset = "none"
options = { layers = [99] }
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    build(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_bench_from_plan_to_report(run, workplace):
    planned = run("bench", "recipe.toml", "--out", "out", "--dry-run", "--json").json()
    assert [unit["state"] for unit in planned["units"]] == ["left", "left"]
    assert planned["seconds_to_go"] is None
    assert not (workplace / "out").exists()
    done = run("bench", "recipe.toml", "--out", "out", "--workers", "1", "--json")
    assert done.code == 1
    assert done.json()["units"] == {"ok": 1, "failed": 1, "refused": 0, "begun": 0, "left": 0}
    assert "99" in done.json()["failures"][0]["error"]
    shown = run("bench", "recipe.toml", "--out", "out", "--status")
    assert "2 units: 1 ok, 1 failed" in shown.out
    shown = run("bench", "recipe.toml", "--out", "out", "--dry-run")
    assert "fine-tuning, briefly" in shown.out
    assert run("bench", "recipe.toml", "--out", "out").code == 2
    assert run("report", "out", "--out", "page.html").code == 0
    assert "fine-tuning, briefly" in (workplace / "page.html").read_text()
    short = json.loads((workplace / "out" / "summary.json").read_text())
    assert short["states"] == {"ok": 1, "failed": 1}
    tuned, impossible = short["rows"]
    assert tuned["scores"]["generate"]["reliability"]["n"] == 2
    assert tuned["seconds_per_edit"] > 0
    assert "probes" not in tuned
    assert impossible["method"] == "neurons, impossible"
    assert impossible["error"]


@pytest.mark.slow
def test_damaged_answers_of_the_base_model_are_said_once(run, workplace):
    (workplace / "recipe.toml").write_text(RECIPE.partition('[[methods]]\nname = "kn"')[0])
    command = ("bench", "recipe.toml", "--out", "out", "--resume", "--workers", "1")
    assert "amaged" not in run(*command).err
    [answers] = (workplace / "out" / "base").glob("*.json")
    whole = answers.read_text()
    for done in (workplace / "out" / "done").iterdir():
        done.unlink()
    for unit in (workplace / "out" / "units").iterdir():
        shutil.rmtree(unit)
    answers.write_text(whole[: len(whole) // 2])
    said = run(*command).err
    assert said.count("Damaged base answers were put aside and asked for again") == 1 and str(answers.name) in said
    assert answers.with_name(f"{answers.name}.damaged").exists() and answers.read_text() == whole
    assert "amaged" not in run(*command).err


def test_a_bar_for_the_whole_and_one_for_every_unit_under_way():
    from rich.console import Console
    from rich.progress import Progress

    from palimpsest.cli.waiting import Bars

    shown = Progress(console=Console(file=io.StringIO()), disable=True)
    bars = Bars(shown, "tiny")

    def state():
        return [(task.fields["title"].strip(), task.description, task.completed, task.total) for task in shown.tasks]

    bars.part("ft", "edits", 1, 4)
    bars.part("kn", "base answers", 0, 4)
    bars.part("ft", "edits", 2, 4)
    assert state() == [("tiny", "", 0, None), ("ft", "edits", 2, 4), ("kn", "base answers", 0, 4)]
    bars.end("ft")
    bars.end("never told of")
    bars.whole("units", 1, 2)
    assert state() == [("tiny", "units", 1, 2), ("kn", "base answers", 0, 4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.toml",), "cannot be read"),
        (("recipe.toml", "--retry-failed"), "nothing to try again"),
        (("recipe.toml", "--workers", "0"), "workers"),
    ],
)
def test_bad_input(run, workplace, arguments, message):
    result = run("bench", *arguments)
    assert result.code == 2
    assert message in result.err
