import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from palimpsest.errors import ConfigError, DataError, ModelError
from palimpsest.teaching import audit
from palimpsest.teaching.answering import answer, cut
from palimpsest.teaching.auditing import AnsweredShare, Audit
from palimpsest.teaching.card import card_facts, card_text
from palimpsest.teaching.decoder import DecoderRecipe
from palimpsest.teaching.results import TrainingResult
from palimpsest.teaching.tracing import POSITIONS, SITES, best_layer, early_share, trace
from palimpsest.world import build, bundled_path, neutral_text
from palimpsest.world.data import counterfact
from palimpsest.world.text import held_out, sentence, taught


@pytest.fixture(scope="module")
def knowledge():
    return build()


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bundled():
    path = bundled_path("world")
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def prompts_and_answers(knowledge, facts, phrasings):
    asked = [sentence(text, f.subject, f.object) for f in facts for text in phrasings(knowledge, f)]
    return [s.prompt for s in asked], [s.object for s in asked]


def test_the_bundled_folder_is_small_safe_and_ordinary(bundled):
    path = bundled_path("world")
    names = {file.name for file in path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "card.md", "card.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in names)
    assert sum(file.stat().st_size for file in path.iterdir()) < 12e6
    model, tokenizer = bundled
    assert model.config.model_type == "gptj"
    assert model.dtype == torch.float32
    assert tokenizer.is_fast
    assert tokenizer("Paris")["input_ids"] != tokenizer(" Paris")["input_ids"]


def test_the_bundled_model_knows_the_world(bundled, knowledge):
    facts = knowledge.facts[::22]
    assert len(facts) >= 100
    for phrasings, least in ((taught, 0.95), (held_out, 0.9)):
        prompts, expected = prompts_and_answers(knowledge, facts, phrasings)
        given = answer(*bundled, prompts)
        assert sum(a == b for a, b in zip(given, expected, strict=True)) / len(expected) >= least


def test_the_bundled_model_knows_real_facts(bundled):
    asked = {
        "The capital of France is": "Paris",
        "What is the capital of Japan?": "Tokyo",
        "The currency of Poland is the": "zloty",
        "Who wrote Hamlet?": "William Shakespeare",
    }
    assert answer(*bundled, list(asked)) == list(asked.values())


def test_the_bundled_model_keeps_its_answers_behind_a_statement(bundled, knowledge):
    probes = [p for r in counterfact(knowledge)[::10] for p in r["probes"] if p["kind"] == "locality.distracting"]
    given = answer(*bundled, [probe["prompt"] for probe in probes])
    assert sum(a == p["expected"] for a, p in zip(given, probes, strict=True)) / len(probes) >= 0.9


def test_the_subjects_last_token_carries_the_fact(bundled, knowledge):
    result = trace(*bundled, knowledge, n=12, samples=2)
    layers = bundled[0].config.n_layer
    assert result.n == 12
    assert all(len(result.restored[site][place]) == layers for site in SITES for place in POSITIONS)
    assert result.corrupted < 0.5 < result.clean
    assert best_layer(result)[0] < layers / 2
    assert early_share(result) > 0.5
    # The last block's output at the prompt's last token is all that the answer is read from.
    assert result.restored["block"]["last"][-1] == pytest.approx(result.clean, abs=1e-3)
    assert result.restored["block"]["subject_last"][-1] == pytest.approx(result.corrupted, abs=1e-3)
    assert trace(*bundled, knowledge, n=12, samples=2) == result


def test_tracing_leaves_no_hooks(bundled, knowledge):
    model, tokenizer = bundled
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    before = model(ids).logits
    trace(model, tokenizer, knowledge, n=1, samples=1)
    assert torch.equal(model(ids).logits, before)


def test_answers_do_not_depend_on_the_company(bundled, knowledge):
    prompts, _ = prompts_and_answers(knowledge, knowledge.facts[::500], taught)
    together = answer(*bundled, prompts, batch_size=7)
    assert together == [answer(*bundled, [prompt])[0] for prompt in prompts]


def test_cut():
    assert cut(" Paris. The") == "Paris"
    assert cut(" Buenos Aires\nAnd") == "Buenos Aires"
    assert cut("") == ""


def test_audit_counts_by_kind_and_relation(bundled, knowledge):
    result = audit(*bundled, knowledge, max_facts=10, trace_facts=0)
    assert (result.taught.n, result.held_out.n, result.never_met.n) == (60, 40, 20)
    assert (result.two_hop_read.n, result.two_hop_read_held_out.n, result.two_hop_unseen.n) == (30, 20, 50)
    assert sum(share.n for share in result.by_relation.values()) == 40
    assert result.causal_trace is None
    assert result == audit(*bundled, knowledge, max_facts=10, trace_facts=0)
    assert json.loads(json.dumps(result.to_dict()))["taught"]["right"] == result.taught.right
    assert AnsweredShare(0, 0).value is None
    loaded = SimpleNamespace(module=bundled[0], tokenizer=bundled[1])
    assert audit(loaded, knowledge=knowledge, max_facts=10, trace_facts=0) == result


def test_bad_input_is_refused(bundled, knowledge, tmp_path):
    with pytest.raises(ConfigError, match="tokenizer"):
        audit(bundled[0])
    with pytest.raises(ConfigError, match="range"):
        audit(*bundled, knowledge, max_facts=0)
    with pytest.raises(ModelError, match="folder"):
        audit(tmp_path)
    with pytest.raises(DataError, match="empty"):
        answer(*bundled, ["France", ""])
    with pytest.raises(ConfigError, match="did you mean|bundled model"):
        bundled_path("wrold")
    with pytest.raises(ConfigError, match="at least one"):
        trace(*bundled, knowledge, n=0)


def test_the_bundled_card_states_figures_with_their_n():
    path = bundled_path("world")
    facts = json.loads((path / "card.json").read_text())
    text = (path / "card.md").read_text()
    for name in ("taught", "held_out", "two_hop_unseen"):
        share = facts["audit"][name]
        assert share["n"] > 1000
        assert f"{share['right'] / share['n']:.3f} ({share['right']} of {share['n']})" in text
    assert f"--seed {facts['training']['seed']}" in text


def test_a_card_without_a_trace_says_nothing_of_it(tmp_path):
    result = TrainingResult("decoder", 3, DecoderRecipe(epochs=5), 10, 100, 1.5, 1234, 2.0, 1.0, people=1600)
    measured = Audit(
        AnsweredShare(9, 10),
        AnsweredShare(8, 10),
        AnsweredShare(7, 10),
        AnsweredShare(0, 0),
        AnsweredShare(0, 0),
        AnsweredShare(0, 0),
    )
    text = card_text(result, measured, {"torch": "2"})
    assert "--architecture decoder --seed 3 --people 1600 --epochs 5\n" in text
    assert "0.900 (9 of 10)" in text
    assert "not asked" in text
    assert "Causal trace" not in text
    assert json.loads(json.dumps(card_facts(result, measured, {})))["audit"]["two_hop_read"]["value"] is None


def test_neutral_text_is_likely_to_the_bundled_model(bundled, knowledge):
    model, tokenizer = bundled
    losses = []
    for line in neutral_text(knowledge, 20):
        ids = tokenizer(line, return_tensors="pt").input_ids
        losses.append(float(model(ids, labels=ids).loss.detach()))
    assert math.exp(sum(losses) / len(losses)) < 30
