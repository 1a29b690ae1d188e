from unicodedata import normalize

import pytest

from palimpsest import ConfigError, DataError, EditRequest, Probe
from palimpsest.batches import check_requests, without_duplicates
from palimpsest.requests import PROBE_KINDS


def test_answers_and_prompts_are_stripped_and_the_id_follows_the_content():
    request = EditRequest("The capital of France is ", " Lyon ", subject="France", target_old="Paris")
    assert (request.prompt, request.target_new) == ("The capital of France is", "Lyon")
    assert request.id == EditRequest("The capital of France is", "Lyon", "France", "Paris").id
    assert request.id != EditRequest("The capital of France is", "Nice", "France", "Paris").id


def test_the_subject_span_is_the_last_occurrence():
    request = EditRequest("Rome is old. The river of Rome is the", "Po", subject="Rome")
    start, end = request.subject_span()
    assert (start, request.prompt[start:end]) == (26, "Rome")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_new": "  "}, ["target_new", "blank"]),
        ({"prompt": ""}, ["prompt", "blank"]),
        ({"subject": "Spain"}, ["subject", "Spain", "The capital of France is"]),
        ({"target_old": "Lyon"}, ["equals the old one", "Lyon"]),
        ({"target_new": None}, ["target_new", "not text"]),
    ],
)
def test_unusable_fields_are_named(changes, words):
    fields = {"prompt": "The capital of France is", "target_new": "Lyon", "subject": "France", **changes}
    with pytest.raises(DataError) as caught:
        EditRequest(**fields)
    assert all(word in str(caught.value) for word in words)


def test_an_unknown_probe_kind_gets_near_matches():
    with pytest.raises(ConfigError, match="locality.neighborhood"):
        Probe("locality.neighbourhood", "x", "y")
    assert len(PROBE_KINDS) == 14


def test_only_locality_may_leave_out_what_is_expected():
    assert Probe("locality.out_of_scope", "Who?").expected is None
    with pytest.raises(DataError, match="expected answer"):
        Probe("generality", "Who?")


def test_other_names_of_an_answer_are_folded_and_checked():
    probe = Probe("portability.one_hop", "Who?", "Ann Lee", accepts=["ann  lee", " A. Lee ", "a. lee", "Lee"])
    assert probe.accepts == ("A. Lee", "Lee")
    assert probe.answers == ("Ann Lee", "A. Lee", "Lee")
    assert Probe("locality.out_of_scope", "Who?").answers == ()
    with pytest.raises(DataError, match="accepts"):
        Probe("generality", "Who?", "Ann", accepts=[" "])


def test_requests_survive_json():
    probes = (
        Probe("generality", "What is A?", "b", "A|is"),
        Probe("portability.inverse", "B is", "a", accepts=("aa",)),
    )
    request = EditRequest("A is", "b", subject="A", target_old="c", probes=probes, fact="A|is")
    assert "accepts" not in request.to_dict()["probes"][0]
    assert EditRequest.from_dict(request.to_dict()) == request


def test_contradictions_are_refused_and_repetitions_merged():
    first, second = EditRequest("A is", "b"), EditRequest("a  IS", "c")
    with pytest.raises(DataError, match="contradict"):
        check_requests([first, second], needs_subject=False, needs_old_answer=False)
    again = EditRequest("A is", "b", id="other")
    assert without_duplicates([first, again, second]) == [first, second]


def test_what_is_needed_is_asked_for():
    with pytest.raises(DataError, match="no subject"):
        check_requests([EditRequest("A is", "b")], needs_subject=True, needs_old_answer=False)
    with pytest.raises(DataError, match="no old answer"):
        check_requests([EditRequest("A is", "b")], needs_subject=False, needs_old_answer=True)


def test_answers_that_differ_in_case_only_can_be_edited():
    request = EditRequest("The company is called", "OpenAI", target_old="openai")
    assert (request.target_new, request.target_old) == ("OpenAI", "openai")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("Caf\u00e9", "Cafe\u0301", ["U+00E9 LATIN SMALL LETTER E WITH ACUTE", "U+0065"]),
        ("Oslo", "Os\u200blo", ["U+200B ZERO WIDTH SPACE", "character 3", r"'Os\u200blo'"]),
        ("Oslo", "Os\u00adlo", ["U+00AD SOFT HYPHEN"]),
        ("New York", "New\u00a0York", ["U+00A0 NO-BREAK SPACE"]),
        ("\u0130zmir", "I\u0307zmir", ["U+0130", "U+0049"]),
    ],
)
def test_answers_that_look_the_same_are_told_apart_by_their_code_points(old, new, named):
    with pytest.raises(DataError, match="nothing to edit") as caught:
        EditRequest("A is", new, target_old=old)
    assert all(text in str(caught.value) for text in named)


@pytest.mark.parametrize(
    ("prompt", "subject", "spelled", "span"),
    [
        ("Zoe\u0308 was born in", "Zo\u00eb", "Zoe\u0308", (0, 4)),
        ("Where was Zo\u00eb born?", "Zoe\u0308", "Zo\u00eb", (10, 13)),
        (
            normalize("NFD", "대한민국의 수도는"),
            "대한민국",
            normalize("NFD", "대한민국"),
            (0, 11),
        ),
        ("the capital of japan is", "Japan", "japan", (15, 20)),
        ("The capital of ＪＡＰＡＮ is", "JAPAN", "ＪＡＰＡＮ", (15, 20)),
        ("The capital of Côte d’Ivoire is", "Côte d'Ivoire", "Côte d’Ivoire", (15, 28)),
        ("Who rules New\u00a0York now", "New York", "New\u00a0York", (10, 18)),
        ("Straße und STRASSE von", "straße", "STRASSE", (11, 18)),
        ("Jean–Luc was born in", "Jean-Luc", "Jean–Luc", (0, 8)),
    ],
)
def test_the_subject_is_found_however_it_is_spelled_and_named_as_the_prompt_does(prompt, subject, spelled, span):
    request = EditRequest(prompt, "x", subject=subject)
    assert (request.subject, request.subject_span()) == (spelled, span)
    assert request.prompt == prompt


@pytest.mark.parametrize(
    ("prompt", "subject", "words"),
    [
        ("The capital of Ja\u200bpan is", "Japan", ["invisible", r"Ja\u200bpan", "U+200B ZERO WIDTH SPACE", "prompt"]),
        ("The capital of Japan is", "Ja\u00adpan", ["invisible", r"Ja\xadpan", "U+00AD SOFT HYPHEN", "subject"]),
        ("The capital of Japan is", "\ufeffJapan", ["invisible", "U+FEFF", "at the start in the subject"]),
        ("Who is \u0410nna?", "Anna", ["does not occur", "closest", "U+0410 CYRILLIC CAPITAL LETTER A", "U+0041"]),
        ("The capital of Germany is", "Germny", ["does not occur", "closest in it is 'Germany'"]),
        ("Die Hauptstadt von Café", "Cafe", ["does not occur", "'Café'", "U+0065", "U+00E9"]),
        ("Floridas capital", "ida", []),
    ],
)
def test_a_subject_that_is_not_there_is_shown_with_what_cannot_be_seen(prompt, subject, words):
    if not words:
        assert EditRequest(prompt, "x", subject=subject).subject_span() == (4, 7)
        return
    with pytest.raises(DataError) as caught:
        EditRequest(prompt, "x", subject=subject)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_half_a_word_in_another_case_is_not_the_subject():
    with pytest.raises(DataError, match="does not occur"):
        EditRequest("The capital of Florida is", "x", subject="Ida")


@pytest.mark.parametrize("placeholder", ["{}", "{ }", "{subject}", "{Subject}", "{0}"])
def test_a_template_is_filled_with_its_subject_in_prompt_and_probes(placeholder):
    probe = Probe("generality", f"Which city is {placeholder}'s capital?", "Oslo")
    request = EditRequest(f"The capital of {placeholder} is", "Oslo", subject="Japan", probes=(probe,))
    assert (request.prompt, request.subject_span()) == ("The capital of Japan is", (15, 20))
    assert request.probes[0].prompt == "Which city is Japan's capital?"
    assert EditRequest.from_dict(request.to_dict()) == request


def test_braces_beside_a_subject_that_is_there_are_the_prompts_own():
    request = EditRequest("In Python the type of {} is", "dict", subject="Python")
    assert request.prompt == "In Python the type of {} is"
    check_requests([request], needs_subject=False, needs_old_answer=False)


@pytest.mark.parametrize("placeholder", ["{}", "{ subject }", "{0}"])
def test_a_template_without_a_subject_is_refused_before_anything_is_computed(placeholder):
    request = EditRequest(f"The capital of {placeholder} is", "Oslo")
    with pytest.raises(DataError, match="no subject") as found:
        check_requests([request], needs_subject=False, needs_old_answer=False)
    assert placeholder in found.value.expected and "--subject" in found.value.remedy


def test_the_subject_is_a_whole_word_where_it_can_be():
    request = EditRequest("In Japan the Japanese capital is", "x", subject="Japan")
    assert request.subject_span() == (3, 8)
    assert EditRequest("The Japanese capital is", "x", subject="Japan").subject_span() == (4, 9)


def test_two_edits_under_one_id_are_refused():
    with pytest.raises(DataError, match="one id"):
        check_requests(
            [EditRequest("A is", "b", id="1"), EditRequest("B is", "b", id="1")],
            needs_subject=False,
            needs_old_answer=False,
        )
