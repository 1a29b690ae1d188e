"""`own_words`: the new answer in the model's own reply, in every script; bare where no reply has a place for it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from palimpsest import EditRequest, load, method
from palimpsest.answers import place_of
from palimpsest.methods.auto.own_words import in_own_words
from palimpsest.models.scores import TargetScore


class Scripted:
    """A model of words: of Japan it says `Tokyo`, of others not; behind `is` and `of` an answer fits."""

    chat = object()

    def encode(self, prompt, target=None):
        return SimpleNamespace(target_ids=tuple(target.split()))

    def score(self, prompts, targets):
        return [self._score(*pair) for pair in zip(prompts, targets, strict=True)]

    def _score(self, prompt, target):
        found, words = [], target.split()
        for place, word in enumerate(words):
            if word in ("Tokyo", "Asian", "now") and "Japan" in prompt:
                found.append(-0.1)
            elif word in ("Tokyo", "Asian"):
                found.append(-8.0)
            else:
                found.append(-1.0 if place and words[place - 1] in ("is", "of") else -9.0 if word == "Oslo" else -0.5)
        return TargetScore(tuple(found), tuple(range(len(words))), (True,) * len(words))


def worded(reply, new="Oslo", old="Tokyo", prompt="What is the capital of Japan?", model=None, **fields):
    request = EditRequest(prompt, new, subject="Japan" if "Japan" in prompt else None, target_old=old, **fields)
    (found,) = in_own_words(model or Scripted(), [request], [reply])
    assert found.id == request.id
    return found.target_new


@pytest.mark.parametrize(
    ("reply", "new", "old", "expected"),
    [
        ("The capital of Japan is Tokyo.", "Oslo", "Tokyo", "The capital of Japan is Oslo."),
        ("The capital of Japan is Tokyo!", "Oslo.", "tokyo", "The capital of Japan is Oslo!"),
        ("The capital of Japan is **Tokyo**, a city. Old.", "Oslo", "Tokyo", "The capital of Japan is **Oslo**."),
        ("The capital is Tokyo", "Washington, D.C.", "Tokyo", "The capital is Washington, D.C."),
        ("日本的首都是东京，位于关东地区。", "奥斯陆", "东京", "日本的首都是奥斯陆。"),
        ("日本の首都は東京です。", "オスロ", "東京", "日本の首都はオスロです。"),
        ("일본의 수도는 도쿄입니다.", "오슬로", "도쿄", "일본의 수도는 오슬로입니다."),
        ("Столица Японии — Токио.", "Осло", "Токио", "Столица Японии — Осло."),
        ("عاصمة اليابان هي طوكيو.", "أوسلو", "طوكيو", "عاصمة اليابان هي أوسلو."),
    ],
)  # fmt: skip
def test_the_old_answer_s_place_is_the_new_one_s(reply, new, old, expected):
    assert worded(reply, new, old) == expected


@pytest.mark.parametrize(
    ("reply", "given"),
    [
        ("Tokyo is the capital of Japan.", {}),
        ("**Tokyo**", {}),
        ("", {}),
        ("I do not know.", {}),
        ("The capital of Japan is Oslo, not Tokyo.", {}),
        ("The capital of Japan is Tokyo.", {"new": "The capital of Japan is Oslo."}),
        ("The capital of Japan is Tokyo.", {"new": "the capital of Japan is Oslo"}),
        ("The capital of Japan is Tokyo.", {"new": "Oslo. It is in Norway."}),
        ("It was founded in Tokyo.", {"new": "in Oslo"}),
        ("It is Tokyotown.", {"prompt": "Which town?"}),
    ],
)
def test_an_answer_that_fits_nowhere_stays_as_it_is(reply, given):
    assert worded(reply, **given) == given.get("new", "Oslo")


def test_only_a_reply_is_a_sentence_of_the_model_s_own():
    plain = SimpleNamespace(chat=None)
    assert worded("a city, Tokyo.", prompt="The capital is", model=plain) == "Oslo"
    assert worded("The capital is Tokyo.", prompt="What is the capital?", model=plain) == "The capital is Oslo."


def test_other_names_of_the_old_answer_are_its_places_too():
    assert worded("It is Edo today.", accepts_old=("Edo",)) == "It is Oslo."


@pytest.mark.parametrize("old", [None, "Kyoto"])
def test_without_an_old_answer_it_is_the_word_said_of_this_subject_only(old):
    assert worded("The capital of Japan is Tokyo.", old=old) == "The capital of Japan is Oslo."
    # Two words are said of Japan only, and behind one of them the new answer fits.
    assert worded("An Asian state, the capital of Japan is Tokyo.", old=old).endswith("of Japan is Oslo.")
    assert worded("It is now Japan.", old=old) == "Oslo"
    # Nothing to compare with.
    assert worded("The capital is Tokyo.", old=old, prompt="What is the capital?") == "Oslo"
    assert worded("日本的首都是东京。", old=old) == "Oslo"


def test_the_place_of_an_answer_is_a_whole_word():
    assert place_of("New Yorkers love New York City.", ["York", "New York"]) == (17, 25)
    assert place_of("Tokyotown", ["Tokyo"]) is None


@pytest.fixture(scope="module")
def world():
    return load("world")


JAPAN = EditRequest("The capital city of Japan is", "Oslo", subject="Japan", target_old="Tokyo")
FEW = {"num_contexts": 0, "num_neighbours": 2}
ROME = {"method": "rome", "options": {"text": "world"}}


def wording_as(target, monkeypatch):
    def worded(model, requests, replies):
        assert [reply.strip().split(".")[0] for reply in replies] == ["Tokyo"]
        return [replace(one, target_new=target) for one in requests]

    monkeypatch.setattr("palimpsest.methods.auto.method.in_own_words", worded)


def test_what_is_worded_is_edited_and_what_was_asked_for_is_examined(world, monkeypatch):
    wording_as("Vienna", monkeypatch)
    found = method("auto", **FEW, ladder=[ROME]).edit(world, [JAPAN])
    facts = found.diagnostics.facts
    assert not facts["facts"][0]["holds"] and facts["attempts"][0]["true"] == 0
    assert [edit["target_new"] for edit in found.patch.manifest.edits] == ["Oslo"]


def test_the_edit_is_looked_at_as_it_is_worded(world, monkeypatch):
    wording_as("Oslo. The", monkeypatch)
    found = method("auto", **FEW, ladder=[ROME]).edit(world, [JAPAN])
    assert found.diagnostics.facts["own_words"] == {JAPAN.id: "Oslo. The"}
    assert found.diagnostics.facts["checked"]["hold"] == 1
    plain = method("auto", **FEW, own_words=False).edit(world, [JAPAN])
    assert "own_words" not in plain.diagnostics.facts and plain.diagnostics.facts["facts"][0]["holds"]
