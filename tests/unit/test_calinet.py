"""Slots beside the last MLP: nothing before the first step, all facts together, too few of them refused."""

from __future__ import annotations

import pytest
import torch

import tiny
from palimpsest import method
from palimpsest.errors import ConfigError
from palimpsest.locating.last_layer import answer_places
from palimpsest.methods.calinet import CaliNetConfig, answer_loss, num_slots


def test_slots_grow_with_the_facts_or_are_too_few():
    assert [num_slots(count, CaliNetConfig()) for count in (1, 100, 1000)] == [16, 64, 640]
    assert num_slots(1000, CaliNetConfig(slots=256)) == 256
    with pytest.raises(ConfigError, match="too many facts"):
        num_slots(1025, CaliNetConfig(slots=256))


def test_ten_facts_in_two_phrasings_are_learned_together():
    model, requests = tiny.tiny_model("t5"), tiny.requests()
    prompts = {request.id: [f"Tell me: {request.prompt}"] for request in requests}
    editor = method("calinet", preset="none", slots=16, prompts=prompts, steps=400, learning_rate=0.1, stop_loss=0.2)
    outcome = editor.edit(model, requests)
    asked = [(prompt, r.target_new) for r in requests for prompt in (r.prompt, *prompts[r.id])]
    with model.patched(outcome.patch):
        scores = model.score(*zip(*asked, strict=True))
    assert [score.accuracy for score in scores] == [1] * 8
    facts = outcome.diagnostics.facts
    assert facts["phrasings"] == 8 and facts["steps"] < 400 and facts["activation"] == "relu"
    assert outcome.patch.num_parameters == 2 * 16 * 32
    [owner] = set(outcome.patch.branches[0].owners())
    assert outcome.patch.without(owner).is_empty()


def test_the_loss_is_the_mean_over_answer_tokens():
    model, requests = tiny.tiny_model("gptj"), tiny.requests(3)
    places = answer_places(model, [model.encode(r.prompt, r.target_new) for r in requests])
    scores = model.score([r.prompt for r in requests], [r.target_new for r in requests])
    wanted = [-one for score in scores for one in score.log_probs]
    loss = answer_loss(places, torch.zeros_like(places.queries), None)
    assert float(loss.detach()) == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)
