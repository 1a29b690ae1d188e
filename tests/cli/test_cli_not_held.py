"""What `palimpsest edit` says of facts that do not hold."""

import pytest


def test_an_edit_that_does_not_hold_is_said(run, workplace, tmp_path):
    weak = ("-o", "epochs=1", "-o", "learning_rate=1e-6")
    facts = workplace / "facts.jsonl"
    result = run("edit", workplace / "model", "-m", "ft", "--edits", facts, "--out", tmp_path / "p", *weak)
    assert result.code == 1 and (tmp_path / "p" / "manifest.json").is_file()
    assert "No edit holds" in result.err and "palimpsest verify" not in result.out
    # The model does not know these facts: it answers as before, and that was not the old answer.
    assert "4 of 4 answer as before the edit, not with the new answer." in result.out
    assert "neither" not in result.out


@pytest.mark.parametrize(
    ("old", "after", "said"),
    [
        (None, "Tokyo.", "answer as before the edit, not with the new answer"),
        (None, "Lima.", "give another answer than before the edit, but not the new one"),
        ("Tokyo", "Tokyo.", "still give the old answer"),
        ("Tokyo", "Lima.", "give another answer than before the edit, neither the new one nor the old one"),
        ("Osaka", "Tokyo.", "answer as before the edit, not with the new answer"),
    ],
)
def test_what_an_edit_that_does_not_hold_answers_is_said_as_it_is(run, tmp_path, monkeypatch, old, after, said):
    monkeypatch.setattr("palimpsest.cli.edit._replies", lambda *_: (["Tokyo."], [after]))
    words = ["--prompt", "The capital city of Japan is", "--subject", "Japan", "--target-new", "Kyiv"]
    words += ["--target-old", old] if old else []
    result = run("edit", "world", "-m", "ft", "-o", "epochs=1", *words, "--out", tmp_path / "p")
    assert result.code == 1
    assert f"1 of 1 {said}." in result.out
