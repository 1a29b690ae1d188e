"""Knowledge neurons against plain autograd, and what an edit may touch."""

from __future__ import annotations

import pytest
import torch

import tiny
from palimpsest import EditRequest, ModelError, method
from palimpsest.methods.kn.attribution import attribute
from palimpsest.methods.kn.method import KnowledgeNeuronsConfig, above_threshold, answer_change, in_most, prompts_of
from palimpsest.models.hooks import Point
from palimpsest.models.sites.linear import weight_as_out_in

FAMILIES = ("gpt2", "gptj", "llama", "gemma2", "falcon", "bloom", "opt", "t5-gated", "bart")
PROMPT, ANSWER = "The river that flows through Vienna is", "the Danube"


def probability(model, layer, prompt, ids, token, scale):
    """P(answer token `token`) with the layer's activations scaled at the place that predicts it, and these in full."""
    encoded = model.encode(prompt, ANSWER)
    batch = model.batch([encoded])
    place = token if model.is_encoder_decoder else len(encoded.prompt_ids) - 1 + token
    seen = {}

    def pre_hook(_module, args):
        tensor = args[0]
        flat = tensor.reshape(-1, tensor.shape[-1])
        seen["w"] = flat[place].detach().clone()
        seen["leaf"] = (scale * seen["w"]).requires_grad_()
        changed = torch.cat([flat[:place], seen["leaf"][None], flat[place + 1 :]])
        return (changed.reshape(tensor.shape), *args[1:])

    handle = model.sites.module("mlp.down", layer).register_forward_pre_hook(pre_hook)
    try:
        logits = model.forward(batch).logits[0, place]
    finally:
        handle.remove()
    return logits.softmax(-1)[ids[token]], seen


def plain_scores(model, layer, steps):
    """Attr by one whole forward and backward pass a step and answer token."""
    ids = model.encode(PROMPT, ANSWER).target_ids
    scores = []
    for token in range(len(ids)):
        total = 0
        for step in range(steps):
            value, seen = probability(model, layer, PROMPT, ids, token, (step + 0.5) / steps)
            total = total + torch.autograd.grad(value, seen["leaf"])[0]
        scores.append(seen["w"] * total / steps)
    return torch.stack(scores).mean(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_attributions_equal_plain_autograd(family):
    model = tiny.tiny_model(family)
    assert len(model.encode(PROMPT, ANSWER).target_ids) > 1
    layers = [0, model.num_layers - 1]
    found = attribute(model, PROMPT, ANSWER, layers, 3, 256)
    for row, layer in enumerate(layers):
        expected = plain_scores(model, layer, 3)
        assert torch.allclose(found.scores[row], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    in_small_passes = attribute(model, PROMPT, ANSWER, layers, 3, 2)
    assert torch.allclose(found.scores, in_small_passes.scores, rtol=1e-4, atol=1e-5 * float(found.scores.abs().max()))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma2"])
def test_attributions_add_up_to_what_the_layer_does_and_better_with_more_steps(family):
    """sum_i Attr_i = P(w) - P(0), where P(0) is the model with all neurons of the layer suppressed.

    A norm behind the MLP takes out the scale, so that P is almost constant on the way and falls just before zero: there
    the sum needs far more steps, and the method says so.
    """
    model, layer = tiny.tiny_model(family), 1
    ids = model.encode(PROMPT, ANSWER).target_ids
    gaps = []
    for token in range(len(ids)):
        full, none = (probability(model, layer, PROMPT, ids, token, scale)[0].item() for scale in (1.0, 0.0))
        gaps.append(full - none)
    exact = sum(gaps) / len(gaps)
    errors = [abs(float(attribute(model, PROMPT, ANSWER, [layer], m, 256).scores.sum()) - exact) for m in (1, 20, 200)]
    largest = max(abs(gap) for gap in gaps)
    assert errors[2] < 1e-3 * largest  # what is left is float32
    assert errors[2] < errors[1] + 1e-4 * largest and errors[1] < errors[0]


def test_selection_by_hand():
    scores = torch.tensor([[0.1, 0.5, -0.9], [1.0, 0.2, 0.3]])
    assert above_threshold(scores, 0.2) == {(0, 1), (1, 0), (1, 2)}
    assert above_threshold(scores, 0.0) == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)}
    assert above_threshold(-scores.abs(), 0.2) == set()
    sets = [{(0, 1), (1, 0)}, {(1, 0), (2, 2)}, {(1, 0), (0, 1)}]
    assert in_most(sets, 0.7) == [(1, 0)]
    assert in_most(sets, 0.6) == [(0, 1), (1, 0)]
    assert in_most(sets[:1], 0.0) == in_most(sets[:1], 0.7) == sorted(sets[0])


def test_prompts_come_from_options_and_never_from_probes():
    request = tiny.requests(1)[0]
    config = KnowledgeNeuronsConfig(prefixes=["It was so."], prompts={"fact-0": ["France has the capital"]})
    expected = ["The capital of France is", "It was so. The capital of France is", "France has the capital"]
    assert prompts_of(request, config) == expected
    model = tiny.tiny_model("gptj")
    few = method("kn", preset="none", share=0.9, threshold=0.05, prefixes=["Rome.", "Oslo."]).edit(model, [request])
    many = method("kn", preset="none", threshold=0.05).edit(model, [request])
    neurons = [outcome.diagnostics.facts["neurons"]["fact-0"] for outcome in (few, many)]
    assert 0 < len(neurons[0]) < len(neurons[1]) and all(one in neurons[1] for one in neurons[0])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("embedding", ["output", "input"])
def test_an_update_writes_the_two_answers_into_the_neurons_columns(family, embedding):
    model, request = tiny.tiny_model(family), tiny.requests(1)[0]
    outcome = method("kn", preset="none", embedding=embedding, old_weight=0.5, new_weight=2.0).edit(model, [request])
    neurons = outcome.diagnostics.facts["neurons"][request.id]
    table = model.module.get_input_embeddings() if embedding == "input" else model.module.get_output_embeddings()
    old, new = (table.weight[list(model.encode(request.prompt, one).target_ids)].sum(0) for one in ("Paris", "Lyon"))
    change = (2.0 * new - 0.5 * old).detach()
    points = [Point("mlp.down", layer, "input") for layer in range(model.num_layers)]
    _, inputs = model.capture([request.prompt], points)
    for layer, point in enumerate(points):
        before = weight_as_out_in(model.sites.module("mlp.down", layer)).detach().clone()
        with model.patched(outcome.patch):
            delta = weight_as_out_in(model.sites.module("mlp.down", layer)).detach() - before
        mine = [index for at, index in neurons if at == layer]
        others = [index for index in range(delta.shape[1]) if index not in mine]
        assert not delta[:, others].any()
        for index in mine:
            sign = float(inputs[point][0, -1, index].sign())
            assert torch.allclose(delta[:, index], sign * change, atol=1e-5)


def test_neurons_write_the_change_in_proportion_to_their_activations():
    """What reaches the top layer's MLP is unchanged, so its output moves by sum |w_i| times the change."""
    model, request = tiny.tiny_model("gptj"), tiny.requests(1)[0]
    top = model.num_layers - 1
    outcome = method("kn", preset="none", layers=[top], threshold=0.05).edit(model, [request])
    neurons = [index for _, index in outcome.diagnostics.facts["neurons"][request.id]]
    points = [Point("mlp.down", top, "input"), Point("mlp.down", top)]
    _, before = model.capture([request.prompt], points)
    with model.patched(outcome.patch):
        _, after = model.capture([request.prompt], points)
    weight = before[points[0]][0, -1, neurons].abs().sum()
    change = answer_change(model, request, KnowledgeNeuronsConfig())
    assert torch.allclose((after[points[1]] - before[points[1]])[0, -1], weight * change, rtol=1e-4, atol=1e-4)


def test_erasing_empties_the_columns():
    model, requests = tiny.tiny_model("gpt2"), tiny.requests(2)
    outcome = method("kn", preset="none", operation="erase").edit(model, requests)
    found = outcome.diagnostics.facts["neurons"]
    with model.patched(outcome.patch):
        for layer, index in found["fact-0"] + found["fact-1"]:
            assert weight_as_out_in(model.sites.module("mlp.down", layer))[:, index].abs().max() < 1e-6


def test_no_weight_no_change():
    model, request = tiny.tiny_model("gpt2"), tiny.requests(1)[0]
    before = model.score([request.prompt], [request.target_new])
    patch = method("kn", preset="none", old_weight=0.0, new_weight=0.0).edit(model, [request]).patch
    assert patch.touched()
    with model.patched(patch):
        assert model.score([request.prompt], [request.target_new]) == before


def test_facts_of_a_batch_do_not_see_each_other():
    model, requests = tiny.tiny_model("gptj"), tiny.requests(2)
    kn = method("kn", preset="none")
    alone = [kn.edit(model, [request]).patch for request in requests]
    together = kn.edit(model, requests).patch
    for name, delta in together.deltas.items():
        expected = sum(patch.deltas[name].dense() for patch in alone if name in patch.deltas)
        assert torch.allclose(delta.dense(), expected, atol=1e-5)


def test_a_fact_without_neurons_is_named():
    model = tiny.tiny_model("gpt2")
    with torch.no_grad():
        for layer in range(model.num_layers):
            for parameter in model.sites.module("mlp.down", layer).parameters():
                parameter.zero_()
    outcome = method("kn", preset="none").edit(model, tiny.requests(1))
    assert outcome.patch.is_empty()
    assert "No neuron stands out" in outcome.diagnostics.notes[0] and "fact-0" in outcome.diagnostics.notes[0]


def test_a_norm_behind_the_mlp_is_noted():
    outcome = method("kn", preset="none").edit(tiny.tiny_model("gemma2"), tiny.requests(1))
    assert "norm follows the MLP" in outcome.diagnostics.notes[0]


def test_probabilities_that_are_not_finite_are_an_error():
    model = tiny.tiny_model("gpt2")
    model.module.lm_head.weight.data.fill_(float("inf"))
    with pytest.raises(ModelError, match="finite"):
        method("kn", preset="none").edit(model, [EditRequest("The capital is", "Lyon", target_old="Paris")])
