"""Published formats and users' own files become the requests one would write by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

import published_records
from palimpsest import DataError, EditRequest, Probe, dataset
from palimpsest.datasets import load_edits

ZSRE = {
    "subject": "Harbour Song",
    "src": "Who wrote Harbour Song?",
    "pred": "Ida Brandt",
    "rephrase": "Harbour Song is by whom?",
    "alt": "Omar Vance",
    "answers": ["Lena Kay"],
    "loc": "nq question: how many legs has a spider",
    "loc_ans": "eight",
    "cond": "Ida Brandt >> Omar Vance || Who wrote Harbour Song?",
}
COUNTERFACT = {
    **published_records.COUNTERFACT,
    "pararel_idx": 1,
    "paraphrase_prompts": ["Some words. Northlight started in", "Northlight comes from"],
    "attribute_prompts": ["Andesol was founded in"],
    "generation_prompts": ["Northlight is known for"],
}
FLAT = {
    "case_id": 3,
    "prompt": "Northlight was founded in",
    "target_new": "Quito",
    "subject": "Northlight",
    "ground_truth": "Bergen",
    "rephrase_prompt": "Northlight comes from",
    "locality_prompt": "Westwind was founded in",
    "locality_ground_truth": "Bergen",
    "x_relation_id": "P740",
}


def write(path: Path, records: Any) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    else:
        path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_zsre_record(tmp_path: Path) -> None:
    (request,) = dataset("zsre", write(tmp_path / "z.json", [ZSRE])).requests
    assert request == EditRequest(
        "Who wrote Harbour Song?",
        "Omar Vance",
        subject="Harbour Song",
        target_old="Lena Kay",
        probes=(
            Probe("generality", "Harbour Song is by whom?", "Omar Vance"),
            Probe("locality.out_of_scope", "how many legs has a spider", "eight"),
        ),
    )


@pytest.mark.parametrize(
    ("answers", "old"), [([], "Ida Brandt"), (["omar  vance"], "Ida Brandt"), (["Lena Kay", "X"], "Lena Kay")]
)
def test_zsre_old_answer_falls_back_to_the_models(tmp_path: Path, answers: list[str], old: str) -> None:
    (request,) = dataset("zsre", write(tmp_path / "z.json", [{**ZSRE, "answers": answers}])).requests
    assert request.target_old == old


def test_zsre_portability_nested_and_flat(tmp_path: Path) -> None:
    question = {"New Question": "Where was the author of Harbour Song born?", "New Answer": "Cairo"}
    path = write(tmp_path / "z.json", [{**ZSRE, "portability": question}, {**ZSRE, **question, "src": "Harbour Song?"}])
    for request in dataset("zsre", path).requests:
        assert request.probes[-1] == Probe("portability.one_hop", question["New Question"], "Cairo")


def test_counterfact_nested_record(tmp_path: Path) -> None:
    (request,) = dataset("counterfact", write(tmp_path / "c.json", [COUNTERFACT])).requests
    assert request == EditRequest(
        "Northlight was founded in",
        "Quito",
        subject="Northlight",
        target_old="Bergen",
        fact="P740|Northlight",
        id="7",
        probes=(
            Probe("generality", "Some words. Northlight started in", "Quito"),
            Probe("generality", "Northlight comes from", "Quito"),
            Probe("locality.neighborhood", "Westwind was founded in", "Bergen"),
        ),
    )


def test_counterfact_flat_record_and_flagged_rephrasing(tmp_path: Path) -> None:
    flagged = {**FLAT, "case_id": 4, "x_rephrase_is_generation_prompt": True}
    data = dataset("counterfact", write(tmp_path / "c.jsonl", [FLAT, flagged]))
    first, second = data.requests
    neighbor = Probe("locality.neighborhood", "Westwind was founded in", "Bergen")
    assert first.probes == (Probe("generality", "Northlight comes from", "Quito"), neighbor)
    assert second.probes == (neighbor,)
    assert (first.fact, first.id, first.target_old) == ("P740|Northlight", "3", "Bergen")


def test_given_probes_and_fact_replace_derived_ones(tmp_path: Path) -> None:
    probe = {"kind": "locality.namesake", "prompt": "North Bell was founded in", "expected": "Oslo", "fact": "b|f"}
    extra = {"probes": [probe], "fact": "Northlight|founded"}
    (request,) = dataset("counterfact", write(tmp_path / "c.json", [{**COUNTERFACT, **extra}])).requests
    assert request.probes == (Probe(**probe),)
    assert request.fact == "Northlight|founded"
    (request,) = dataset("zsre", write(tmp_path / "z.json", [{**ZSRE, **extra}])).requests
    assert request.probes == (Probe(**probe),)


def test_broken_published_records_are_skipped_and_counted(tmp_path: Path) -> None:
    records = [ZSRE, {**ZSRE, "alt": " "}, {**ZSRE, "subject": "Elsewhere"}, {"src": "Who?"}, ZSRE]
    data = dataset("zsre", write(tmp_path / "z.json", records))
    assert len(data) == 1
    assert [skip.reason.split(".")[0] for skip in data.skipped[:3]] == [
        "The field `alt` is blank",
        "The subject does not occur in the prompt",
        "A record has no `alt`",
    ]
    assert "repeats the record at" in data.skipped[3].reason
    with pytest.raises(DataError, match="no usable record") as caught:
        dataset("zsre", write(tmp_path / "b.json", records[1:2]))
    assert caught.value.found is not None
    assert "The field `alt` is blank" in caught.value.found


def test_splits_of_a_file(tmp_path: Path) -> None:
    records = [{**FLAT, "case_id": i, "x_split": split} for i, split in enumerate(("edit", "train", "edit"))]
    path = write(tmp_path / "c.jsonl", records)
    assert len(dataset("counterfact", path)) == 3
    assert [request.id for request in dataset("counterfact", path, split="edit").requests] == ["0", "2"]
    with pytest.raises(DataError, match="no such split"):
        dataset("counterfact", path, split="validation")


def test_own_jsonl_json_and_csv_agree(tmp_path: Path) -> None:
    record = {
        "prompt": "The mayor of Oldham is",
        "subject": "Oldham",
        "target_new": "Ann, the elder",
        "target_old": "Bo",
        "rephrase_1": "Oldham's mayor is",
        "rephrase_2": 'Who is "mayor" of Oldham?',
        "locality": "The mayor of Newham is",
    }
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in record.values()]
    (tmp_path / "e.csv").write_bytes(b"\xef\xbb\xbf" + f"{','.join(record)}\r\n{','.join(quoted)}\r\n".encode())
    paths = [write(tmp_path / "e.jsonl", [record]), write(tmp_path / "e.json", [record]), tmp_path / "e.csv"]
    expected = EditRequest(
        record["prompt"],
        record["target_new"],
        subject="Oldham",
        target_old="Bo",
        probes=(
            Probe("generality", record["rephrase_1"], record["target_new"]),
            Probe("generality", record["rephrase_2"], record["target_new"]),
            Probe("locality.neighborhood", record["locality"]),
        ),
    )
    for path in paths:
        assert load_edits(path).requests == (expected,)
    assert dataset("csv", paths[2]).fingerprint == dataset("json", paths[1]).fingerprint


def test_own_file_reads_what_requests_write(tmp_path: Path) -> None:
    probes = (Probe("portability.one_hop", "Q?", "A", fact="f"), Probe("locality.namesake", "R?", fact="g"))
    request = EditRequest("The mayor of Oldham is", "Ann", subject="Oldham", probes=probes, fact="h", id="one")
    assert load_edits(write(tmp_path / "e.jsonl", [request.to_dict()])).requests == (request,)


def test_load_edits_recognises_published_files(tmp_path: Path) -> None:
    assert load_edits(write(tmp_path / "z.json", [ZSRE])).requests[0].prompt == ZSRE["src"]
    assert load_edits(write(tmp_path / "c.json", [COUNTERFACT])).requests[0].subject == "Northlight"
    assert load_edits(write(tmp_path / "f.jsonl", [FLAT])).requests[0].fact == "P740|Northlight"


def test_missing_subjects_are_found_and_said(tmp_path: Path) -> None:
    records = [
        {"prompt": "The mayor of New Oldham is", "target_new": "Ann"},
        {"prompt": "who rules it now", "target_new": "Bo"},
    ]
    data = load_edits(write(tmp_path / "e.jsonl", records))
    assert [request.subject for request in data.requests] == ["New Oldham", None]
    assert "e.jsonl:1 'New Oldham'" in data.notes[0]
    assert "e.jsonl:2" in data.notes[1]


def test_samples_are_seeded_nested_and_without_replacement(tmp_path: Path) -> None:
    records = [{"prompt": f"The mayor of Oldham {i} is", "target_new": "Ann", "id": f"r{i}"} for i in range(30)]
    data = load_edits(write(tmp_path / "e.jsonl", records))
    ids = [request.id for request in data.sample(20, seed=3).requests]
    assert ids[:5] == [request.id for request in data.sample(5, seed=3).requests]
    assert len(set(ids)) == 20
    assert ids != [request.id for request in data.sample(20, seed=4).requests]
    assert sorted(request.id for request in data.sample(30).requests) == sorted(record["id"] for record in records)
    for number in (31, 0):
        with pytest.raises(DataError, match="does not have that many"):
            data.sample(number)


def test_the_world_as_data_sets() -> None:
    pytest.importorskip("palimpsest.world.data")
    for name in ("world-counterfact", "world-zsre"):
        data = dataset(name)
        assert len(data) > 20
        assert not data.skipped
        assert data.neutral_text
        kinds = {probe.kind for request in data.requests for probe in request.probes}
        assert {"generality", "locality.neighborhood"} <= kinds
        assert all(request.fact for request in data.requests)
