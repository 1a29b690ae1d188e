"""Own data from the command line: read as it is, or refused with the record and the field before any work."""

import json

import pytest

EDIT = {"prompt": "The capital of France is", "subject": "France", "target_new": "Lyon", "target_old": "Paris"}
QUICK = ("-o", "epochs=1", "-o", "spare=false")


def edit(run, workplace, tmp_path, file, *words):
    arguments = ("edit", workplace / "model", "-m", "ft", "--edits", file, "--out", tmp_path / "out", "--json")
    result = run(*arguments, *QUICK, *words)
    assert result.code == 2 or (tmp_path / "out").is_dir()
    return result


def write(path, text):
    path.write_text(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False), encoding="utf-8")
    return path


READ = {
    "tabs": ("e.tsv", "prompt\ttarget_new\nThe capital of France is\tLyon\n", []),
    "semicolons": ("e.csv", "Prompt;Target new;Notes\nThe capital of France is;Lyon;x\n", ["'Notes'", "'Target new'"]),
    "template": ("e.json", [{**EDIT, "prompt": "The capital of {} is"}], []),
    "another case": ("e.json", [{**EDIT, "subject": "FRANCE"}], ["'France'"]),
    "number": ("e.json", [{**EDIT, "target_new": 1.50}], ["'1.5'"]),
    "case only": ("e.json", [{**EDIT, "target_old": "LYON"}], ["case or spaces only"]),
    "ends in the answer": ("e.json", [{**EDIT, "prompt": "The capital of France is Lyon"}], ["ends in the answer"]),
    "repeated": ("e.json", [EDIT, EDIT], ["repeats the record"]),
    "invisible": ("e.json", [{**EDIT, "target_new": "Ly\u00adon"}], ["U+00AD SOFT HYPHEN"]),
}


@pytest.mark.parametrize("case", READ)
def test_what_is_read_and_what_is_said(run, workplace, tmp_path, case):
    name, text, words = READ[case]
    result = edit(run, workplace, tmp_path, write(tmp_path / name, text))
    assert result.code != 2, result.err
    found = result.json()
    assert found["edits"][0]["prompt"].startswith("The capital of France is")
    assert all(any(word in note for note in found["notes"]) for word in words), found["notes"]


def test_one_edit_as_options_is_read_in_the_same_way(run, workplace, tmp_path):
    words = ("--prompt", "The capital of {} is", "--subject", "France", "--target-new", "Lyon", "--target-old", "lyon")
    arguments = ("edit", workplace / "model", "-m", "ft", "--out", tmp_path / "out", "--json", *QUICK)
    found = run(*arguments, *words).json()
    assert found["edits"][0]["prompt"] == "The capital of France is"
    assert any("case or spaces only" in note for note in found["notes"])


EASYEDIT = {
    **EDIT,
    "locality": {"neighborhood": {"prompt": ["The capital of Spain is"], "ground_truth": ["Madrid"]}},
    "portability": {"one_hop": {"prompt": "The river of France's capital is", "ground_truth": "Rhone"}},
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"subject": "Spain"}, ("own.json:1 (record 2), field `subject`", "'Spain'")),
        ({"portability": {"onehopp": {"prompt": "x", "ground_truth": "y"}}}, ("record 2", "onehopp", "did you mean")),
        (
            {"locality": {"neighborhood": {"prompt": ["x", "y", "z"], "ground_truth": ["a", "b"]}}},
            ("record 2", "2 answers"),
        ),
        ({"target_new": ""}, ("record 2", "`target_new` is blank")),
    ],
)
def test_a_bad_record_of_ones_own_ends_it_unless_it_is_to_be_passed_over(run, workplace, tmp_path, changes, words):
    other = {**EASYEDIT, "prompt": "The capital of Peru is", "subject": "Peru", **changes}
    file = write(tmp_path / "own.json", [EASYEDIT, other])
    refused = edit(run, workplace, tmp_path, file)
    assert refused.code == 2 and refused.out == "" and not (tmp_path / "out").exists()
    assert all(word in refused.err for word in (*words, "--skip-bad"))
    for command in (
        ("eval", workplace / "model", "-m", "ft", "--dataset", file, *QUICK),
        ("trace", workplace / "model", "--facts", file),
    ):
        also = run(*command)
        assert also.code == 2 and "record 2" in also.err
    done = edit(run, workplace, tmp_path, file, "--skip-bad")
    assert done.code != 2 and done.json()["edits"][0]["prompt"] == EDIT["prompt"]
    assert any("record 2" in note or "record(s)" in note or "Left out" in note for note in done.json()["notes"])
    measured = run("eval", workplace / "model", "-m", "ft", "--dataset", file, "--skip-bad", "--json", *QUICK)
    assert measured.code == 0 and "portability.one_hop" in measured.json()["scores"]["generate"]


def test_a_folder_names_the_files_in_it(run, workplace, tmp_path):
    write(tmp_path / "facts.csv", "x")
    refused = edit(run, workplace, tmp_path, tmp_path)
    assert refused.code == 2 and "a folder" in refused.err and "facts.csv" in refused.err


def test_an_answer_too_long_for_the_model_is_told_from_a_prompt_too_long(run, workplace, tmp_path):
    for changes, words in (
        ({"target_new": "Lyon " * 3000}, "A prompt with its answer is longer"),
        ({"prompt": "so " * 6000 + "France is"}, "A prompt is longer"),
    ):
        refused = edit(run, workplace, tmp_path, write(tmp_path / "e.json", [{**EDIT, **changes}]))
        assert refused.code == 2 and words in refused.err and "of the answer" in refused.err
