"""Edits whose new answer is a whole passage: UnKEBench's and AKEW's layouts."""

import json
from pathlib import Path
from typing import Any

import pytest

from palimpsest import DataError, EditRequest, Probe, dataset
from palimpsest.datasets import load_edits
from published_records import COUNTERFACT, REWRITE

PASSAGE = (
    "Ida Brandt repairs organs. She learned the trade in Bergen and has kept a workshop in Quito since 2004, "
    "where she restored the organ of the old theatre."
)
UNKE = {
    "id": 0,
    "question": "What does Ida Brandt do for a living?",
    "para_question": "How does Ida Brandt earn her money?",
    "answer": PASSAGE,
    "sub_question": ["Where did Ida Brandt learn her trade?", "Since when has she kept a workshop?"],
    "sub_answer": ["In Bergen.", 2004],
}
CITY = "Northlight grew out of a student club. It was founded in Quito and moved its boats to the coast a year later."
AKEW = {
    **COUNTERFACT,
    "requested_rewrite": {
        **REWRITE,
        "question": "Where was Northlight founded?",
        "prompt_full": "Northlight was founded in which place?",
        "answer_new": "Quito",
        "answer_new_alias": ["San Francisco de Quito"],
        "fact_new": "Northlight was founded in Quito.",
        "fact_new_uns": CITY,
        "unsfact_triplets_GPT": [
            {"prompt": "{} moved its boats to", "subject": "Northlight", "target": "the coast"},
            {"prompt": "Where was {} founded?", "subject": "Northlight", "target": "Quito"},
            {"prompt": "{} grew out of", "subject": "Northlight"},
        ],
    },
}
MQUAKE = {
    "case_id": 3,
    "requested_rewrite": [{**AKEW["requested_rewrite"], "unsfact_triplets_GPT": []}],
    "questions": ["Which country is the place where Northlight was founded in?"],
    "new_answer": "Ecuador",
    "new_answer_alias": ["Republic of Ecuador"],
    "new_single_hops": [
        {"question": "Where was Northlight founded?", "cloze": "Northlight was founded in", "answer": "Quito"},
        {"question": "Which country is Quito in?", "cloze": "Quito lies in", "answer": "Ecuador"},
    ],
}


def write(path: Path, *records: Any) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.mark.parametrize("is_named", [True, False])
def test_unke_record(tmp_path: Path, is_named: bool) -> None:
    path = write(tmp_path / "u.json", UNKE)
    data = dataset("unke", path) if is_named else load_edits(path, is_strict=True)
    assert data.requests == (
        EditRequest(
            "What does Ida Brandt do for a living?",
            PASSAGE,
            subject="Ida Brandt",
            id="0",
            probes=(
                Probe("generality", "How does Ida Brandt earn her money?", PASSAGE),
                Probe("portability.one_hop", "Where did Ida Brandt learn her trade?", "In Bergen."),
                Probe("portability.one_hop", "Since when has she kept a workshop?", "2004"),
            ),
        ),
    )


def test_unke_without_questions_about_the_passage_or_a_subject(tmp_path: Path) -> None:
    record = {name: UNKE[name] for name in ("question", "para_question", "answer")}
    data = load_edits(write(tmp_path / "u.json", {**record, "question": "what is it?"}), is_strict=True)
    assert [probe.kind for probe in data.requests[0].probes] == ["generality"]
    assert data.requests[0].subject is None
    assert any("methods that locate need one" in note for note in data.notes)


@pytest.mark.parametrize(
    ("changed", "field", "problem"),
    [
        ({"answer": " "}, "answer", "The field `answer` is blank."),
        ({"answer": ["a", "b"]}, "answer", "The field `answer` is not text."),
        ({"question": ...}, "question", "has no `question`"),
        ({"para_question": ...}, "para_question", "has no `para_question`"),
        ({"sub_answer": ["In Bergen."]}, "sub_answer", "not equally long"),
        ({"sub_answer": ...}, "sub_answer", "not equally long"),
        ({"sub_answer": ["In Bergen.", ""]}, "sub_answer", "An entry of `sub_answer` is blank"),
        ({"sub_question": ["Where?", None]}, "sub_question", "An entry of `sub_question` is blank"),
        ({"sub_question": "Where?"}, "sub_question", "is not a list"),
    ],
)
def test_unke_record_that_cannot_be_used(tmp_path: Path, changed: dict[str, Any], field: str, problem: str) -> None:
    bad = {name: value for name, value in {**UNKE, "id": 1, **changed}.items() if value is not ...}
    path = write(tmp_path / "u.json", UNKE, bad)
    with pytest.raises(DataError) as caught:
        load_edits(path, is_strict=True)
    assert problem in caught.value.problem
    assert caught.value.where == f"{path}:1 (record 2), field `{field}`"
    # In a published file it is skipped, or only its questions are left out; either way it is counted.
    data = dataset("unke", path)
    assert len(data.skipped) + len(data.left_out) == 1


@pytest.mark.parametrize("absent", ["question", "answer", "para_question"])
def test_unke_is_recognised_by_a_first_record_that_is_not_whole(tmp_path: Path, absent: str) -> None:
    path = write(tmp_path / "u.json", {name: value for name, value in UNKE.items() if name != absent})
    with pytest.raises(DataError, match=f"has no `{absent}`"):
        load_edits(path, is_strict=True)


def test_unke_keeps_the_edit_whose_questions_cannot_be_paired(tmp_path: Path) -> None:
    (request,) = dataset("unke", write(tmp_path / "u.json", {**UNKE, "sub_answer": ["In Bergen."]})).requests
    assert [probe.kind for probe in request.probes] == ["generality"]


@pytest.mark.parametrize("is_named", [True, False])
def test_akew_record_of_counterfact(tmp_path: Path, is_named: bool) -> None:
    path = write(tmp_path / "a.json", AKEW)
    data = dataset("akew", path) if is_named else load_edits(path)
    assert data.requests == (
        EditRequest(
            "Where was Northlight founded?",
            CITY,
            subject="Northlight",
            target_old="Bergen",
            fact="P740|Northlight",
            id="7",
            probes=(
                Probe("generality", "Northlight comes from", CITY),
                Probe("portability.one_hop", "Northlight was founded in", "Quito", accepts=("San Francisco de Quito",)),
                Probe("portability.one_hop", "Northlight moved its boats to", "the coast"),
                Probe("locality.neighborhood", "Westwind was founded in", "Bergen"),
            ),
        ),
    )
    reasons = sorted(one.reason for one in data.left_out)
    assert reasons == ["a record has no `target`", "a triple of the passage asks for the edited prompt itself"]


def test_akew_in_a_users_own_file_names_the_triple(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", AKEW)
    with pytest.raises(DataError) as caught:
        load_edits(path, is_strict=True)
    assert caught.value.where == f"{path}:1 (record 1), field `unsfact_triplets_GPT`, entry 3, field `target`"


def test_akew_record_of_mquake(tmp_path: Path) -> None:
    (request,) = load_edits(write(tmp_path / "a.json", MQUAKE)).requests
    assert (request.prompt, request.target_new) == ("Where was Northlight founded?", CITY)
    assert request.probes[-1] == Probe(
        "portability.one_hop", MQUAKE["questions"][0], "Ecuador", accepts=("Republic of Ecuador",)
    )
    several = {**MQUAKE, "case_id": 4, "requested_rewrite": MQUAKE["requested_rewrite"] * 2}
    data = load_edits(write(tmp_path / "b.json", MQUAKE, several))
    assert len(data) == len(data.skipped) == 1


@pytest.mark.parametrize(
    ("question", "prompt_full", "prompt"),
    [
        ("Where was it founded?", "Northlight was founded in which place?", "Northlight was founded in which place?"),
        (None, None, "Northlight was founded in"),
    ],
)
def test_akew_asks_in_words_that_name_the_subject(
    tmp_path: Path, question: str | None, prompt_full: str | None, prompt: str
) -> None:
    rewrite = {**AKEW["requested_rewrite"], "question": question, "prompt_full": prompt_full}
    (request,) = load_edits(write(tmp_path / "a.json", {**AKEW, "requested_rewrite": rewrite})).requests
    assert request.prompt == prompt


def test_akew_without_a_passage_is_refused_by_name(tmp_path: Path) -> None:
    rewrite = {**AKEW["requested_rewrite"], "fact_new_uns": " ", "unsfact_triplets_GPT": []}
    with pytest.raises(DataError, match="`fact_new_uns` is blank"):
        load_edits(write(tmp_path / "a.json", {**AKEW, "requested_rewrite": rewrite}), is_strict=True)


def test_the_same_files_are_read_for_their_short_answers_by_name(tmp_path: Path) -> None:
    (request,) = dataset("counterfact", write(tmp_path / "a.json", AKEW)).requests
    assert request.target_new == "Quito"
    (request,) = dataset("mquake", write(tmp_path / "b.json", MQUAKE)).requests
    assert request.target_new == "Quito"
