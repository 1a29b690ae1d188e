"""Bad input is one error that says what was expected, what was found, where, and what to do."""

import json
from pathlib import Path

import pytest

from palimpsest import ConfigError, DataError, dataset
from palimpsest.datasets import load_edits

GOOD = '{"prompt": "The mayor of Oldham is", "subject": "Oldham", "target_new": "Ann"}\n'
HEADER = "prompt,subject,target_new,target_old\n"


def bad(field: str, value: object) -> str:
    record = {"prompt": "The mayor of Oldham is", "subject": "Oldham", "target_new": "Ann", "target_old": "Bo"}
    changed = {**record, field: value}
    return GOOD.replace("Oldham", "Newham") + json.dumps({k: v for k, v in changed.items() if v is not ...}) + "\n"


CASES = {
    "empty": ("e.jsonl", b"", "empty", "e.jsonl", "0 bytes"),
    "blank": ("e.csv", b"\n \n", "empty", "e.csv", "3 bytes"),
    "no prompt": ("e.jsonl", bad("prompt", ...), "has no `prompt`", "e.jsonl:2, field `prompt`", "'target_new'"),
    "no target": (
        "e.jsonl",
        bad("target_new", ...),
        "has no `target_new`",
        "e.jsonl:2, field `target_new`",
        "'prompt'",
    ),
    "blank target": (
        "e.jsonl",
        bad("target_new", " "),
        "`target_new` is blank",
        "e.jsonl:2, field `target_new`",
        "' '",
    ),
    "object": ("e.jsonl", bad("target_new", {"a": 3}), "is not text", "e.jsonl:2, field `target_new`", "3"),
    "no subject": ("e.jsonl", bad("subject", "York"), "subject does not occur", "e.jsonl:2, field `subject`", "Oldham"),
    "same": ("e.jsonl", bad("target_old", "Ann"), "equals the old one", "e.jsonl:2", "'Ann'"),
    "kind": ("e.jsonl", bad("probes", [{"kind": "localty", "prompt": "x"}]), "kind of probe", "e.jsonl:2", "localty"),
    "probe": ("e.jsonl", bad("probes", [{"prompt": "x"}]), "cannot be read", "e.jsonl:2, field `probes`", "kind"),
    "field": (
        "e.jsonl",
        bad("target_old", ...).replace('"subject"', '"sbject"'),
        "no field named 'sbject'",
        "e.jsonl:1, field `sbject`",
        "prompt",
    ),
    "broken line": ("e.jsonl", GOOD + '{"prompt": "x",}\n', "JSON is broken", "e.jsonl:2, column 16", "property name"),
    "not an object": ("e.jsonl", GOOD + "[1]\n", "not an object", "e.jsonl:2", "list"),
    "broken list": ("e.json", "[\n" + GOOD + GOOD + "]", "JSON is broken", "e.json:3, column 1", "Expecting ','"),
    "open list": ("e.json", "[\n" + GOOD, "JSON is broken", "e.json:3, column 1", "Expecting ','"),
    "empty list": ("e.json", "[]", "no usable record", "e.json", "no records"),
    "no column": ("e.csv", "prompt,subject\na,a\nb,b\n", "No record has a `target_new`", "e.csv:2", "'subject'"),
    "no header at all": ("e.csv", "The mayor is,Oldham,Ann\nb,c,d\n", "None of the fields", "e.csv:2", "'Oldham'"),
    "another delimiter": ("e.csv", "prompt:subject:target_new\na:b:c\n", "None of", "e.csv:2", "prompt:s"),
    "an object of something else": ("e.json", '{"a": 1}', "None of the fields", "e.json:1", "a"),
    "json number": ("e.json", "5", "not an object", "e.json:1", "a number: 5"),
    "json text": ("e.json", '["é"]', "not an object", "e.json:1 (record 1)", 'a text: "é"'),
    "json null": ("e.json", "null", "not an object", "e.json:1", "null"),
    "list in a list": ("e.json", "[[1, true]]", "not an object", "e.json:1", "a list: [1, true]"),
    "comma at the end": ("e.json", f"[{GOOD},]", "JSON is broken", "e.json:2", "A comma follows the last record"),
    "open quote": ("e.csv", HEADER + '"a,b\n', "table is broken", "e.csv:2", "without an end"),
    "a spreadsheet": ("e.csv", b"PK\x03\x04\0", "not text", "e.csv", "spreadsheet"),
    "a spreadsheet by its name": ("e.xlsx", b"PK\x03\x04\0", "unknown kind", "e.xlsx", "'.xlsx'"),
    "gzip": ("e.jsonl", b"\x1f\x8b\x08", "not text", "e.jsonl", "gzip"),
    "probes text": (
        "e.jsonl",
        bad("probes", "x"),
        "A probe cannot be read",
        "e.jsonl:2",
        "'x', which is not an object",
    ),
    "probe without kind": (
        "e.jsonl",
        bad("probes", [{"prompt": "x"}]),
        "A probe cannot",
        "e.jsonl:2",
        "without `kind`",
    ),
    "probe with more": (
        "e.jsonl",
        bad("probes", [{"kind": "generality", "prompt": "x", "expected": "y", "answer": "z"}]),
        "A probe cannot be read",
        "e.jsonl:2",
        "a field 'answer'",
    ),
    "portability without answer": (
        "e.jsonl",
        bad("portability", "Where is it?"),
        "one_hop: a probe has no expected answer",
        "e.jsonl:2, field `portability`",
        "None",
    ),
    "header": ("e.csv", "promt,target_new\nThe mayor,Ann\n", "no field named 'promt'", "e.csv:2", "'promt'"),
    "near header": ("e.csv", "prompt,tarket_new,x\na,b,c\n", "no field named 'tarket_new'", "e.csv:2", "'tarket_new'"),
    "semicolons": ("e.csv", "promt;answers_of_mine\na;b\n", "not separated by commas", "e.csv:1", "semicolons"),
    "which answer": (
        "e.csv",
        "Question,Answer\na,b\n",
        "could be the new or the old",
        "e.csv:2, field `Answer`",
        "Que",
    ),
    "two of one": ("e.csv", "query,question,target_new\na,b,c\n", "Two fields mean `prompt`", "e.csv:2", "'question'"),
    "twice": ("e.csv", "prompt,prompt,target_new\na,b,c\n", "twice in the header", "e.csv:1", "prompt"),
    "cells": ("e.csv", HEADER + "a,,b,\nMayor of York, in York,York,Ann,\n", "more cells", "e.csv:3", "5 cells"),
    "csv blank": ("e.csv", HEADER + '"a\nb",,c,\nMayor,,,\n', "`target_new` is blank", "e.csv:4, field", "''"),
    "csv quote": ("e.csv", HEADER + 'a,,"b"c,\n', "table is broken", "e.csv:2", "expected after"),
    "header only": ("e.csv", HEADER, "no rows", "e.csv", "none"),
    "latin": ("e.jsonl", GOOD.encode() + b'{"prompt": "Caf\xe9"}', "not UTF-8", "e.jsonl", f"offset {len(GOOD) + 15}"),
    "utf-16 without mark": ("e.jsonl", GOOD.encode("utf-16-le"), "not UTF-8", "e.jsonl", "UTF-16"),
    "utf-16 cut": ("e.jsonl", GOOD.encode("utf-16")[:-1], "not UTF-8", "e.jsonl", "UTF-16"),
    "field twice": ("e.jsonl", GOOD + '{"prompt": "a", "prompt": "b"}', "occurs twice", "e.jsonl:2", "'prompt'"),
    "field twice in a list": ("e.json", f'[{GOOD},{{"id": 1, "id": 2}}]', "occurs twice", "e.json:2", "'id'"),
    "ids": ("e.jsonl", bad("id", "a").replace('"Ann"}', '"Ann", "id": "a"}', 1), "same id", "e.jsonl:2", "e.jsonl:1"),
    "ending": ("e.txt", GOOD, "unknown kind", "e.txt", "'.txt'"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_files(tmp_path: Path, case: str) -> None:
    name, content, problem, where, found = CASES[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((DataError, ConfigError)) as caught:
        load_edits(path)
    error = caught.value
    assert isinstance(error, DataError)
    assert problem in error.problem
    assert where in (error.where or "")
    assert found in (error.found or "")
    assert error.expected


def test_remedies_name_the_near_match(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text("prompt,targetnew\na,b\n")
    with pytest.raises(DataError) as caught:
        load_edits(path)
    assert "'target_new'" in (caught.value.remedy or "")
    assert "the required `target_new`" in (caught.value.expected or "")


def test_unrelated_columns_are_ignored_and_said(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text("prompt,target_new,comment\nThe mayor of York is,Ann,check\n")
    assert "'comment'" in load_edits(path).notes[0]


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_edits(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_edits(tmp_path)
    assert caught.value.found == "a folder"


def test_names_and_paths() -> None:
    with pytest.raises(ConfigError) as caught:
        dataset("counterfct")
    assert "counterfact" in (caught.value.remedy or "")
    with pytest.raises(DataError, match="read from a file"):
        dataset("zsre")
    with pytest.raises(DataError, match="takes no file"):
        dataset("world-zsre", "some.json")


def test_a_mixed_file_names_all_that_is_wrong_with_it_or_goes_on_without(tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    good = [{"prompt": f"The capital of {name} is", "subject": name, "target_new": "Lyon"} for name in ("Chad", "Peru")]
    bad = [
        {"prompt": "The capital of Cuba is", "subject": "Haiti", "target_new": "Lyon"},
        {"prompt": "The capital of Mali is", "subject": "Mali", "target_new": " "},
    ]
    file.write_text("\n".join(map(json.dumps, [good[0], *bad, good[1]])))
    with pytest.raises(DataError) as caught:
        load_edits(file)
    assert all(
        text in str(caught.value) for text in (f"{file}:2", "'Haiti'", "other 1 record(s)", f"{file}:3", "blank")
    )
    found = load_edits(file, is_strict=False)
    assert [request.subject for request in found.requests] == ["Chad", "Peru"]
    assert [one.where for one in found.skipped] == [f"{file}:2", f"{file}:3"]
    file.write_text("\n".join(map(json.dumps, bad)))
    with pytest.raises(DataError, match="no usable record"):
        load_edits(file, is_strict=False)
