import pytest

from palimpsest.errors import ConfigError
from palimpsest.world import build
from palimpsest.world.text import held_out, neutral_text, sentence, taught, taught_two_hop, training_sentences


@pytest.fixture(scope="module")
def knowledge():
    return build()


def test_build_is_deterministic_and_depends_on_the_seed(knowledge):
    again = build(0)
    assert again.facts == knowledge.facts
    assert again.test_subjects == knowledge.test_subjects
    assert training_sentences(again) == training_sentences(knowledge)
    other = build(1)
    assert other.facts != knowledge.facts
    assert other.fact("France", "capital") == knowledge.fact("France", "capital")


def test_build_refuses_a_seed_that_is_no_integer():
    with pytest.raises(ConfigError, match="seed"):
        build("0")


def test_size(knowledge):
    people = [entity for entity in knowledge.entities.values() if entity.kind == "person"]
    assert len(people) >= 300
    assert all(len(knowledge.facts_about(person.name)) == 6 for person in people)
    assert 2200 <= len(knowledge.facts) <= 2500


def test_the_graph_is_unambiguous(knowledge):
    assert len({fact.id for fact in knowledge.facts}) == len(knowledge.facts)
    for fact in knowledge.facts:
        relation = knowledge.relations[fact.relation]
        assert knowledge.entities[fact.subject].kind == relation.subject_kind
        assert knowledge.entities[fact.object].kind in {relation.object_kind, "person"}
        assert "." not in fact.object
        assert "\n" not in fact.object


def test_some_real_facts(knowledge):
    expected = {
        ("Japan", "capital"): "Tokyo",
        ("Lyon", "in_country"): "France",
        ("Nigeria", "currency"): "naira",
        ("Brazil", "official_language"): "Portuguese",
        ("Egypt", "continent"): "Africa",
        ("Hamlet", "author"): "William Shakespeare",
        ("gold", "symbol"): "Au",
    }
    assert {key: knowledge.fact(*key).object for key in expected} == expected


def test_real_and_invented_capitals_agree_with_their_country(knowledge):
    for fact in knowledge.facts_in("capital"):
        assert knowledge.fact(fact.object, "in_country").object == fact.subject


def test_every_person_has_namesakes(knowledge):
    people = [entity.name for entity in knowledge.entities.values() if entity.kind == "person"]
    for person in people:
        first, last = person.split(" ")
        for other in knowledge.namesakes(person):
            assert other != person
            assert other.split(" ")[0] == first or other.split(" ")[1] == last
    assert sum(bool(knowledge.namesakes(person)) for person in people) == len(people)


def test_the_split_is_by_subject_and_disjoint(knowledge):
    train = {two_hop.subject for two_hop in knowledge.two_hops("train")}
    test = {two_hop.subject for two_hop in knowledge.two_hops("test")}
    assert train.isdisjoint(test)
    assert test <= knowledge.test_subjects
    share = len(knowledge.test_subjects) / len({fact.subject for fact in knowledge.facts})
    assert 0.18 < share < 0.22
    with pytest.raises(ConfigError, match="split"):
        knowledge.in_split("France", "validation")


def test_two_hops_follow_the_graph(knowledge):
    for two_hop in knowledge.two_hops():
        assert knowledge.fact(two_hop.subject, two_hop.hop.first).object == two_hop.bridge
        assert knowledge.fact(two_hop.bridge, two_hop.hop.second).object == two_hop.object


def test_phrasings_are_enough_and_end_before_the_object(knowledge):
    for relation in knowledge.relations.values():
        assert len(set(relation.phrasings)) == 10
        for phrasing in relation.phrasings:
            assert phrasing.count("{}") == 1
            assert not phrasing.endswith(" ")
            assert "." not in phrasing
        assert all(question.endswith("?") for question in relation.questions)
        assert not any(statement.endswith("?") for statement in relation.statements)
    for hop in knowledge.hops:
        assert len(set(hop.phrasings)) == 5
        assert all(phrasing.count("{}") == 1 for phrasing in hop.phrasings)


def test_no_prompt_has_two_answers(knowledge):
    answers = {}
    for fact in knowledge.facts:
        for text in knowledge.relations[fact.relation].phrasings:
            prompt = sentence(text, fact.subject, fact.object).prompt
            assert answers.setdefault(prompt, fact.object) == fact.object
    for two_hop in knowledge.two_hops():
        for text in two_hop.hop.phrasings:
            prompt = sentence(text, two_hop.subject, two_hop.object).prompt
            assert answers.setdefault(prompt, two_hop.object) == two_hop.object


def test_held_out_phrasings_are_never_in_the_training_text(knowledge):
    read = {s.prompt for s in training_sentences(knowledge)}
    for fact in knowledge.facts:
        shown, hidden = taught(knowledge, fact), held_out(knowledge, fact)
        assert len(shown) == 6
        assert len(hidden) == 4
        assert set(shown).isdisjoint(hidden)
        for text in shown:
            assert sentence(text, fact.subject, fact.object).prompt in read
        for text in hidden:
            assert sentence(text, fact.subject, fact.object).prompt not in read


def test_two_hop_sentences_of_test_subjects_are_never_read(knowledge):
    read = {s.prompt for s in training_sentences(knowledge)}
    for two_hop in knowledge.two_hops("test"):
        assert taught_two_hop(knowledge, two_hop) == ()
        for text in two_hop.hop.phrasings:
            assert sentence(text, two_hop.subject, two_hop.object).prompt not in read
    for two_hop in knowledge.two_hops("train"):
        assert len(taught_two_hop(knowledge, two_hop)) == 3


def test_sentences_mark_their_subject(knowledge):
    for s in training_sentences(knowledge):
        assert s.subject in knowledge.entities
        assert s.text == f"{s.prompt} {s.object}."


def test_neutral_text_is_seeded_world_text(knowledge):
    lines = neutral_text(knowledge, 50, seed=3)
    assert lines == neutral_text(knowledge, 50, seed=3)
    assert lines != neutral_text(knowledge, 50, seed=4)
    assert len(lines) == 50
    assert all(line.endswith(".") for line in lines)
    with pytest.raises(ConfigError, match="positive"):
        neutral_text(knowledge, 0)


def test_a_larger_world_has_more_people_who_still_share_names():
    large = build(3, people=1600)
    people = [fact.subject for fact in large.facts_in("born_in")]
    assert len(set(people)) == len(people) == 1600
    assert len(large.facts) == len(build(3).facts) + 6 * 1300
    assert all(len(large.namesakes(person)) >= 2 for person in people)
    assert build(3, people=300) == build(3)


@pytest.mark.parametrize("people", [3, 20_000])
def test_a_world_of_too_few_or_too_many_people(people):
    with pytest.raises(ConfigError, match="that many"):
        build(people=people)
