"""`palimpsest edit` without a method: the facts are tested, and what became of each is told."""

import json

EDIT = ("--prompt", "The capital city of Japan is", "--subject", "Japan", "--target-new", "Oslo")
# The README's example tests as much as an edit is tested by default.
FEW_TESTS = ("-o", "num_contexts=1", "-o", "num_neighbours=2")


def test_no_method_is_named_and_the_fact_holds(run, tmp_path):
    result = run("edit", "world", *EDIT, "--out", tmp_path / "p", *FEW_TESTS)
    assert result.code == 0
    for word in ("elsewhere", "kept", "Oslo", "1 of 1 edited prompts", "palimpsest verify"):
        assert word in result.out
    assert run("verify", "world", tmp_path / "p").code == 0


def test_what_became_of_each_fact_is_in_the_json(run, tmp_path):
    found = run("edit", "world", *EDIT, "--keep", "0.5", "--out", tmp_path / "p", *FEW_TESTS, "--json").json()
    assert found["method"] == "auto" and found["config"]["keep"] == 0.5
    (fact,) = found["edits"]
    assert fact["is_right"] and fact["elsewhere"] == [1, 1] and fact["kept"][1] == 2 and fact["why"] is None


def test_where_no_fact_holds_the_exit_code_and_the_reason_say_so(run, tmp_path):
    result = run("edit", "world", *EDIT, "--max-seconds", "0.000001", "--out", tmp_path / "p", *FEW_TESTS)
    text = " ".join(result.out.split())
    assert result.code == 1 and "time was over" in text and "No edit holds" in result.err


def test_its_options_are_refused_for_other_methods(run, tmp_path):
    for option in (("--keep", "0.9"), ("--max-seconds", "5")):
        result = run("edit", "world", *EDIT, "-m", "ft", *option, "--out", tmp_path / "p")
        assert result.code == 2 and f"does not take {option[0]}" in result.err and not (tmp_path / "p").exists()


def test_a_fact_that_stands_twice_is_edited_once_and_told_twice(run, tmp_path):
    rows = [
        {"prompt": "The capital city of Japan is", "subject": "Japan", "target_new": "Oslo", "id": 1},
        {"prompt": "The capital city of {} is", "subject": "Japan", "target_new": "Oslo", "id": 2,
         "rephrase": "Japan has the capital"},
    ]  # fmt: skip
    edits = tmp_path / "edits.jsonl"
    edits.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run("edit", "world", "--edits", edits, "--out", tmp_path / "p", *FEW_TESTS, "--json").json()
    first, second = found["edits"]
    assert first["is_right"] and first["after"].startswith("Oslo")
    assert {**second, "id": "1"} == first and (first["id"], second["id"]) == ("1", "2")
    assert any("1 repeated request" in note for note in found["notes"])
    assert run("verify", "world", tmp_path / "p").code == 0
    shown = run("edit", "world", "--edits", edits, "--out", tmp_path / "q", *FEW_TESTS)
    assert shown.code == 0 and "2 of 2 edited prompts" in shown.out
