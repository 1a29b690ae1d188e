"""Data sets whose records come with questions of several kinds: what each becomes, and what is left out and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from palimpsest import DataError, EditRequest, Probe, dataset
from palimpsest.datasets import Dataset, load_edits, with_distracting, with_out_of_scope
from palimpsest.requests import PROBE_KINDS

KNOWEDIT = {
    "subject": "Tall Hill",
    "prompt": "The name of the country which Tall Hill is associated with is",
    "target_new": "Norland",
    "ground_truth": "Sudland",
    "portability": {
        "Reasoning": [
            {"prompt": "The capital of the country Tall Hill is associated with is", "ground_truth": "Norburg"},
            {"prompt": "The country of the hill above Lowtown is", "ground_truth": "Norland"},
        ],
        "Subject_Aliasing": [
            {"prompt": "The name of the country which High Hill is associated with is", "ground_truth": "Norland"}
        ],
        "Logical_Generalization": [
            {"prompt": "The hill of Norland is", "ground_truth": "Tall Hill"},
            {"prompt": "The continent of Tall Hill is", "ground_truth": [["Boreas", "the North"], ["Up"]]},
        ],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The height of Tall Hill is", "ground_truth": ["900 m"]},
            {"prompt": "Tall Hill country", "ground_truth": ["Sudland"]},
        ],
        "Forgetfulness": [{"prompt": "The country of Tall Hill, which is not Norland, is", "ground_truth": "Midland"}],
    },
}
HOPS = [
    {"question": "Where does Ann Lee live?", "cloze": "Ann Lee lives in", "answer": "York", "answer_alias": []},
    {"question": "Who runs York?", "cloze": "York is run by", "answer": "Bo Ray", "answer_alias": ["B. Ray"]},
]
MQUAKE = {
    "case_id": 4,
    "requested_rewrite": [
        {
            "prompt": "{} lives in",
            "relation_id": "P551",
            "target_new": {"str": "York", "id": "Q1"},
            "target_true": {"str": "Leeds", "id": "Q2"},
            "subject": "Ann Lee",
            "question": "Where does Ann Lee live?",
        }
    ],
    "questions": ["Who runs the town where Ann Lee lives?", "Who is mayor of Ann Lee's town?"],
    "answer": "Cy Dow",
    "new_answer": "Bo Ray",
    "new_answer_alias": ["B. Ray"],
    "new_single_hops": HOPS,
}


def query(prompt: str, *answers: tuple[str, list[str]], relation: str = "MOTHER", **more: Any) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "answers": [{"value": value, "aliases": aliases} for value, aliases in answers],
        "query_type": "regular",
        "subject_id": "Q7",
        "relation": relation,
        "target_ids": ["Q8"],
        "phrase": None,
        **more,
    }


def case(*queries: dict[str, Any], condition: str = "OR") -> dict[str, Any]:
    return {"test_queries": list(queries), "test_condition": condition, "condition_queries": []}


RIPPLE = {
    "example_type": "popular",
    "edit": {
        "prompt": "The place of birth of Ann Lee is St. Ives.",
        "subject_id": "Q7",
        "relation": "PLACE_OF_BIRTH",
        "target_id": "Q1",
        "original_fact": {"prompt": "The place of birth of Ann Lee is St. Austell.", "target_id": "Q2"},
    },
    "Relation_Specificity": [case(query("The name of the mother of Ann Lee is", ("Eve Lee", ["E. Lee"])))],
    "Logical_Generalization": [
        case(query("The person born in St. Ives is", ("Ann Lee", []))),
        case(query("The country of birth of Ann Lee is", ("England", [])), query("Its county is", ("Cornwall", []))),
    ],
    "Subject_Aliasing": [case(query("The place of birth of A. Lee is", ("St. Ives", ["Porth Ia"])))],
    "Compositionality_I": [
        case(query("The mayor of the place of birth of Ann Lee is", ("Bo Ray", []), second_relation="HEAD"))
    ],
    "Compositionality_II": [case(query("The place of birth of the wife of Cy Dow is", ("St. Ives", [])))],
    "Forgetfulness": [case(query("The place of birth of Ann Lee, which is not St. Ives, is"))],
}


def read(name: str, path: Path, *records: Any) -> Dataset:
    path = path / "data.json"
    path.write_text(json.dumps(records))
    data = dataset(name, path)
    assert load_edits(path) == Dataset(path.name, data.requests, data.skipped, data.notes, (), data.left_out)
    return data


def kinds(request: EditRequest) -> list[str]:
    return [probe.kind for probe in request.probes]


def test_knowedit_record(tmp_path: Path) -> None:
    data = read("knowedit", tmp_path, KNOWEDIT)
    (request,) = data.requests
    assert (request.prompt, request.subject) == (KNOWEDIT["prompt"], "Tall Hill")
    assert (request.target_new, request.target_old) == ("Norland", "Sudland")
    assert kinds(request) == [
        "portability.one_hop",
        "portability.multi_hop",
        "portability.subject_alias",
        "portability.inverse",
        "portability.logical",
        "locality.other_relation",
        "locality.other_answer",
    ]
    assert request.probes[4].answers == ("Boreas", "the North", "Up")
    assert request.probes[0] == Probe(
        "portability.one_hop", "The capital of the country Tall Hill is associated with is", "Norburg"
    )
    # The question about the edited fact itself, which expects the old answer.
    assert [one.reason for one in data.left_out] == [
        "it expects the old answer, so that it may ask for the edited fact itself"
    ]
    assert "1 question(s)" in data.notes[0]


def test_knowedit_as_the_hub_gives_it_with_empty_criteria_and_a_list_of_old_answers(tmp_path: Path) -> None:
    empty = {"Reasoning": None, "Subject_Aliasing": []}
    record = {**KNOWEDIT, "ground_truth": ["Sudland", "the South"], "portability": empty, "rephrase_prompt": "Hill?"}
    (request,) = read("knowedit", tmp_path, record).requests
    assert kinds(request) == ["generality", "locality.other_relation", "locality.other_answer"]
    assert request.target_old == "Sudland"


def test_broken_questions_are_left_out_and_broken_records_skipped(tmp_path: Path) -> None:
    alias = {"prompt": "High Hill lies in", "ground_truth": "Norland"}
    broken = {
        "Subject_Aliasing": [
            alias,
            {**alias, "ground_truth": " "},
            {**alias, "prompt": None},
            {**alias, "prompt": KNOWEDIT["prompt"]},
            "text",
        ],
        "Mystery": [alias],
    }
    records = [{**KNOWEDIT, "portability": broken}, {**KNOWEDIT, "portability": "x"}, {"prompt": "x"}]
    data = read("knowedit", tmp_path, *records)
    assert kinds(data.requests[0])[:2] == ["portability.subject_alias", "locality.other_relation"]
    assert [one.reason for one in data.left_out[:5]] == [
        "Subject_Aliasing: a probe has no expected answer",
        "Subject_Aliasing: a question has no prompt",
        "a question of Subject_Aliasing is the edited prompt itself",
        "Subject_Aliasing: a probe has no expected answer",
        "the criterion 'Mystery' is not known",
    ]
    assert [one.reason.split(".")[0] for one in data.skipped] == [
        "The field `portability` is not an object",
        "A record has no `target_new`",
    ]
    with pytest.raises(DataError, match="no usable record"):
        read("knowedit", tmp_path, *records[1:])


def test_mquake_record(tmp_path: Path) -> None:
    data = read("mquake", tmp_path, MQUAKE)
    (request,) = data.requests
    assert request == EditRequest(
        "Ann Lee lives in",
        "York",
        subject="Ann Lee",
        target_old="Leeds",
        fact="P551|Ann Lee",
        id="4",
        probes=(
            Probe("generality", "Where does Ann Lee live?", "York"),
            Probe("portability.one_hop", MQUAKE["questions"][0], "Bo Ray", accepts=("B. Ray",), expected_old="Cy Dow"),
            Probe("portability.one_hop", MQUAKE["questions"][1], "Bo Ray", accepts=("B. Ray",), expected_old="Cy Dow"),
        ),
    )
    assert "known to be wrong" in data.notes[0]


def test_mquake_old_answers_are_those_that_the_edit_makes_wrong(tmp_path: Path) -> None:
    (request,) = read("mquake", tmp_path, {**MQUAKE, "answer_alias": ["C. Dow", "b. ray"]}).requests
    assert [one.old_answers for one in request.probes[1:]] == [("Cy Dow", "C. Dow")] * 2
    (request,) = read("mquake", tmp_path, {**MQUAKE, "answer": "B. Ray"}).requests
    assert [one.old_answers for one in request.probes[1:]] == [()] * 2


@pytest.mark.parametrize("hops", [HOPS[::-1], [*HOPS, HOPS[1]]], ids=["edited last", "three facts"])
def test_mquake_chains_that_are_not_one_hop_from_the_new_answer(tmp_path: Path, hops: list[Any]) -> None:
    (request,) = read("mquake", tmp_path, {**MQUAKE, "new_single_hops": hops}).requests
    assert set(kinds(request)) == {"generality", "portability.multi_hop"}


def test_mquake_skips_records_of_several_edits_and_says_so(tmp_path: Path) -> None:
    both = {**MQUAKE, "requested_rewrite": MQUAKE["requested_rewrite"] * 2}
    lacking = {**MQUAKE, "case_id": 5, "new_answer": ""}
    data = read("mquake", tmp_path, MQUAKE, both, lacking)
    assert len(data) == 1
    assert "exactly one fact" in data.skipped[0].reason and "2 edits" in data.skipped[0].reason
    assert "`new_answer` is blank" in data.skipped[1].reason


def test_ripple_record(tmp_path: Path) -> None:
    data = read("ripple-edits", tmp_path, RIPPLE)
    (request,) = data.requests
    assert (request.prompt, request.subject) == ("The place of birth of Ann Lee is", "Ann Lee")
    assert (request.target_new, request.target_old) == ("St. Ives", "St. Austell")
    assert request.fact == "PLACE_OF_BIRTH|Q7"
    by_kind = {probe.kind: probe for probe in request.probes}
    assert set(by_kind) == {
        "portability.subject_alias",
        "portability.one_hop",
        "portability.multi_hop",
        "portability.inverse",
        "locality.other_relation",
        "locality.other_answer",
    }
    assert by_kind["portability.subject_alias"].answers == ("St. Ives", "Porth Ia")
    assert by_kind["locality.other_relation"].fact == "MOTHER|Q7"
    assert by_kind["locality.other_relation"].answers == ("Eve Lee", "E. Lee")
    # Asked for other answers of the edited fact, it would count as edited itself.
    assert by_kind["locality.other_answer"].fact is None
    assert [one.reason for one in data.left_out] == [
        "a test of Logical_Generalization asks several questions of which one must be right"
    ]
    assert any("before the edit" in note for note in data.notes)
    assert any("'Ann Lee'" in note for note in data.notes)


@pytest.mark.parametrize(
    ("sentence", "former", "prompt", "new"),
    [
        ("The names of the siblings of Al are Bo.", None, "The names of the siblings of Al are", "Bo"),
        ("War II follows War I.", "War II follows War Zero.", "War II follows", "War I"),
        ("Part 1 is followed by Part 2.", None, "Part 1 is followed by", "Part 2"),
        (
            "The number of children Al has is 3.",
            "The number of children Al has is 2.",
            "The number of children Al has is",
            "3",
        ),
        ("The country which Al is associated with is Is.", None, "The country which Al is associated with is", "Is"),
        ("The author of Al is Jo Jr..", None, "The author of Al is", "Jo Jr."),
        ("The author of Al is What is Man.", "The author of Al is Me.", "The author of Al is", "What is Man"),
    ],
)
def test_ripple_sentences_are_parted_before_the_answer(
    tmp_path: Path, sentence: str, former: str | None, prompt: str, new: str
) -> None:
    edit = {**RIPPLE["edit"], "prompt": sentence, "original_fact": {"prompt": former} if former else None}
    (request,) = read("ripple-edits", tmp_path, {**RIPPLE, "edit": edit}).requests
    assert (request.prompt, request.target_new) == (prompt, new)


def test_ripple_records_that_cannot_be_read_are_skipped(tmp_path: Path) -> None:
    records = [RIPPLE, {**RIPPLE, "edit": "x"}, {**RIPPLE, "edit": {"prompt": "Nothing to part."}}, {"edit": {}}]
    data = read("ripple-edits", tmp_path, *records)
    assert [one.reason.split(".")[0] for one in data.skipped] == [
        "The edit is not an object",
        "Where the answer begins cannot be determined",
        "A record has no `prompt`",
    ]
    odd = {**RIPPLE, "Subject_Aliasing": [{"test_queries": None}, "x"], "Forgetfulness": None}
    assert len(read("ripple-edits", tmp_path, odd).left_out) == 3


@pytest.mark.parametrize("cases", [7, True, 1.5, "x", {"test_queries": []}])
def test_ripple_tests_that_are_no_list_are_named(tmp_path: Path, cases: Any) -> None:
    data = read("ripple-edits", tmp_path, RIPPLE, {**RIPPLE, "Logical_Generalization": cases})
    (skipped,) = data.skipped
    assert "tests of Logical_Generalization are not a list" in skipped.reason


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("St. Ives", ("St. Ives",)),
        ({"value": "St. Ives", "aliases": "Porth Ia"}, ("St. Ives", "Porth Ia")),
        ([{"value": 7, "aliases": [8, None, " "]}], ("7", "8")),
        (["St. Ives", {"value": None, "aliases": ["Porth Ia"]}], ("St. Ives", "Porth Ia")),
    ],
)
def test_ripple_answers_are_read_whole_in_whatever_form(
    tmp_path: Path, answers: Any, expected: tuple[str, ...]
) -> None:
    question = {"prompt": "The place of birth of A. Lee is", "answers": answers}
    record = {**RIPPLE, "Subject_Aliasing": [{"test_queries": [question], "test_condition": "OR"}]}
    (request,) = read("ripple-edits", tmp_path, record).requests
    (probe,) = [one for one in request.probes if one.kind == "portability.subject_alias"]
    assert probe.answers == expected


def test_zsre_portability_questions_without_an_answer_are_counted(tmp_path: Path) -> None:
    record = {"src": "Who wrote Up?", "alt": "Ann", "subject": "Up", "answers": ["Bo"], "rephrase": "Up is by?"}
    question = {"Recalled Relation": "(Ann, town, York)", "New Question": "Where does Up's author live?"}
    data = read("zsre", tmp_path, {**record, "portability": {**question, "New Answer": ""}})
    assert [one.reason for one in data.left_out] == ["the portability question has no answer"]


def test_distracting_probes_put_the_edit_in_front_of_another_question() -> None:
    far = Probe("locality.out_of_scope", "How many legs has a spider?", "eight", fact="spider|legs")
    near = Probe("locality.neighborhood", "York lies in", "England")
    own = Probe("locality.distracting", "Mine", "x")
    edits = [EditRequest("Oslo lies in", "Peru.", probes=one) for one in ((near, far, near), (near,), (), (own, far))]
    data = with_distracting(Dataset("d", tuple(edits), notes=("first",)))
    first, second, third, fourth = (r.probes for r in data.requests)
    assert first[-1] == Probe(
        "locality.distracting", "Oslo lies in Peru. How many legs has a spider?", "eight", fact="spider|legs"
    )
    assert second[-1] == Probe("locality.distracting", "Oslo lies in Peru. York lies in", "England")
    assert third == ()
    assert fourth == (own, far)
    assert data.notes == (
        "first",
        "1 of 4 edits get no locality.distracting probe: there is no question out of scope or about a neighbour.",
    )


def test_questions_out_of_scope_come_from_edits_of_other_relations_about_other_subjects() -> None:
    def edit(prompt: str, subject: str) -> EditRequest:
        return EditRequest(prompt.replace("{}", subject), "Peru", subject=subject, target_old="Norway")

    lies = [edit("{} lies in", subject) for subject in ("Oslo", "Bergen")]
    rules = [edit("Who rules {}?", subject) for subject in ("Oslo", "York")]
    data = with_out_of_scope(Dataset("d", (*lies, *rules)), num_probes=2)
    asked = [[probe.prompt for probe in request.probes] for request in data.requests]
    assert asked[0] == ["Who rules York?"]
    assert sorted(asked[1]) == ["Who rules Oslo?", "Who rules York?"]
    assert asked[2] == ["Bergen lies in"]
    assert data.requests[0].probes[0] == Probe("locality.out_of_scope", "Who rules York?", "Norway")
    assert with_out_of_scope(Dataset("d", (*lies, *rules)), num_probes=2) == data
    alone = with_out_of_scope(Dataset("d", tuple(lies)))
    assert "2 of 2 edits get no locality.out_of_scope probe" in alone.notes[0]


def test_every_kind_of_probe_has_its_words_in_tables() -> None:
    from palimpsest.report.definitions import LABELS, METRICS

    assert set(PROBE_KINDS) <= set(LABELS) and set(PROBE_KINDS) <= set(METRICS)


def test_records_passed_over_are_said_once_a_problem(tmp_path: Path) -> None:
    from palimpsest.cli.records import notes_of

    both = {**MQUAKE, "requested_rewrite": MQUAKE["requested_rewrite"] * 2}
    said = notes_of(read("mquake", tmp_path, MQUAKE, both, both, {**MQUAKE, "case_id": 5, "new_answer": ""}))[-1]
    assert said.startswith("3 record(s) were passed over: ")
    assert said.count("exactly one fact") == 1
    assert "(1 more like it); " in said
    assert "`new_answer` is blank" in said
