"""A user's own files: other tools' layouts, other names of columns, other delimiters and encodings, odd values."""

import codecs
import csv
import json
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

from palimpsest import ConfigError, DataError, EditRequest, Probe
from palimpsest.datasets import dataset, load_edits
from palimpsest.datasets.columns import SYNONYMS, column_of
from palimpsest.datasets.criteria import KINDS
from palimpsest.requests import PROBE_KINDS, normalise

BASE = {"prompt": "The capital of Japan is", "subject": "Japan", "target_new": "Oslo", "ground_truth": "Tokyo"}
EASYEDIT = {
    **BASE,
    "rephrase_prompt": "Which city is the capital of Japan?",
    "locality": {
        "neighborhood": {
            "prompt": ["The capital of Nepal is", "The capital of Peru is"],
            "ground_truth": ["Kathmandu", "Lima"],
        },
        "distracting": {"prompt": "Japan: Oslo. The capital of Chad is", "ground_truth": "N'Djamena"},
    },
    "portability": {
        "one_hop": {"prompt": "The country of Japan's capital is", "ground_truth": "Norway"},
        "two_hop": {"prompt": ["The continent of Japan's capital is"], "ground_truth": [["Europe", "the Old World"]]},
        "Subject_Aliasing": [{"prompt": "The capital of Nippon is", "ground_truth": "Oslo"}],
    },
}


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def read(tmp_path: Path, *records: Any) -> tuple[EditRequest, ...]:
    return load_edits(write(tmp_path / "own.json", list(records))).requests


def test_easyedits_own_data(tmp_path: Path) -> None:
    (request,) = read(tmp_path, EASYEDIT)
    assert request == EditRequest(
        "The capital of Japan is",
        "Oslo",
        subject="Japan",
        target_old="Tokyo",
        probes=(
            Probe("generality", "Which city is the capital of Japan?", "Oslo"),
            Probe("locality.neighborhood", "The capital of Nepal is", "Kathmandu"),
            Probe("locality.neighborhood", "The capital of Peru is", "Lima"),
            Probe("locality.distracting", "Japan: Oslo. The capital of Chad is", "N'Djamena"),
            Probe("portability.one_hop", "The country of Japan's capital is", "Norway"),
            Probe("portability.multi_hop", "The continent of Japan's capital is", "Europe", accepts=("the Old World",)),
            Probe("portability.subject_alias", "The capital of Nippon is", "Oslo"),
        ),
    )


PAIRS = {
    "texts": ({"prompt": "P", "ground_truth": "a"}, [("P", ["a"])]),
    "names of one answer": ({"prompt": "P", "ground_truth": ["a", "b"]}, [("P", ["a", "b"])]),
    "lists": ({"prompt": ["P", "Q"], "ground_truth": ["a", "b"]}, [("P", ["a"]), ("Q", ["b"])]),
    "one answer for all": ({"prompt": ["P", "Q"], "ground_truth": "a"}, [("P", ["a"]), ("Q", ["a"])]),
    "a list of one for all": ({"prompt": ["P", "Q"], "ground_truth": ["a"]}, [("P", ["a"]), ("Q", ["a"])]),
    "one prompt in a list": ({"prompt": ["P"], "ground_truth": ["a", "b"]}, [("P", ["a", "b"])]),
    "nested names": ({"prompt": ["P", "Q"], "ground_truth": [["a", "b"], "c"]}, [("P", ["a", "b"]), ("Q", ["c"])]),
    "nested lists": ({"prompt": [["P", "Q"]], "ground_truth": [["a", "b"]]}, [("P", ["a"]), ("Q", ["b"])]),
    "a gap": ({"prompt": [None, "Q"], "ground_truth": [None, "b"]}, [("Q", ["b"])]),
    "objects": ([{"prompt": "P", "answer": "a"}, {"question": "Q", "target": 5}], [("P", ["a"]), ("Q", ["5"])]),
    "a text": ("P", [("P", [])]),
    "texts in a list": (["P", "Q"], [("P", []), ("Q", [])]),
    "no answer": ({"prompt": ["P", "Q"]}, [("P", []), ("Q", [])]),
}


@pytest.mark.parametrize("case", PAIRS)
def test_prompts_and_answers_of_one_kind(tmp_path: Path, case: str) -> None:
    entry, expected = PAIRS[case]
    (request,) = read(tmp_path, {**BASE, "locality": {"neighborhood": entry}})
    assert [(probe.prompt, list(probe.answers)) for probe in request.probes] == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *KINDS.items(),
        ("Neighbourhood", "locality.neighborhood"),
        ("distracting-neighborhood", "locality.distracting"),
        ("Distracting Neighbor", "locality.distracting"),
        ("unrelated_relation", "locality.other_relation"),
        ("Other Attribution", "locality.other_relation"),
        ("ONE HOP", "portability.one_hop"),
        ("mhop", "portability.multi_hop"),
        ("Subject Replace", "portability.subject_alias"),
        ("reversed_relation", "portability.inverse"),
        ("reasoning", "portability.multi_hop"),
        ("logical_generalization", "portability.logical"),
        ("relation_specificity", "locality.other_relation"),
        ("forgetfulness", "locality.other_answer"),
        *((kind, kind) for kind in PROBE_KINDS if "." in kind and kind != "portability.reasoning"),
    ],
)
def test_every_kind_is_known_in_any_spelling(tmp_path: Path, name: str, kind: str) -> None:
    group = "locality" if kind.startswith("locality") else "portability"
    (request,) = read(tmp_path, {**BASE, group: {name: {"prompt": "Something else is", "ground_truth": "x"}}})
    assert [probe.kind for probe in request.probes] == [kind]


@pytest.mark.parametrize("name", ["portability.reasoning", "Portability.Reasoning"])
def test_a_reasoning_probe_is_known_by_its_whole_name_and_needs_the_old_answer(tmp_path: Path, name: str) -> None:
    question = {"prompt": "Which river flows there?", "ground_truth": "x"}
    with pytest.raises(DataError) as caught:
        read(tmp_path, {**BASE, "portability": {name: question}})
    assert "expected_old" in str(caught.value)


BAD = {
    "unknown kind": ({"portability": {"one_hopp": {"prompt": "P", "ground_truth": "a"}}}, ["one_hopp", "'one_hop'"]),
    "unknown kind in a list": (
        {"locality": {"neigbors": [{"prompt": "P"}]}},
        ["neigbors", "did you mean", "neighbors"],
    ),
    "no kind like it": ({"portability": {"xyzzy": {"prompt": "P", "ground_truth": "a"}}}, ["one_hop", "two_hop"]),
    "lengths": (
        {"locality": {"neighborhood": {"prompt": ["P", "Q", "R"], "ground_truth": ["a", "b"]}}},
        ["neighborhood", "3 prompts", "2 answers", "field `locality`"],
    ),
    "no answer": ({"portability": {"one_hop": {"prompt": "P"}}}, ["one_hop", "no expected answer"]),
    "no prompt": ({"locality": {"neighborhood": {"ground_truth": "a"}}}, ["neighborhood", "no prompt"]),
    "the edited prompt": (
        {"locality": {"neighborhood": {"prompt": "the capital of Japan is"}}},
        ["edited prompt itself"],
    ),
    "the edited prompt in a column": ({"locality": "The capital of Japan is"}, ["edited prompt itself", "`locality`"]),
    "subject": ({"subject": "Spain"}, ["does not occur", "'Spain'", "field `subject`"]),
    "answer": ({"target_new": " "}, ["`target_new` is blank"]),
    "object": ({"target_new": {"str": "Oslo"}}, ["`target_new` is not text", "{'str': 'Oslo'}"]),
    "list": ({"target_new": ["Oslo"]}, ["`target_new` is not text", "['Oslo']"]),
    "same": ({"ground_truth": "Oslo"}, ["nothing to edit"]),
    "nothing in a list of names": ({"rephrase_prompt": [{"a": 1}]}, ["rephrase", "neither text nor a list"]),
    "a Python list": ({"rephrase": "['How?', 'Why?']"}, ["as Python prints it", "rephrase_1"]),
    "probe": ({"probes": [{"kind": "generality"}]}, ["A probe cannot be read", "`accepts`"]),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("others", [EASYEDIT, BASE], ids=["easyedit", "plain"])
def test_a_bad_record_of_ones_own_is_an_error_with_its_number(
    tmp_path: Path, case: str, others: dict[str, Any]
) -> None:
    changes, words = BAD[case]
    good = {**others, "prompt": "The capital of Peru is", "subject": "Peru", "locality": {}}
    record = {**others, **changes}
    with pytest.raises(DataError) as caught:
        read(tmp_path, good, record)
    assert all(word in str(caught.value) for word in ("own.json:1 (record 2)", *words)), str(caught.value)
    kept = load_edits(tmp_path / "own.json", is_strict=False)
    assert any("Peru" in request.prompt for request in kept.requests)
    assert kept.skipped or kept.left_out


def test_published_records_are_errors_too_where_all_must_be_usable(tmp_path: Path) -> None:
    rewrite = {"prompt": "{} lies in", "target_new": {"str": "Peru"}, "target_true": {"str": "Chad"}}
    records = [{"requested_rewrite": {**rewrite, "subject": name}} for name in ("Lima", " ")]
    file = write(tmp_path / "c.json", records)
    assert len(load_edits(file)) == 1
    with pytest.raises(DataError, match="`subject` is blank") as caught:
        load_edits(file, is_strict=True)
    assert "c.json:1 (record 2)" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        *((other, column) for column, others in SYNONYMS.items() for other in others),
        ("Prompt", "prompt"),
        ("PROMPT", "prompt"),
        (" prompt ", "prompt"),
        ("Target New", "target_new"),
        ("target-new", "target_new"),
        ("targetNew", "target_new"),
        ("Target_Old", "target_old"),
        ("ＰＲＯＭＰＴ", "prompt"),
        ("Rephrase 2", "rephrase_2"),
        ("rephrase2", "rephrase_2"),
        ("paraphrase_10", "rephrase_10"),
        ("Locality-1", "locality_1"),
        ("neighborhood_prompt_3", "locality_3"),
        ("loc_ans_2", "locality_answer_2"),
        ("notes", None),
        ("answer", None),
        ("prompt_2", None),
        ("2", None),
        ("", None),
    ],
)
def test_names_of_columns(name: str, column: str | None) -> None:
    assert column_of(name) == column


def test_columns_by_other_names_are_read_and_said(tmp_path: Path) -> None:
    file = tmp_path / "e.csv"
    file.write_text(
        "Question,Entity,New Answer,Old answer,Paraphrase,Neighbourhood,loc_ans,comment\n"
        "The capital of Japan is,Japan,Oslo,Tokyo,Japan's capital is,The capital of Peru is,Lima,mine\n"
    )
    data = load_edits(file)
    assert data.requests[0] == EditRequest(
        "The capital of Japan is",
        "Oslo",
        subject="Japan",
        target_old="Tokyo",
        probes=(
            Probe("generality", "Japan's capital is", "Oslo"),
            Probe("locality.neighborhood", "The capital of Peru is", "Lima"),
        ),
    )
    assert "'Question' as `prompt`" in data.notes[0] and "'comment'" in data.notes[1]


def test_our_own_name_goes_before_another_for_the_same(tmp_path: Path) -> None:
    (request,) = read(
        tmp_path, {"prompt": "A is", "question": "What is A?", "target_new": "b", "rephrase": "A?", "paraphrase": "a?"}
    )
    assert request.prompt == "A is" and [probe.prompt for probe in request.probes] == ["A?", "a?"]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("5", "5"),
        ("3.5", "3.5"),
        ("3.50", "3.50"),
        ("1e3", "1e3"),
        ("-0.0", "-0.0"),
        ("true", "true"),
        ("false", "false"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("0.1234567890123456789", "0.1234567890123456789"),
    ],
)
def test_numbers_and_truth_values_are_read_as_they_are_written(tmp_path: Path, written: str, text: str) -> None:
    for name, content in (("e.json", "[{}]"), ("e.jsonl", "{}"), ("f.json", "{}")):
        record = (
            f'{{"prompt": "The number is", "target_new": {written}, "id": 7, "rephrase": [{written}], '
            f'"portability": {{"one_hop": {{"prompt": "Its half is", "ground_truth": {written}}}}}}}'
        )
        (tmp_path / name).write_text(content.replace("{}", record))
        data = load_edits(tmp_path / name)
        (request,) = data.requests
        assert (request.target_new, request.id) == (text, "7")
        assert [probe.expected for probe in request.probes] == [text, text]
        assert any("`target_new` is a number" in note and repr(text) in note for note in data.notes)


def test_what_is_not_a_number_is_refused_or_absent(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text('[{"prompt": "A is", "target_new": NaN}]')
    with pytest.raises(DataError, match="`target_new` is not text"):
        load_edits(tmp_path / "e.json")
    (tmp_path / "e.json").write_text('[{"prompt": "A is", "target_new": "b", "target_old": NaN, "subject": null}]')
    assert load_edits(tmp_path / "e.json").requests[0].target_old is None


def test_templates_are_filled_in_every_text(tmp_path: Path) -> None:
    record = {
        "prompt": "The capital of {} is",
        "subject": "Japan",
        "target_new": "Oslo",
        "rephrase": ["Which city is {subject}'s capital?"],
        "locality": {"other_relation": {"prompt": "The currency of {} is", "ground_truth": "yen"}},
        "portability": {"one_hop": {"prompt": "{}'s capital lies in", "ground_truth": "Norway"}},
    }
    (request,) = read(tmp_path, record)
    assert request.prompt == "The capital of Japan is"
    assert [probe.prompt for probe in request.probes] == [
        "Which city is Japan's capital?",
        "The currency of Japan is",
        "Japan's capital lies in",
    ]
    with pytest.raises(DataError, match="edited prompt itself"):
        read(tmp_path, {**record, "locality": "The capital of {} is"})


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ({"prompt": "the type of {} is"}, r"(?s)subject.*\{\}.*the prompt 'the type of \{\} is'"),
        ({"rephrase": "{subject} has the type"}, r"(?s)subject.*\{subject\}.*generality probe"),
        ({"locality": ["A list is", "{0} in Python is"]}, r"(?s)subject.*\{0\}.*locality.neighborhood probe"),
    ],
)
def test_a_template_without_a_subject_is_refused_unless_its_braces_are_meant(tmp_path, field, found) -> None:
    record = {"prompt": "the type of it is", "target_new": "dict", **field}
    with pytest.raises(DataError, match=found):
        read(tmp_path, record)
    own = load_edits(
        write(tmp_path / "n.json", [{"prompt": "the type of {} is", "subject": "type", "target_new": "dict"}])
    )
    assert own.requests[0].prompt == "the type of {} is" and "stands in it already" in own.notes[0]


TABLE = (
    ("prompt", "subject", "target_new", "rephrase"),
    ('The "capital" of Japan, in short, is', "Japan", "Oslo; the\nnew one", "Japan's\tcapital|city is"),
    ("The capital of Peru is", "Peru", "Lyon", ""),
)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "bom"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"], ids=["comma", "semicolon", "tab", "bar"])
@pytest.mark.parametrize("name", ["e.csv", "e.tsv", "e.CSV", "e.tab"])
def test_tables_of_every_delimiter(tmp_path: Path, name: str, delimiter: str, mark: bytes, end: str) -> None:
    with (tmp_path / "plain").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator=end).writerows(TABLE)
    content = (tmp_path / "plain").read_bytes()
    (tmp_path / name).write_bytes(mark + content + end.encode() * 3)
    first, second = load_edits(tmp_path / name).requests
    assert (first.prompt, first.target_new) == (TABLE[1][0], TABLE[1][2])
    assert first.probes[0].prompt == TABLE[1][3]
    assert second.probes == ()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_encodings_that_a_byte_order_mark_names(tmp_path: Path, encoding: str) -> None:
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    text = "prompt\ttarget_new\tsubject\r\nDie Hauptstadt von Österreich ist\tLyon 🦁\tÖsterreich\r\n"
    (tmp_path / "e.tsv").write_bytes(mark + text.encode(encoding))
    (request,) = load_edits(tmp_path / "e.tsv").requests
    assert (request.subject, request.target_new) == ("Österreich", "Lyon 🦁")


def test_what_a_spreadsheet_writes(tmp_path: Path) -> None:
    file = tmp_path / "e.csv"
    file.write_text("sep=;\nprompt;target_new;;\nThe capital of Peru is;Lyon;;\n;;;\n")
    assert load_edits(file).requests[0].target_new == "Lyon"
    file.write_text("sep=;\nprompt;target_new\nThe capital of Peru is;Lyon;x\n")
    with pytest.raises(DataError, match="more cells") as caught:
        load_edits(file)
    assert "e.csv:3" in str(caught.value) and "semicolons" in str(caught.value)
    file.write_text(",prompt,target_new\n0,The capital of Peru is,Lyon\n")
    assert load_edits(file).requests[0].prompt == "The capital of Peru is"


def test_json_in_a_cell(tmp_path: Path) -> None:
    probes = [{"kind": "portability.one_hop", "prompt": "P", "expected": "a"}]
    with (tmp_path / "e.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "target_new", "rephrase", "probes", "locality"])
        rows.writerow(
            ["A is", "b", '["A?", "What is A?"]', json.dumps(probes), '{"nq": {"prompt": "Q", "answer": "c"}}']
        )
        rows.writerow(["B is", "b", "[sic] B is", "", "[1] is"])
    first, second = load_edits(tmp_path / "e.csv").requests
    assert {probe.prompt for probe in first.probes} == {"A?", "What is A?", "P", "Q"}
    assert [probe.prompt for probe in second.probes] == ["[sic] B is", "[1] is"]


COLUMNAR = {
    "prompts": ["The capital of Japan is", "The capital of Peru is"],
    "subject": ["Japan", "Peru"],
    "target_new": ["Oslo", "Lyon"],
    "ground_truth": ["Tokyo", None],
    "rephrase_prompts": ["Japan's capital is", "Peru's capital is"],
    "locality_inputs": {
        "neighborhood": {"prompt": ["Chad is in", ["Mali is in", "Togo is in"]], "ground_truth": ["Africa"] * 2}
    },
    "portability_inputs": {"one_hop": {"prompt": [None, "It lies in"], "ground_truth": [None, "France"]}},
}


def test_the_arguments_of_easyedits_editor_as_a_file(tmp_path: Path) -> None:
    first, second = load_edits(write(tmp_path / "a.json", COLUMNAR)).requests
    assert (first.target_old, second.target_old) == ("Tokyo", None)
    assert [probe.prompt for probe in first.probes] == ["Japan's capital is", "Chad is in"]
    assert [probe.prompt for probe in second.probes] == ["Peru's capital is", "Mali is in", "Togo is in", "It lies in"]
    for changes in ({"subject": ["Japan"]}, {"target_new": "Oslo"}, {"locality_inputs": {"nq": {"prompt": ["a"]}}}):
        with pytest.raises(DataError, match="not equally long") as caught:
            load_edits(write(tmp_path / "a.json", {**COLUMNAR, **changes}))
        assert next(iter(changes)) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("object.json", json.dumps(BASE)),
        ("wrapped.json", json.dumps({"version": 1, "edits": [BASE]})),
        ("by name.json", json.dumps({"0": BASE})),
        ("by column.json", json.dumps({key: {"0": value} for key, value in BASE.items()})),
        ("lines.json", json.dumps(BASE) + "\n" + json.dumps(BASE) + "\n"),
        ("list.jsonl", json.dumps([BASE], indent=2)),
        ("lines.ndjson", "\n\n" + json.dumps(BASE) + "\r\n\r\n"),
    ],
)
def test_json_that_is_not_a_list_or_not_what_its_name_says(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (request,) = load_edits(tmp_path / name).requests
    assert (request.prompt, request.target_old) == (BASE["prompt"], "Tokyo")


def test_what_is_said_about_records_that_are_read(tmp_path: Path) -> None:
    records = [
        {"prompt": normalize("NFD", "Where was Zoë born?"), "subject": "Zoë", "target_new": "Oslo"},
        {"prompt": "the company is called", "target_new": "OpenAI", "target_old": "openai"},
        {"prompt": "The capital of Peru\u200b is", "target_new": "Os\u00adlo", "subject": "Peru"},
        {"prompt": "The capital of Chad is Oslo", "target_new": "Oslo", "subject": "Chad"},
    ]
    data = load_edits(write(tmp_path / "e.json", records))
    assert data.requests[0].subject == normalize("NFD", "Zoë")
    said = "\n".join(data.notes)
    assert "differ in case or spaces only" in said
    assert "U+200B ZERO WIDTH SPACE" in said and "U+00AD SOFT HYPHEN" in said
    assert "ends in the answer 'Oslo'" in said


def test_round_trips_by_every_format(tmp_path: Path) -> None:
    """What a table can hold comes back the same from CSV, TSV, JSON and JSONL."""
    hypothesis = pytest.importorskip("hypothesis")
    strategies = hypothesis.strategies
    letters = strategies.characters(exclude_categories=("Cs", "Cc"), include_characters='\n\t,;|"')
    text = strategies.text(letters, min_size=1, max_size=12).map(lambda one: f"x{one}x")
    rows = strategies.lists(
        strategies.tuples(text, text, text), min_size=1, max_size=3, unique_by=lambda row: normalise(row[0])
    )

    @hypothesis.settings(max_examples=40, deadline=None, database=None)
    @hypothesis.given(rows)
    def check(drawn: list[tuple[str, str, str]]) -> None:
        records = [dict(zip(("prompt", "target_new", "rephrase"), row, strict=True)) for row in drawn]
        write(tmp_path / "e.json", records)
        (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        for name, delimiter in (("e.csv", ","), ("e.tsv", "\t")):
            with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, ("prompt", "target_new", "rephrase"), delimiter=delimiter)
                table.writeheader()
                table.writerows(records)
        prints = {load_edits(tmp_path / f"e.{ending}").fingerprint for ending in ("json", "jsonl", "csv", "tsv")}
        assert len(prints) == 1
        found = load_edits(tmp_path / "e.csv").requests
        assert [(one.prompt, one.target_new) for one in found] == [row[:2] for row in drawn]

    check()


def test_zsres_fields_with_questions_by_kind(tmp_path: Path) -> None:
    record = {
        "src": "What is the capital of Japan?",
        "alt": "Oslo",
        "pred": "Kyoto",
        "answers": ["Tokyo", "Tōkyō"],
        "subject": "Japan",
        "rephrase": "Japan's capital?",
        "locality": {"neighborhood": {"prompt": "What is the capital of Peru?", "ground_truth": "Lima"}},
        "portability": {"one_hop": {"prompt": "In which country is Japan's capital?", "ground_truth": "Norway"}},
    }
    for strictness in (None, True, False):
        (request,) = load_edits(write(tmp_path / "z.json", [record]), is_strict=strictness).requests
        assert (request.target_old, [probe.kind for probe in request.probes]) == (
            "Tokyo",
            ["generality", "locality.neighborhood", "portability.one_hop"],
        )
    file = write(tmp_path / "z.json", [{**record, "portability": {"one_hopp": record["portability"]["one_hop"]}}])
    with pytest.raises(DataError, match="'one_hopp' is not known"):
        load_edits(file)


def test_the_layout_that_the_page_shows_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "own-facts.md").read_text(encoding="utf-8")
    for ending in ("json", "csv"):
        (tmp_path / f"shown.{ending}").write_text(page.split(f"```{ending}\n")[1].split("```")[0], encoding="utf-8")
        (request,) = load_edits(tmp_path / f"shown.{ending}").requests
        assert (request.subject, request.target_new, request.target_old) == ("Japan", "Oslo", "Tokyo")
    (request,) = load_edits(tmp_path / "shown.json").requests
    assert [probe.kind.split(".")[-1] for probe in request.probes] == [
        "generality",
        "neighborhood",
        "neighborhood",
        "distracting",
        "one_hop",
    ]


def test_a_file_s_name_is_a_data_set_of_its_own(tmp_path):
    file = tmp_path / "facts.csv"
    file.write_text("prompt,target_new,subject\nThe capital of France is,Lyon,France\n")
    assert dataset(str(file)).requests == load_edits(file).requests
    with pytest.raises(DataError, match="nowhere.csv"):
        dataset("nowhere.csv")
    with pytest.raises(ConfigError, match="did you mean 'counterfact'"):
        dataset("counterfct")


def test_a_split_of_a_file_is_asked_for_by_the_file_s_name(tmp_path):
    rows = "The capital of France is,Lyon,train\nThe capital of Japan is,Oslo,edit\n"
    file = tmp_path / "facts.csv"
    file.write_text(f"prompt,target_new,split\n{rows}")
    assert [edit.target_new for edit in dataset(str(file), split="train").requests] == ["Lyon"]
    assert [edit.target_new for edit in load_edits(file, split="edit").requests] == ["Oslo"]
    assert dataset(str(file)).requests == load_edits(file).requests
    with pytest.raises(DataError, match="no such split.*\n.*edit, test, train"):
        dataset(str(file), split="validation")
    plain = tmp_path / "plain.csv"
    plain.write_text("prompt,target_new\nThe capital of France is,Lyon\n")
    with pytest.raises(DataError, match="its records name no split"):
        dataset(str(plain), split="train")


@pytest.mark.parametrize("name", ["", "  "])
def test_a_blank_name_is_no_file(name):
    with pytest.raises(ConfigError, match="no data set named"):
        dataset(name)


@pytest.mark.parametrize("content", ["", " \n", "prompt,subject,target_new\n"])
def test_a_file_without_edits_says_what_to_write_in_it(tmp_path, content):
    file = tmp_path / "facts.csv"
    file.write_text(content)
    with pytest.raises(DataError) as caught:
        dataset(str(file))
    assert caught.value.remedy
    assert "prompt" in caught.value.remedy
    assert "target_new" in caught.value.remedy
