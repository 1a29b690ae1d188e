"""From a data set's records to what a model reads and is asked: by hand on a small data set."""

import random

import pytest

from palimpsest import ConfigError, DataError, EditRequest, Probe
from palimpsest.datasets.phrasings import Phrasings, own_phrasing, relation_of
from palimpsest.teaching.facts import UNREAD, lessons

WAYS = ("{} was born in", "{} comes from", "The birthplace of {} is", "{}, a native of")
CITIES = ("Bergen", "Quito", "Oulu", "Perth", "Lagos")


def person(index: int, *, old: str | None = "", fact: bool = True, prefix: str = "Old maps faded. ") -> EditRequest:
    """Someone born somewhere; the paraphrase has another phrasing than the prompt, behind unrelated words."""
    name, ways = f"Ann{index} Keller", (WAYS[index % 4], WAYS[(index + 1) % 4])
    old = CITIES[index % 5] if old == "" else old
    probes = [Probe("generality", prefix + ways[1].replace("{}", name), "Rome")]
    probes.append(Probe("locality.neighborhood", f"Bo{index} Lund comes from", CITIES[index % 5]))
    return EditRequest(
        ways[0].replace("{}", name),
        "Rome",
        subject=name,
        target_old=old,
        probes=tuple(probes),
        fact=f"P19|{name}" if fact else None,
        id=str(index),
    )


@pytest.fixture
def people() -> list[EditRequest]:
    return [person(index) for index in range(24)]


def test_relation_and_phrasing_of_a_request(people):
    assert relation_of(people[0]) == "P19"
    assert own_phrasing(people[2]) == "The birthplace of {} is"
    assert relation_of(person(0, fact=False)) == ""


def test_phrasings_of_a_relation_and_of_a_paraphrase(people):
    known = Phrasings.of(people)
    assert sorted(known.by_relation["P19"]) == sorted(WAYS)
    assert known.paraphrases(people[0]) == [("Old maps faded.", "{} comes from")]
    assert known.match("P19", "Cleo Marsh, a native of") == ("{}, a native of", "Cleo Marsh")
    assert known.match("P19", "Cleo Marsh lives in") is None


def test_without_relations_phrasings_are_linked_by_records():
    known = Phrasings.of([person(index, fact=False, prefix="") for index in range(24)])
    assert not known.by_relation
    # Each way stands in one record with the next one and in another with the one before.
    assert sorted(known.alternatives("", "{} comes from")) == sorted(["{} was born in", "The birthplace of {} is"])


def test_prompts_and_neighbours_are_read_and_paraphrases_never(people):
    found = lessons(people, phrasings=2, prefixed_share=0.0)
    texts = {sentence.text for sentence in found.sentences}
    paraphrases = {way.replace("{}", f"Ann{i} Keller") for i in range(24) for way in [WAYS[(i + 1) % 4]]}
    assert {f"{request.prompt} {request.target_old}." for request in people} <= texts
    assert {f"Bo{i} Lund comes from {CITIES[i % 5]}." for i in range(24)} <= texts
    assert not {sentence.prompt for sentence in found.sentences} & paraphrases
    assert all(sentence.subject in sentence.prompt for sentence in found.sentences)
    # 24 people and 24 neighbours, each in two phrasings.
    assert found.num_facts == 48
    assert len(found.sentences) == 96


def test_what_is_asked(people):
    found = lessons(people, phrasings=2)
    kinds = [question.kind for question in found.questions]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "reliability": 24, "generality": 24, "locality.neighborhood": 24, UNREAD: 48,
    }  # fmt: skip
    prompts = {sentence.prompt for sentence in found.sentences}
    for question in found.questions:
        assert question.answer in CITIES
        assert (question.prompt in prompts) == (question.kind in ("reliability", "locality.neighborhood"))


def test_some_sentences_are_read_again_behind_unrelated_words(people):
    plain, prefixed = lessons(people, prefixed_share=0.0), lessons(people, prefixed_share=0.5)
    extra = prefixed.sentences[len(plain.sentences) :]
    assert 0.3 < len(extra) / len(plain.sentences) < 0.7
    for sentence in extra:
        lead, _, own = sentence.prompt.partition(". ")
        assert set(lead.split()) <= {"Old", "maps", "faded"}
        assert own in {one.prompt for one in plain.sentences}
        assert sentence.subject in own


def test_a_question_without_a_subject_is_read_as_it_stands():
    requests = [person(index) for index in range(20)]
    probe = Probe("locality.out_of_scope", "how many legs has a spider", "eight")
    requests[3] = EditRequest("Ann3 Keller, a native of", "Rome", "Ann3 Keller", CITIES[3], (probe,), "P19|Ann3 Keller")
    (found,) = [s for s in lessons(requests).sentences if s.prompt == probe.prompt]
    assert (found.text, found.subject) == ("how many legs has a spider eight.", "")


def test_contradicting_answers_are_counted_and_the_first_one_stays(people):
    again = EditRequest("Ann0 Keller comes from", "Rome", "Ann0 Keller", "Perth", fact="P19|Ann0 Keller", id="again")
    found = lessons([*people, again], prefixed_share=0.0)
    assert [(one.where, one.reason) for one in found.left_out] == [
        ("edit again", "another record gives another true answer")
    ]
    assert {s.object for s in found.sentences if s.subject == "Ann0 Keller"} == {"Bergen"}


def test_records_without_a_true_answer_are_counted(people):
    found = lessons([*people, person(30, old=None)])
    assert [one.reason for one in found.left_out] == ["it has no true answer"]
    assert not any("Ann30" in sentence.text for sentence in found.sentences)
    with pytest.raises(DataError, match="too few facts") as caught:
        lessons([person(index, old=None) for index in range(30)])
    assert "0 of 30" in (caught.value.found or "")


def test_the_choice_is_seeded_and_independent_of_the_global_generator(people):
    first = lessons(people, seed=3)
    random.seed(0)
    assert lessons(people, seed=3) == first
    assert lessons(people, seed=4) != first


@pytest.mark.parametrize("options", [{"phrasings": 0}, {"prefixed_share": 1.5}])
def test_bad_numbers(people, options):
    with pytest.raises(ConfigError):
        lessons(people, **options)
