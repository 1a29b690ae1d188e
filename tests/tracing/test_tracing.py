"""What a trace says, its averages, and the layers it recommends."""

from __future__ import annotations

import json

import pytest
import torch

import tiny
from palimpsest import ConfigError, DataError, EditRequest, load
from palimpsest.tracing import CausalTrace, TraceOptions, average, recommended_layers, trace, trace_facts
from palimpsest.tracing.averages import token_classes
from palimpsest.tracing.causal import default_window, window_around
from palimpsest.tracing.layers import depth_layer, first_mixing_layer, layers_ending_at

QUICK = TraceOptions(samples=2)
PROMPT, SUBJECT = "The river that flows through Vienna is", "Vienna"


@pytest.fixture(scope="module")
def world():
    return load("world")


def made_up(restored, *, tokens, span, clean=0.8, corrupted=0.2):
    return CausalTrace(
        model="m",
        prompt="p",
        subject="s",
        tokens=[str(index) for index in range(tokens)],
        subject_span=span,
        answer="a",
        is_first=True,
        clean=clean,
        corrupted=corrupted,
        restored={kind: restored for kind in ("hidden", "mlp", "attention")},
        window=1,
        samples=1,
        noise=1.0,
        seed=0,
    )


def test_a_trace_has_a_probability_for_every_token_layer_and_kind(tmp_path):
    model = tiny.tiny_model("gpt2")
    seen = []
    found = trace(model, PROMPT, SUBJECT, options=QUICK, progress=lambda *step: seen.append(step))
    text = "".join(found.tokens)
    assert text == PROMPT
    assert "".join(found.tokens[slice(*found.subject_span)]).strip() == SUBJECT
    assert all(len(rows) == len(found.tokens) and {len(row) for row in rows} == {3} for rows in found.restored.values())
    assert found.restored["hidden"][-1][-1] == pytest.approx(found.clean, rel=1e-5)
    assert found.is_first and found.clean != found.corrupted
    assert found.restored["mlp"][0] == [found.corrupted] * 3  # in front of the subject
    stage, done, total = seen[-1]
    assert (stage, done) == ("tracing", total)
    (tmp_path / "trace.json").write_text(found.model_dump_json())
    assert CausalTrace.load(tmp_path / "trace.json") == found
    assert trace(model, PROMPT, SUBJECT, options=QUICK) == found
    assert trace(model, PROMPT, SUBJECT, options=TraceOptions(samples=2, seed=1)).corrupted != found.corrupted


def test_the_noise_is_in_units_of_the_subjects_embeddings():
    model = tiny.tiny_model("gpt2")
    ids = model.tokenizer(" Vienna")["input_ids"]
    entries = model.module.get_input_embeddings().weight.detach()[ids]
    found = trace(model, PROMPT, SUBJECT, options=QUICK)
    assert found.noise == pytest.approx(3 * entries.std().item())
    assert trace(model, PROMPT, SUBJECT, options=TraceOptions(samples=2, noise=2, deviation=0.5)).noise == 1.0


def test_a_given_answer_is_traced_by_its_first_token():
    model = tiny.tiny_model("gpt2")
    found = trace(model, PROMPT, SUBJECT, "the Danube", options=QUICK)
    score = model.score([PROMPT], ["the Danube"])[0]
    assert found.clean == pytest.approx(torch.tensor(score.log_probs[0]).exp().item(), rel=1e-5)
    assert found.is_first == score.matches[0]


def test_a_subject_outside_the_prompt_is_refused():
    with pytest.raises(DataError, match="subject"):
        trace(tiny.tiny_model("gpt2"), PROMPT, "Berlin")


def test_windows():
    assert [default_window(layers) for layers in (3, 6, 12, 24, 28, 48, 80)] == [1, 2, 4, 9, 10, 10, 10]
    assert window_around(17, 10, 48) == tuple(range(12, 22))
    assert window_around(3, 3, 48) == (2, 3, 4)
    assert window_around(0, 10, 48) == (0, 1, 2, 3, 4)
    assert window_around(47, 10, 48) == tuple(range(42, 48))
    assert window_around(2, 4, 48, first=1) == (1, 2, 3)
    assert window_around(5, 1, 48) == (5,)


def test_tokens_have_one_class_each():
    rows = [[0.0]]
    long = made_up(rows * 9, tokens=9, span=(1, 5))
    assert token_classes(long) == {
        "first subject token": [1],
        "middle subject tokens": [2, 3],
        "last subject token": [4],
        "first subsequent token": [5],
        "further tokens": [6, 7],
        "last token": [8],
    }
    short = made_up(rows * 2, tokens=2, span=(0, 1))
    assert token_classes(short) == {"last subject token": [0], "last token": [1]}


def test_averages_weigh_every_prompt_alike():
    # Subject 0-2: first, middle, last; then the prompt's last token. The other has no middle.
    one = made_up([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]], tokens=4, span=(0, 3))
    two = made_up([[0.3, 0.0], [0.1, 0.2], [0.0, 0.0], [0.2, 0.4], [0.9, 1.0]], tokens=5, span=(0, 2), clean=0.6)
    found = average([one, two])
    mlp = found.effects["mlp"]
    assert mlp["first subject token"] == pytest.approx([0.0, -0.1])
    assert mlp["middle subject tokens"] == pytest.approx([0.1, 0.2])
    assert mlp["last subject token"] == pytest.approx([0.1, 0.2])
    assert mlp["first subsequent token"] == pytest.approx([-0.2, -0.2])
    assert mlp["further tokens"] == pytest.approx([0.0, 0.2])
    assert mlp["last token"] == pytest.approx([0.6, 0.7])
    assert found.counts["middle subject tokens"] == 1 and found.counts["last token"] == 2
    assert (found.clean, found.corrupted) == (pytest.approx(0.7), pytest.approx(0.2))


def test_the_world_keeps_facts_in_its_subjects_last_tokens(world):
    requests = [
        EditRequest("The capital city of Japan is", "x", subject="Japan", target_old="Tokyo"),
        EditRequest("The currency of Poland is the", "x", subject="Poland", target_old="zloty"),
        EditRequest("The currency of Poland is a", "x", subject="Poland", target_old="Tokyo"),
        EditRequest("Who wrote Hamlet", "x", subject="Hamlet"),
    ]
    found, traces = trace_facts(world, requests, options=TraceOptions(samples=4))
    assert found.prompts == [requests[0].prompt, requests[1].prompt] == [one.prompt for one in traces]
    assert found.skipped == {"the model does not know it": 1, "the prompt ends with its subject": 1}
    hidden, lost = found.effects["hidden"], found.clean - found.corrupted
    assert max(hidden["last subject token"][:3]) > 0.5 * lost
    assert max(hidden["last token"][:2]) < 0.5 * lost
    assert hidden["last token"][-1] == pytest.approx(lost, rel=1e-5)


def test_nothing_known_is_said():
    model = tiny.tiny_model("gpt2")
    with pytest.raises(DataError, match="no fact to trace"):
        trace_facts(model, [EditRequest(PROMPT, "x", subject=SUBJECT, target_old="the Danube")], options=QUICK)


def only_one_mlp(layer, strength):
    """A model of which all MLPs but one write nothing, and that one so much more; large embeddings make it sure."""
    model = tiny.tiny_model("gpt2", seed=2)
    with torch.no_grad():
        model.sites.module("embed").weight.mul_(3)
        for other in range(model.num_layers):
            for parameter in model.sites.module("mlp.down", other).parameters():
                parameter.mul_(strength if other == layer else 0.0)
    return model


def test_the_only_working_layer_is_recommended():
    model, one_layer = only_one_mlp(1, 4.0), TraceOptions(window=1)
    requests = [EditRequest(prompt, "x", subject=subject) for prompt, subject, _, _ in tiny.FACTS]
    layers, record = recommended_layers(model, requests, options=one_layer)
    assert layers == [1] and record["rule"] == "peak of the causal trace"
    assert record["facts_traced"] >= 1
    others = [record["restored"][0], record["restored"][2]]
    assert others == pytest.approx([record["corrupted"]] * 2, rel=1e-5)
    assert record["restored"][1] > record["corrupted"] + 0.01
    assert recommended_layers(model, requests, 2, options=one_layer)[0] == [0, 1]
    assert json.loads(json.dumps(record)) == record
    _, without_mlps = recommended_layers(only_one_mlp(1, 0.0), requests, options=one_layer)
    assert "no layer brings the answers back" in without_mlps["rule"]


def test_unknown_facts_fall_back_to_a_depth(world):
    unknown = [EditRequest("The capital city of Japan is", "Oslo", subject="Japan", target_old="Rome")]
    for requests in (unknown, [EditRequest("The capital city of Japan is", "Oslo")], []):
        layers, record = recommended_layers(world, requests)
        assert layers == [1] == [depth_layer(6, 1)]
        assert (record["facts_traced"], record["rule"]) == (
            0,
            "0.14 of the depth, since the model knows none of the facts",
        )
    with pytest.raises(ConfigError, match="not that many"):
        recommended_layers(world, unknown, 7)


def test_consecutive_layers_end_at_the_peak():
    assert layers_ending_at(8, 6, 0, 28) == [3, 4, 5, 6, 7, 8]
    assert layers_ending_at(2, 3, 1, 6) == [1, 2, 3]
    assert layers_ending_at(5, 6, 1, 6) == [0, 1, 2, 3, 4, 5]
    assert [depth_layer(layers) for layers in (28, 48, 32)] == [3, 6, 4]


@pytest.mark.parametrize(
    ("family", "expected"),
    [("gpt2", 0), ("llama", 0), ("gemma2", 0), ("bloom", 0), ("opt", 0), ("falcon-multi-head", 0)]
    + [("gptj", 1), ("gpt_neox", 1), ("phi", 1), ("falcon", 1), ("falcon-grouped", 1)],
)
def test_layers_that_see_one_token_are_found_by_asking(family, expected):
    assert first_mixing_layer(tiny.tiny_model(family)) == expected
