"""What lm-evaluation-harness asks of a model is answered with the numbers of the bare model, patches included."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import tiny
from palimpsest import ConfigError, DataError, method
from palimpsest.evaluation.other_tasks import Answering, run_tasks
from palimpsest.models.routing import Route
from palimpsest.world import build
from palimpsest.world.tasks import NUM_CHOICES, write_tasks

PAIRS = [("the capital of France is", " Paris"), ("Rome is a", " city in Italy"), ("the river was long", "\nago")]


def by_hand(model, context, continuation):
    """Log-probability and greediness from the whole text's logits."""
    ids = model.tokenizer(context)["input_ids"]
    rest = model.tokenizer(context + continuation)["input_ids"][len(ids) :]
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([ids + rest])).logits[0].log_softmax(-1)
    places = range(len(ids) - 1, len(ids) + len(rest) - 1)
    picked = [float(logits[place, token]) for place, token in zip(places, rest, strict=True)]
    return sum(picked), all(int(logits[place].argmax()) == token for place, token in zip(places, rest, strict=True))


def test_continuations_texts_and_answers_are_those_of_the_bare_model():
    model = tiny.tiny_model("gpt2")
    answering = Answering(model)
    for (found, is_greedy), pair in zip(answering.continuations(PAIRS[:2]), PAIRS[:2], strict=True):
        wanted, greedy = by_hand(model, *pair)
        assert found == pytest.approx(wanted, abs=1e-4)
        assert is_greedy == greedy
    text = "Rome is a city in Italy"
    first = model.tokenizer.decode(model.tokenizer(text)["input_ids"][:1])
    assert answering.texts([text, first]) == pytest.approx(
        [by_hand(model, first, text[len(first) :])[0], 0.0], abs=1e-4
    )
    ids = torch.tensor([model.tokenizer("Rome is a")["input_ids"]])
    written = model.module.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
    )[0, ids.shape[1] :]
    text = model.tokenizer.decode(written, skip_special_tokens=True)
    assert answering.answers([("Rome is a", {"max_gen_toks": 6})]) == [text]
    stop = text.strip().split()[1]
    assert answering.answers([("Rome is a", {"max_gen_toks": 6, "until": [stop]})]) == [text[: text.find(stop)]]


def test_patches_and_routes_count():
    model = tiny.tiny_model("gptj")
    (request,) = tiny.requests(1)
    answering, pair = Answering(model), (request.prompt, f" {request.target_new}")
    [(before, _)] = answering.continuations([pair])
    patch = (
        method("ft", preset="none", parameters="all", spare=False, learning_rate=1e-2, epochs=5)
        .edit(model, [request])
        .patch
    )
    with model.patched(patch):
        assert answering.continuations([pair])[0][0] > before + 0.1
    model.weights.push("routed", {}, router=lambda prompts: [Route("Rome is a") for _ in prompts])
    elsewhere = answering.answers([("the river", {"max_gen_toks": 4})])
    with model.weights.without_routers():
        assert answering.answers([("Rome is a", {"max_gen_toks": 4})]) == elsewhere


def test_questions_are_answered_together_as_one_by_one():
    model = tiny.tiny_model("gpt2")
    asked = [
        ("Rome is a", {"max_gen_toks": 6}),
        ("the river was long and the city", {"max_gen_toks": 6}),
        ("the capital of France is", {"max_gen_toks": 3, "until": " "}),
        ("Rome", {"max_gen_toks": 6, "until": ["Q", "\n\n"]}),
    ]
    together = Answering(model).answers(asked)
    assert together == [Answering(model, 1).answers([one])[0] for one in asked]
    assert " " not in together[2]
    # Of a question that is too long the end is read.
    long = "the river was long and " * 60 + "Rome is a"
    limit = model.context_length
    ids = torch.tensor([model.tokenizer(long)["input_ids"][-(limit - 5) :]])
    written = model.module.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0
    )[0, ids.shape[1] :]
    assert len(model.tokenizer(long)["input_ids"]) > limit
    assert Answering(model).answers([(long, {"max_gen_toks": 5})]) == [model.tokenizer.decode(written)]


def test_a_mixture_of_two_models_answers_by_its_weight():
    model, other = tiny.tiny_model("gptj"), tiny.tiny_model("gptj", seed=1)
    question = [("the river", {"max_gen_toks": 4})]

    def answer(weight):
        routed = model.weights.push("soft", {}, router=lambda prompts: [Route("Rome is a", other, weight)])
        try:
            return Answering(model).answers(question)
        finally:
            model.weights.remove(routed)

    alone = Answering(model).answers(question)
    assert answer(1e-6) == alone
    assert answer(1 - 1e-6) == Answering(other).answers([("Rome is a", {"max_gen_toks": 4})])
    assert alone != answer(1 - 1e-6)


def test_what_cannot_be_asked(monkeypatch):
    answering = Answering(tiny.tiny_model("gptj"))
    with pytest.raises(DataError, match="middle of a word"):
        answering.continuations([("Rom", "e")])
    # Without a context the text's beginning is a token of its own.
    [(found, _)] = answering.continuations([("", "Rome")])
    assert found < 0
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match="another package"):
        run_tasks(answering.model, ["world_choice"])


def test_the_worlds_tasks_have_one_right_choice_each(tmp_path):
    knowledge = build(0, people=50)
    names = write_tasks(knowledge, tmp_path, num_questions=30)
    assert sorted(file.stem for file in tmp_path.glob("*.yaml")) == sorted(names)
    right = {fact.object for fact in knowledge.facts}
    for line in (tmp_path / "world.jsonl").read_text().splitlines():
        asked = json.loads(line)
        assert len(set(asked["choices"])) == NUM_CHOICES
        assert asked["choices"][asked["answer"]] in right
    assert len((tmp_path / "world.jsonl").read_text().splitlines()) == 30


@pytest.mark.slow
def test_the_harness_runs_the_worlds_tasks(tmp_path):
    pytest.importorskip("lm_eval")
    from palimpsest import load

    names = write_tasks(build(), tmp_path, num_questions=40)
    scores = run_tasks(load("world"), names, include=tmp_path)
    assert scores["world_choice"]["acc"] > 0.95
    assert scores["world_written"]["exact_match,stripped"] > 0.9
    with pytest.raises(ConfigError, match="world_choice"):
        run_tasks(load("world"), ["world_choise"], include=tmp_path)
