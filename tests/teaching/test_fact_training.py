"""A tiny model is taught a handful of facts; its folder, card and ceiling say what happened."""

import json

import pytest

import palimpsest as ps
from palimpsest.teaching.ceiling import ceiling
from palimpsest.teaching.decoder import DecoderRecipe
from palimpsest.teaching.fact_training import fact_recipe, train_on_facts
from palimpsest.teaching.facts import FactQuestion

CITIES = ("Bergen", "Quito", "Oulu", "Perth")
NAMES = tuple(
    f"{first} {last}"
    for first in ("Ada", "Bo", "Cleo", "Dan", "Eva", "Finn")
    for last in ("Lund", "Marsh", "Stone", "West")
)
TINY = DecoderRecipe(width=32, layers=2, heads=2, vocabulary=400, epochs=50, rows=8, curriculum_share=0.0)


def requests():
    found = []
    for index, name in enumerate(NAMES):
        rephrasing = ps.Probe("generality", f"Words first. {name} comes from", "Rome")
        old = CITIES[index % 4] if index else None
        found.append(ps.EditRequest(f"{name} was born in", "Rome", name, old, (rephrasing,), f"P19|{name}", str(index)))
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("facts") / "model"
    return out, train_on_facts(out, requests(), recipe=TINY, progress=False, sources=["people.json"])


def test_the_model_knows_what_it_read(trained):
    out, found = trained
    assert found.left_out == {"it has no true answer": 1}
    assert found.num_facts == len(NAMES) - 1
    assert found.ceiling["reliability"].n == len(NAMES) - 1
    assert found.ceiling["reliability"].generate > 0.6
    model = ps.load(str(out))
    said = model.generate([request.prompt for request in requests()[1:]])
    right = sum(text == f"{r.target_old}." for text, r in zip(said, requests()[1:], strict=True))
    assert right / (len(NAMES) - 1) == found.ceiling["reliability"].generate


def test_the_card_says_how_it_was_made_and_what_it_knows(trained):
    out, found = trained
    card = json.loads((out / "card.json").read_text())
    assert card["ceiling"]["generality"]["generate"] == found.ceiling["generality"].generate
    assert card["training"]["recipe"]["width"] == 32
    text = (out / "card.md").read_text()
    assert "people.json" in text
    assert "1: it has no true answer" in text
    assert f"| {found.ceiling['reliability'].generate:.3f} |" in text


def test_the_ceiling_by_hand(trained):
    model = ps.load(str(trained[0]))
    said = model.generate("Eva Stone was born in").removesuffix(".")
    questions = [
        FactQuestion("one", "Eva Stone was born in", said),
        FactQuestion("one", "Eva Stone was born in", "Timbuktu"),
        FactQuestion("two", "Eva Stone was born in", said),
    ]
    known = ceiling(model, questions)
    assert (known["one"].n, known["one"].generate) == (2, 0.5)
    assert (known["two"].n, known["two"].generate, known["two"].teacher_forced) == (1, 1.0, 1.0)
    wrong = model.score(["Eva Stone was born in"], ["Timbuktu"])[0].accuracy
    assert known["one"].teacher_forced == pytest.approx((1 + wrong) / 2)


def test_sizes_grow_with_the_facts():
    small, middle, large = (fact_recipe(number) for number in (100, 5000, 50_000))
    assert small.width < middle.width < large.width
    assert small.vocabulary < middle.vocabulary < large.vocabulary
    for recipe in (small, middle, large):
        recipe.check()


def test_nothing_is_left_behind_when_the_facts_are_too_few(tmp_path):
    with pytest.raises(ps.DataError, match="too few facts"):
        train_on_facts(tmp_path / "model", requests()[:5], recipe=TINY, progress=False)
    assert list(tmp_path.iterdir()) == []
