"""`world train`: on the facts of a file, and what is refused before anything is trained."""

import json

import pytest

from palimpsest.world import build

SMALL = ("--width", "32", "--layers", "1", "--vocabulary", "400", "--epochs", "1")


def record(index, **changes):
    person = f"Ada Nr{index}"
    fields = {"prompt": f"{person} was born in", "subject": person, "target_new": "Rome", "target_old": "Oulu"}
    return {key: value for key, value in {**fields, **changes}.items() if value is not None}


def write(path, records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def test_a_model_of_a_files_facts(run, tmp_path):
    file = write(tmp_path / "people.jsonl", [record(index) for index in range(30)])
    again = write(tmp_path / "again.jsonl", [record(1), record(30), record(31, target_old=None)])
    arguments = ("--facts", file, "--facts", again, "--out", tmp_path / "model", *SMALL, "--json")
    result = run("world", "train", *arguments)
    assert result.code == 0, result.err
    found = result.json()
    assert found["num_facts"] == 31
    assert found["left_out"] == {"it has no true answer": 1}
    assert "1 not taught, it has no true answer" in result.err
    assert found["training"]["recipe"]["width"] == 32
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["sources"] == ["people.jsonl", "again.jsonl"]
    assert card["ceiling"]["reliability"]["n"] == 31


def test_the_limit_and_the_table_for_people(run, tmp_path):
    file = write(tmp_path / "people.jsonl", [record(index) for index in range(30)])
    result = run("world", "train", "--facts", file, "--limit", 25, "--out", tmp_path / "model", *SMALL)
    assert result.code == 0, result.err
    assert "reliability" in result.out
    assert " 25 " in result.out


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([record(index, target_old=None) for index in range(30)], "too few facts"),
        ([record(index) for index in range(5)], "too few facts"),
        ([*(record(index) for index in range(30)), record(99, subject="Bo Lund")], "subject does not occur"),
        ([*(record(index) for index in range(30)), record(99, target_old="Rome")], "equals the old one"),
    ],
)
def test_a_file_that_cannot_be_taught(run, tmp_path, records, problem):
    file = write(tmp_path / "people.jsonl", records)
    result = run("world", "train", "--facts", file, "--out", tmp_path / "model", *SMALL)
    assert result.code == 2
    assert problem in result.err
    assert not (tmp_path / "model").exists()


def test_a_published_file_with_bad_records_is_taught_without_them(run, tmp_path):
    zsre = [
        {"subject": f"Song {i}", "src": f"Who wrote Song {i}?", "alt": "Bo", "answers": ["Ada"],
         "rephrase": f"By whom is Song {i}?"}
        for i in range(25)
    ]  # fmt: skip
    bad = [{**zsre[0], "src": "Who wrote it?"}, {**zsre[1], "answers": ["Bo"]}]
    file = tmp_path / "zsre.json"
    file.write_text(json.dumps([*zsre, *bad]))
    result = run("world", "train", "--facts", file, "--out", tmp_path / "model", *SMALL, "--json")
    assert result.code == 0, result.err
    assert "2 record(s) were passed over" in result.err
    assert "zsre.json" in result.err
    assert result.json()["num_facts"] == 25


@pytest.mark.parametrize(
    "options",
    [
        ("--limit", "5"),
        ("--phrasings", "2"),
        ("--facts", "x.json", "--people", "90"),
        ("--people", "3"),
        ("--device", "tpu"),
    ],
)
def test_options_that_do_not_apply(run, tmp_path, options):
    result = run("world", "train", "--out", tmp_path / "model", *options)
    assert result.code == 2
    assert "Error" in result.err
    assert list(tmp_path.iterdir()) == []


def test_export_of_a_smaller_world(run, tmp_path):
    result = run("world", "export", "--people", 50, "--out", tmp_path / "world", "--json")
    assert result.code == 0, result.err
    names = {record["subject"] for record in json.loads((tmp_path / "world" / "world-zsre-test.json").read_text())}
    # A fifth of 50 people is tested; the bundled world tests 60.
    assert sum(fact.subject in names for fact in build(0, people=50).facts_in("born_in")) == 10
