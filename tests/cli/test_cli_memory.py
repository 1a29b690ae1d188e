import json

import pytest

from palimpsest import load_patch


@pytest.fixture
def remembered(run, workplace, tmp_path):
    made = run(
        "edit", workplace / "model", "-m", "ike", "--edits", workplace / "facts.jsonl", "--out", tmp_path / "patch",
        "-o", "use_demonstrations=false", "-o", "encoder=ngrams", "--json",
    )  # fmt: skip
    # A random model makes nothing of what it reads in front of a prompt: no edit holds, which is a 1.
    assert made.code in (0, 1)
    return tmp_path / "patch"


def test_entries_are_listed_and_deleted(run, remembered, tmp_path):
    listed = run("memory", "list", remembered, "--json").json()
    assert [entry["id"] for entry in listed["entries"]] == ["fact-0", "fact-1", "fact-2", "fact-3"]
    assert "The capital of France is" in run("memory", "list", remembered).out
    deleted = run("memory", "delete", remembered, "fact-1", "fact-2", "--out", tmp_path / "less", "--json")
    assert (deleted.code, deleted.json()["left"]) == (0, 2)
    left = load_patch(tmp_path / "less")
    assert [entry.id for entry in left.entries] == ["fact-0", "fact-3"] == [edit["id"] for edit in left.manifest.edits]
    assert left.is_same(load_patch(remembered).without("fact-1", "fact-2"))


def test_an_unknown_entry_and_a_patch_without_memory_write_nothing(run, workplace, remembered, tmp_path):
    wrong = run("memory", "delete", remembered, "fact-11", "--out", tmp_path / "less")
    assert (wrong.code, wrong.out) == (2, "") and "fact-1" in wrong.err
    wrong = run("memory", "list", workplace / "patch")
    assert wrong.code == 2 and "weights" in wrong.err
    assert not (tmp_path / "less").exists()


def test_a_memory_is_asked_and_cannot_be_merged(run, workplace, remembered, tmp_path):
    asked = run("ask", workplace / "model", "The capital of France is", "--patch", remembered, "--json")
    assert asked.code == 0 and json.loads(asked.out)
    refused = run("apply", workplace / "model", remembered, "--out", tmp_path / "merged")
    assert refused.code == 2 and "inputs" in refused.err and not (tmp_path / "merged").exists()
