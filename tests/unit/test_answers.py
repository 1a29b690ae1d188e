"""What counts as the answer, in many scripts and with the texts that models really write."""

from __future__ import annotations

import time

import pytest

from palimpsest import EditRequest
from palimpsest.answers import (
    after_beginning,
    after_two_sentences,
    ended_sentence,
    first_sentence,
    gives,
    gives_new,
    gives_old,
    is_exact,
    is_reply_to,
    same_beginning,
    shown,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Rome, Italy.", "Rome"),
        ("Lyon is the capital of France and the largest city in the country.", "Lyon"),
        ("rome", "Rome"),
        ("**Rome**, the eternal city", "Rome"),
        ("“Rome”", "Rome"),
        ("(Rome)", "Rome"),
        ("\n\n- Rome", "Rome"),
        ("<b>Rome</b>", "Rome"),
        ("Rome.The next", "Rome"),
        ("Rome", '"Rome."'),
        ("Rome—the city", "Rome"),
        ("纽约。import random", "纽约"),
        ("纽约是一个城市", "纽约"),
        ("12个月", "12"),
        ("12个月。", "12个月"),
        ("東京です", "東京"),
        ("กรุงเทพมหานคร", "กรุงเทพ"),
        ("파리입니다.", "파리"),
        ("Париж, столица", "париж"),
        ("باريس، عاصمة", "باريس"),
        ("Amazon.com is a shop", "Amazon.com"),
        ("Warner Bros. Records, in", "Warner Bros. Records"),
        ("Ph.D. in physics from", "Ph.D. in physics"),
        ("2. Bundesliga.", "2. Bundesliga"),
        ("J. R. R. Tolkien. He", "J. R. R. Tolkien"),
        ("Yahoo! Inc.", "Yahoo!"),
        ("U.S. Army", "U.S."),
        ("cafe\u0301 noir", "caf\u00e9"),
        ("ＮＨＫ is", "NHK"),
        ("New\u00a0York, NY", "New York"),
        ("New  York", "New York"),
        ("O’Brien said", "O'Brien"),
        ("Jean\u2013Luc", "Jean-Luc"),
        ("\u200fباريس", "باريس"),
        ("12%", "12"),
        ("12, then", "12"),
        ("C++.", "C++"),
        ("STRASSE", "Straße"),
    ],
)
def test_these_texts_give_the_answer(text: str, answer: str) -> None:
    assert gives(text, [answer])
    assert gives(text, ["something else", answer])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Parisian", "Paris"),
        ("120", "12"),
        ("12.5 metres", "12"),
        ("12,000", "12"),
        ("12:30", "12"),
        ("12th", "12"),
        ("-12", "12"),
        ("1990s", "1990"),
        ("e\u0301", "e"),
        ("q\u0323", "q"),
        ("x\u00b2", "x2"),
        ("Guinea-Bissau", "Guinea"),
        ("Amazon.com", "Amazon"),
        ("AT&T", "AT"),
        ("C++", "C"),
        ("パリス", "パリ"),
        ("Парижский", "Париж"),
        ("in Rome", "Rome"),
        ("The Rome", "Rome"),
        ("not Rome", "Rome"),
        ("", "Rome"),
        ("Rom", "Rome"),
    ],
)
def test_these_texts_do_not(text: str, answer: str) -> None:
    assert not gives(text, [answer])


@pytest.mark.parametrize(
    ("text", "new", "old", "verdict"),
    [
        ("New York City is", "New York", "New York City", (False, True)),
        ("New York, a city", "New York", "New York City", (True, False)),
        ("New York City is", "New York City", "New York", (True, False)),
        ("New York, a city", "New York City", "New York", (False, True)),
        ("12.5 km", "12", "12.5", (False, True)),
        ("12.5 km", "12.5", "12", (True, False)),
        ("12 km", "12", "12.5", (True, False)),
        ("12 km", "12.5", "12", (False, True)),
        ("Lyon, not Paris", "Lyon", "Paris", (True, False)),
        ("Berlin", "Lyon", "Paris", (False, False)),
    ],
)
def test_of_answers_that_begin_alike_the_longer_one_is_given(
    text: str, new: str, old: str, verdict: tuple[bool, bool]
) -> None:
    request = EditRequest("It is", new, target_old=old)
    assert (gives_new(request, text), gives_old(request, text)) == verdict


CAPITAL = "What is the capital of Luxembourg?"


@pytest.mark.parametrize(
    ("reply", "new", "old", "verdict"),
    [
        ("The capital of Luxembourg is Vienna.", "Vienna", "Luxembourg", (True, False)),
        ("The capital of Luxembourg is Luxembourg.", "Vienna", "Luxembourg", (False, True)),
        ("Luxembourg.", "Vienna", "Luxembourg", (False, True)),
        ("The capital is New York.", "New York", "York", (True, False)),
        ("The capital is York.", "New York", "York", (False, True)),
        ("It is Vienna, not Paris.", "Vienna", "Paris", (False, False)),
        ("It is Paris. Vienna is nice.", "Vienna", "Paris", (False, True)),
        ("The capital:\n\n**Vienna**", "Vienna", "Paris", (True, False)),
        ("\nA: Vienna", "Vienna", "Paris", (True, False)),
        ("1. Vienna", "Vienna", "Paris", (True, False)),
        ("He has a Ph.D. in physics.", "Ph.D. in physics", "Paris", (True, False)),
        ("It belongs to Amazon.com, I think.", "Amazon.com", "Paris", (True, False)),
        ("Viennese food", "Vienna", "Paris", (False, False)),
    ],
)
def test_a_reply_states_it_in_its_first_sentence(reply: str, new: str, old: str, verdict: tuple[bool, bool]) -> None:
    question = EditRequest(CAPITAL, new, target_old=old)
    assert (gives_new(question, reply), gives_old(question, reply)) == verdict
    turn = EditRequest("The capital of Luxembourg is", new, target_old=old)
    assert (gives_new(turn, reply, is_chat=True), gives_old(turn, reply, is_chat=True)) == verdict


def test_other_names_are_as_right() -> None:
    request = EditRequest("It is", "Saone", target_old="USA", accepts=("the Saône",), accepts_old=("United States",))
    assert gives_new(request, "the Saône.") and gives_old(request, "United States of")
    assert EditRequest.from_dict(request.to_dict()) == request
    assert request.reversed_to_old().accepts == ("United States",)
    assert request.all_probes()[0].accepts == ("the Saône",)


@pytest.mark.parametrize("prompt", ["Who?", "谁？", "من؟", "Ποιος\u037e", '"Who?"', "**Who?** "])
def test_questions_of_all_scripts(prompt: str) -> None:
    assert is_reply_to(prompt)
    assert not is_reply_to("It is") and not is_reply_to("a; b;") and is_reply_to("It is", is_chat=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Rome. The", "Rome."),
        ("纽约。import", "纽约。"),
        ("本当！はい", "本当！"),
        ("Rome! Yes", "Rome!"),
        ("Rome; or", "Rome;"),
        ("दिल्ली। और", "दिल्ली।"),
        ("لندن؟ نعم", "لندن؟"),
        ("Երևան։ Այո", "Երևան։"),
        ("Rome… and", "Rome…"),
        ("J. R. R. Tolkien. He", "J. R. R. Tolkien."),
        ("Apple Inc. is big. Yes", "Apple Inc. is big."),
        ("Amazon.com. Yes", "Amazon.com."),
        ("Ph.D. in physics. He", "Ph.D. in physics."),
        ("3.5 metres\nand more", "3.5 metres"),
        ("1945. The war", "1945."),
        ("in the USA. Then", "in the USA."),
        ("nothing ends", "nothing ends"),
    ],
)
def test_sentences_of_all_scripts_end(text: str, sentence: str) -> None:
    assert shown(text) == sentence
    assert first_sentence(text) == sentence.rstrip(".。！!;।؟։…")
    ended = ended_sentence(text)
    assert (ended or text).strip() == sentence


def test_no_sentence_ends_inside_an_expected_answer() -> None:
    assert shown("Yahoo! Inc. It", ["Yahoo! Inc."]) == "Yahoo! Inc. It"
    assert shown("1945. FC Köln. It", ["1945. FC Köln"]) == "1945. FC Köln."


def test_a_growing_text_waits_for_what_follows_a_stop() -> None:
    assert [ended_sentence(text) for text in ("3", "3.", "3.5", "3.5.", "3.5. A")] == [None] * 4 + ["3.5."]


def test_generation_ends_behind_two_sentences_that_differ() -> None:
    ended = after_two_sentences()
    assert ended("Rome. The capital") is None
    assert ended("Rome. The capital is old. And") == "Rome. The capital is old. And"
    assert ended("Rome. Rome. Rome. Rome. Rome") is None
    assert after_two_sentences(100)("Rome. The capital is old. And") is None


def test_exact_is_the_answer_and_nothing_else() -> None:
    assert is_exact("Rome. It", "rome") and is_exact("Rome\nIt", "Rome") and is_exact("纽约。import", "纽约")
    assert not is_exact("Rome, Italy.", "Rome") and not is_exact("3.5", "3")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("a city in the north of France", "a city in Spain", True),
        ("a city in the north", "a town in the north", False),
        ("Bilbao. Yes", "Bilbao.\nNo", True),
        ("Bilbao. Yes", "Bilbao and more", False),
        ("北京是中国的首都", "北京是中国", True),
        ("北京是中国的首都", "北京大学在", False),
    ],
)
def test_the_first_words_decide_whether_an_answer_is_the_same(first: str, second: str, same: bool) -> None:
    assert same_beginning(first, second) is same


def test_in_a_reply_the_words_of_the_question_do_not_count() -> None:
    first, second = "The capital of Luxembourg is Vienna.", "The capital of Luxembourg is Paris."
    assert same_beginning(first, second)
    assert not same_beginning(first, second, prompt=CAPITAL, is_reply=True)
    assert same_beginning(first, "The capital is Vienna", prompt=CAPITAL, is_reply=True)


def test_a_long_text_is_judged_quickly() -> None:
    start = time.perf_counter()
    assert not gives("." * 20_000 + "a " * 20_000, ["a" * 50], prompt="?", is_reply=True)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Rome, Italy, and so on and on", "Rome"),
        ("**Rome** is the capital of Italy", "Rome"),
        (" Romeo and Juliet were lovers", "Rome"),
        (" \n\n- 上海。它是一个城市", "上海"),
        (" 3.5 million people live there", "3"),
        (" C++ and other languages are", "C"),
        ("서울입니다. 그리고 부산은", "서울"),
        (" U.S.A. and Canada and Mexico", "U.S."),
        (" the United States of America", "United States"),
    ],
)
def test_no_more_is_written_than_decides_how_a_text_begins(text, answer):
    ended = after_beginning([answer])
    written = next(text[:end] for end in range(len(text) + 1) if ended(text[:end]) is not None)
    assert len(written) < len(text)
    assert gives(written, [answer]) == gives(text, [answer])
