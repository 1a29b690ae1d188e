import json
import subprocess
import sys

import pytest

from palimpsest.errors import ConfigError
from palimpsest.world import build
from palimpsest.world.data import counterfact, zsre
from palimpsest.world.text import sentence, training_sentences

KINDS = {
    "generality",
    "locality.neighborhood",
    "locality.namesake",
    "locality.other_relation",
    "locality.out_of_scope",
    "locality.distracting",
    "portability.one_hop",
}


@pytest.fixture(scope="module")
def knowledge():
    return build()


@pytest.fixture(scope="module")
def cases(knowledge):
    return counterfact(knowledge, split="all")


@pytest.fixture(scope="module")
def questions(knowledge):
    return zsre(knowledge, split="all")


@pytest.fixture(scope="module")
def read(knowledge):
    return {s.prompt for s in training_sentences(knowledge)}


def edited(record):
    """(subject, relation, prompt, old, new) of a record of either layout."""
    subject, relation = record["fact"].split("|")
    if "src" in record:
        return subject, relation, record["src"], record["pred"], record["alt"]
    rewrite = record["requested_rewrite"]
    prompt = rewrite["prompt"].replace("{}", rewrite["subject"])
    return subject, relation, prompt, rewrite["target_true"]["str"], rewrite["target_new"]["str"]


def probes(record, kind):
    return [probe for probe in record["probes"] if probe["kind"] == kind]


def test_every_fact_that_can_change_is_an_edit_and_splits_are_disjoint(knowledge, cases):
    train = {record["fact"] for record in counterfact(knowledge, split="train")}
    test = {record["fact"] for record in counterfact(knowledge)}
    assert train.isdisjoint(test)
    assert train | test == {record["fact"] for record in cases} == {fact.id for fact in knowledge.facts}
    assert all(fact.split("|")[0] in knowledge.test_subjects for fact in test)


def test_a_record_is_the_same_in_every_split(knowledge, questions):
    by_fact = {record["fact"]: record for record in questions}
    assert all(by_fact[record["fact"]] == record for record in zsre(knowledge, split="test"))


def test_data_sets_are_plain_json(cases, questions):
    assert json.loads(json.dumps(cases[:50])) == cases[:50]
    assert json.loads(json.dumps(questions[:50])) == questions[:50]


def test_unknown_split(knowledge):
    with pytest.raises(ConfigError, match="split"):
        counterfact(knowledge, split="validation")


def test_counterfact_has_the_published_fields(cases, read):
    for number, record in enumerate(cases):
        assert record["case_id"] == number
        rewrite = record["requested_rewrite"]
        assert set(rewrite) == {"prompt", "relation_id", "target_new", "target_true", "subject"}
        assert rewrite["prompt"].count("{}") == 1
        assert rewrite["relation_id"].startswith("P")
        assert len(record["paraphrase_prompts"]) == 2
        assert len(record["neighborhood_prompts"]) >= 5
        assert record["attribute_prompts"]
        assert record["generation_prompts"]
        subject, _, prompt, _, _ = edited(record)
        assert subject == rewrite["subject"]
        assert prompt in read
        assert all(subject in text and text not in read for text in record["paraphrase_prompts"])
        assert all(subject in text for text in record["generation_prompts"])


def test_zsre_has_the_published_fields(questions, read):
    for record in questions:
        fields = {
            "subject",
            "src",
            "pred",
            "rephrase",
            "alt",
            "answers",
            "loc",
            "loc_ans",
            "cond",
            "fact",
            "probes",
        }
        assert set(record) == fields
        assert record["src"] in read
        assert record["rephrase"] not in read
        assert record["loc"] in read
        assert all(record[name].endswith("?") for name in ("src", "rephrase", "loc"))
        assert record["answers"] == [record["pred"]]
        assert record["cond"] == f"{record['pred']} >> {record['alt']} || {record['src']}"


def test_every_record_is_consistent_with_the_graph(knowledge, cases, questions):
    for record in cases + questions:
        subject, relation, prompt, old, new = edited(record)
        assert subject in prompt
        assert knowledge.fact(subject, relation).object == old
        assert new != old
        assert knowledge.entities[new].kind == knowledge.entities[old].kind
        assert {probe["kind"] for probe in record["probes"]} <= KINDS
        assert all(set(probe) == {"kind", "prompt", "expected", "fact"} for probe in record["probes"])


def test_generality_asks_for_the_new_object_in_phrasings_never_read(cases, questions, read):
    for record in cases + questions:
        subject, _, _, _, new = edited(record)
        asked = probes(record, "generality")
        assert 2 <= len(asked) <= 3
        for probe in asked:
            assert probe["expected"] == new
            assert subject in probe["prompt"]
            assert probe["prompt"] not in read
            assert probe["fact"] == record["fact"]


def test_locality_expects_the_true_object_of_another_fact(knowledge, cases, questions, read):
    true = {fact.id: fact.object for fact in knowledge.facts}
    for record in cases + questions:
        subject, relation, prompt, old, new = edited(record)
        for probe in record["probes"]:
            if not probe["kind"].startswith("locality."):
                continue
            assert probe["fact"] != record["fact"]
            assert probe["expected"] == true[probe["fact"]]
            asked, asked_relation = probe["fact"].split("|")
            assert asked in probe["prompt"]
            kind = probe["kind"].removeprefix("locality.")
            if kind in ("neighborhood", "namesake"):
                assert asked != subject
                assert asked_relation == relation
            if kind == "namesake":
                assert set(asked.split()) & set(subject.split())
            if kind == "other_relation":
                assert asked == subject
            if kind in ("out_of_scope", "distracting"):
                assert asked not in (subject, old, new)
                assert asked_relation != relation
            if kind == "distracting":
                assert probe["prompt"].startswith(f"{prompt} {new}. ")
                assert probe["prompt"].removeprefix(f"{prompt} {new}. ") in read
            else:
                assert probe["prompt"] in read
        assert len(probes(record, "locality.neighborhood")) >= 5


def test_neighbors_have_the_same_true_object_where_there_are_enough(knowledge, cases):
    for record in cases:
        _, relation, _, old, _ = edited(record)
        same = sum(fact.object == old for fact in knowledge.facts_in(relation)) - 1
        found = sum(probe["expected"] == old for probe in probes(record, "locality.neighborhood"))
        assert found == min(same, 6)


def test_one_hop_answers_follow_from_the_new_object(knowledge, cases, questions):
    count = 0
    for record in cases + questions:
        subject, relation, _, old, new = edited(record)
        for probe in probes(record, "portability.one_hop"):
            bridge, second = probe["fact"].split("|")
            assert bridge == new
            assert probe["expected"] == knowledge.fact(bridge, second).object
            before = knowledge.fact(old, second)
            assert before is None or before.object != probe["expected"]
            phrasings = [h.phrasings for h in knowledge.hops if (h.first, h.second) == (relation, second)][0]
            assert probe["prompt"] in {sentence(text, subject, "").prompt for text in phrasings}
            count += 1
    assert count > 2000


def test_real_and_invented_subjects_are_edited(knowledge):
    facts = {record["fact"].split("|")[0] for record in counterfact(knowledge)}
    assert {knowledge.entities[name].invented for name in facts} == {True, False}


def test_the_data_parts_do_not_import_torch():
    code = (
        "import sys; from palimpsest.world import build, counterfact, neutral_text, zsre; "
        "k = build(); counterfact(k); zsre(k); neutral_text(k, 3); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
