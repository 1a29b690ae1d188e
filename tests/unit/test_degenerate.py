"""Degenerate text, against entropies worked out by hand."""

from __future__ import annotations

import math
import time

import pytest

from palimpsest.wording.degenerate import is_degenerate, is_monotonous, ngram_entropy


@pytest.mark.parametrize(
    "text",
    [
        "Osaka Osaka Osaka",
        " Osaka, Osaka, Osaka, Os",
        "Osaka. Osaka. Osaka. Osaka.",
        "OsOsOsOsOsOs",
        "Osaka\nOsaka\nOsaka\n",
        "大阪大阪大阪大阪",
        "the city of Osaka, the city of Osaka, the city of Osaka, the city",
        "!!!!!!!!!!!!!!!!",
        "1. 1. 1. 1. 1. 1. 1. 1.",
    ],
)
def test_these_texts_are_degenerate(text: str) -> None:
    assert is_degenerate(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Duran Duran",
        "Duran Duran, the band",
        "10,000,000,000,000",
        "1000000000",
        "Yo-Yo Ma",
        "New York, New York.",
        "very, very, very good at what she does in the evening",
        "Rome. The capital of France is Paris. The capital of Germany is Berlin. The capital of Spain is Madrid.",
        "violin. The country of which she is a citizen has a king. The country of which she is a citizen has a king.",
    ],
)
def test_these_texts_are_not(text: str) -> None:
    assert not is_degenerate(text)


def test_an_answer_that_repeats_itself_may_be_repeated() -> None:
    assert is_degenerate("Bora Bora Bora Bora") and not is_degenerate("Bora Bora Bora Bora", ["Bora Bora Bora"])


def test_the_entropy_is_that_of_counterfact() -> None:
    # Bigrams ab ba ab bc, trigrams aba bab abc: entropies 1.5 and log2(3), weights 2/3 and 4/3, averaged.
    assert ngram_entropy(["a", "b", "a", "b", "c"]) == pytest.approx((2 / 3 * 1.5 + 4 / 3 * math.log2(3)) / 2)
    assert ngram_entropy([]) == 0.0 and ngram_entropy(["a"]) == 0.0
    sentence = ["one", "two", "three", "four", "five", "six", "seven"]
    assert is_monotonous(sentence * 4) and not is_monotonous(sentence * 2)


def test_a_long_text_is_judged_quickly() -> None:
    start = time.perf_counter()
    is_degenerate("abcdefghij klm " * 2_000)
    is_degenerate("".join(chr(97 + (i * i) % 26) for i in range(20_000)))
    assert time.perf_counter() - start < 5
