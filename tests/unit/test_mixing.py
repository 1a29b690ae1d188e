"""Soft routing: a mixture of two models' probabilities, against both models' own."""

import pytest
import torch

import tiny
from palimpsest import ModelError
from palimpsest.models.routing import Route
from palimpsest.models.routing.mixing import log_mixture

PROMPTS = ["The capital of France is", "Anna Keller was born in"]
TARGETS = ["Lyon", "Lima"]


def routed(model, reader, weight):
    def router(prompts):
        return [Route("so: " + prompt, reader, weight=weight) for prompt in prompts]

    return model.weights.push("mixed", {}, router=router)


def next_probabilities(model, prompt):
    batch = model.batch([model.encode(prompt)])
    with torch.no_grad():
        logits = model.forward(batch).logits[0]
    return logits[0 if model.is_encoder_decoder else len(model.encode(prompt).prompt_ids) - 1].softmax(-1)


def test_a_mixture_sums_to_one_at_any_weight():
    first, second = torch.randn(6, 50) * 5, torch.randn(6, 64)
    mixed = log_mixture(first, second, torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0, 1e-7])).exp()
    assert torch.allclose(mixed.sum(-1), torch.ones(6), atol=1e-5)
    assert torch.allclose(mixed[0], first[0].softmax(-1), atol=1e-6)
    assert torch.allclose(mixed[4], second[4, :50].softmax(-1), atol=1e-6)


@pytest.mark.parametrize(("family", "other"), [("gptj", "llama"), ("t5", "t5-gated")])
def test_scores_and_texts_of_a_mixture_are_those_of_the_mean_of_probabilities(family, other):
    model, reader = tiny.tiny_model(family), tiny.tiny_model(other, seed=3)
    own, others = model.score(PROMPTS, TARGETS), reader.score(["so: " + prompt for prompt in PROMPTS], TARGETS)
    first = [
        (0.7 * next_probabilities(model, prompt) + 0.3 * next_probabilities(reader, "so: " + prompt)).argmax()
        for prompt in PROMPTS
    ]
    layer = routed(model, reader, 0.3)
    for found, one, two in zip(model.score(PROMPTS, TARGETS), own, others, strict=True):
        by_hand = [
            torch.log(0.7 * torch.tensor(a).exp() + 0.3 * torch.tensor(b).exp())
            for a, b in zip(one.log_probs, two.log_probs, strict=True)
        ]
        assert found.log_probs == pytest.approx([float(value) for value in by_hand], abs=1e-4)
    texts = model.generate(PROMPTS, max_new_tokens=1)
    assert texts == [model.tokenizer.decode([token], skip_special_tokens=True).strip() for token in first]
    model.weights.remove(layer)
    assert model.score(PROMPTS, TARGETS) == own


def test_generating_goes_on_from_what_the_mixture_chose():
    model, reader = tiny.tiny_model("gptj"), tiny.tiny_model("llama", seed=3)
    ids, other = (list(model.encode(text).prompt_ids) for text in (PROMPTS[0], "so: " + PROMPTS[0]))
    chosen = []
    with torch.no_grad():
        for _ in range(5):
            logits = [one.module(torch.tensor([row])).logits[0, -1] for one, row in ((model, ids), (reader, other))]
            chosen.append(int((0.5 * logits[0].softmax(-1) + 0.5 * logits[1].softmax(-1)).argmax()))
            ids.append(chosen[-1])
            other.append(chosen[-1])
    routed(model, reader, 0.5)
    assert model.tokenizer.decode(chosen).strip().startswith(model.generate(PROMPTS[0], max_new_tokens=5))


def test_models_that_read_an_answer_as_other_tokens_cannot_be_mixed():
    model, reader = tiny.tiny_model("gptj"), tiny.tiny_model("t5")
    routed(model, reader, 0.5)
    with pytest.raises(ModelError, match="tokens"):
        model.score(PROMPTS, TARGETS)
