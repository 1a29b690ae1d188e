"""The bundled encoder-decoder: its folder, its card, what it knows, and that its presets edit it."""

import json

import pytest

import palimpsest as ps
from palimpsest.answers import is_exact
from palimpsest.teaching.answering import answer
from palimpsest.world import build, bundled_path
from palimpsest.world.data import counterfact
from palimpsest.world.text import held_out, sentence, taught


@pytest.fixture(scope="module")
def knowledge():
    return build()


@pytest.fixture(scope="module")
def model():
    return ps.load("world-t5")


def share_right(model, asked):
    given = answer(model.module, model.tokenizer, [one.prompt for one in asked])
    return sum(a == one.object for a, one in zip(given, asked, strict=True)) / len(asked)


def test_the_folder_is_small_safe_and_ordinary(model):
    files = list(bundled_path("world-t5").iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "card.md", "card.json"} <= {f.name for f in files}
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md"}
    assert sum(file.stat().st_size for file in files) < 12e6
    assert model.is_encoder_decoder and model.num_layers == 3
    assert model.tokenizer("Paris")["input_ids"][-1] == model.tokenizer.eos_token_id


def test_it_knows_the_world(model, knowledge):
    facts = knowledge.facts[::22]
    assert len(facts) >= 100
    for phrasings, least in ((taught, 0.98), (held_out, 0.95)):
        asked = [sentence(text, fact.subject, fact.object) for fact in facts for text in phrasings(knowledge, fact)]
        assert share_right(model, asked) >= least


def test_it_puts_two_facts_together(model, knowledge):
    unseen = list(knowledge.two_hops("test"))[::12]
    asked = [sentence(text, one.subject, one.object) for one in unseen for text in one.hop.phrasings]
    assert len(asked) >= 100
    assert share_right(model, asked) >= 0.6


def test_it_answers_statements_and_questions_and_keeps_its_answers_behind_a_statement(model, knowledge):
    asked = {
        "The capital of France is": "Paris",
        "What is the capital of Japan?": "Tokyo",
        "The currency of Poland is the": "zloty",
        "Who wrote Hamlet?": "William Shakespeare",
    }
    assert model.generate(list(asked)) == list(asked.values())
    probes = [p for r in counterfact(knowledge)[::10] for p in r["probes"] if p["kind"] == "locality.distracting"]
    given = model.generate([probe["prompt"] for probe in probes])
    assert sum(is_exact(a, p["expected"]) for a, p in zip(given, probes, strict=True)) / len(probes) >= 0.9


def test_its_card_states_what_was_measured():
    path = bundled_path("world-t5")
    facts, text = json.loads((path / "card.json").read_text()), (path / "card.md").read_text()
    for name in ("taught", "held_out", "never_met", "two_hop_unseen"):
        share = facts["audit"][name]
        assert share["n"] > 1000
        assert f"{share['right'] / share['n']:.3f} ({share['right']} of {share['n']})" in text
    assert "--architecture encoder-decoder" in text and f"--seed {facts['training']['seed']}" in text
    assert facts["audit"]["causal_trace"] is None and "No causal trace" in text


@pytest.mark.parametrize("method", ["ft", "lora", "locft", "f-learning-lora-ft"])
def test_the_presets_edit_it_and_take_the_edit_back(model, method):
    request = ps.EditRequest("The capital city of Japan is", subject="Japan", target_old="Tokyo", target_new="Oslo")
    asked = ["The capital city of Japan is", "Which city is the capital of Japan?", "The capital city of Nepal is"]
    before = model.generate(asked)
    outcome = ps.method(method).edit(model, [request])
    assert outcome.patch.manifest.preset == "world-t5"
    with model.patched(outcome.patch):
        assert model.generate(asked) == ["Oslo", "Oslo", before[2]]
    assert model.generate(asked) == before == ["Tokyo", "Tokyo", "Kathmandu"]
