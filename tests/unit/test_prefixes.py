"""Prompts that begin alike: from one cache of their beginning as from whole passes, in every family of decoders."""

import pytest

import tiny
from palimpsest.models.editable import EditableModel
from palimpsest.models.routing import prefixes

START = "New Fact: The capital of France is Lyon Prompt: The river of Rome is long ago Prompt: The capital of Rome is "
PROMPTS = [START + end for end in ("The capital of France is", "Who wrote", "The river of Vienna is", "Lima")]
# One that begins otherwise and one that is short are read by themselves, between the others.
PROMPTS[1:1] = ["The river of Rome is", "In"]
TARGETS = ["Lyon", "the Rhine", "Rome", "people of Lima", "Oslo", "Vienna"]

# Rotary, learned and linear-bias positions, and a window that is shorter than the beginning; the others are slow.
AT_ONCE = ("gptj", "gpt2", "bloom", "gpt_neo")
ALL = [
    family if family in AT_ONCE else pytest.param(family, marks=pytest.mark.slow)
    for family in (*tiny.FAMILIES, *tiny.MIXTURES)
]


@pytest.mark.parametrize("family", ALL)
def test_answers_are_those_of_whole_passes(family, monkeypatch):
    model = tiny.tiny_model(family)
    whole, texts = model.score(PROMPTS, TARGETS), model.generate(PROMPTS, max_new_tokens=6)
    whole_texts = model.generate(PROMPTS, max_new_tokens=6, until=())
    read, own = [], EditableModel.forward

    def forward(self, batch, **more):
        if more.get("use_cache"):
            read.append(batch.input_ids)
        return own(self, batch, **more)

    monkeypatch.setattr(EditableModel, "forward", forward)
    found = prefixes.score(model, PROMPTS, TARGETS, forward_batch_size=3)
    assert [one.log_probs for one in found] == [pytest.approx(one.log_probs, abs=1e-5) for one in whole]
    assert prefixes.generate(model, PROMPTS, 6, None, forward_batch_size=3) == texts
    assert prefixes.generate(model, PROMPTS, 6, (), forward_batch_size=3) == whole_texts
    assert [len(ids) for ids in read] == [1, 1, 1] and read[0].shape[1] > 16
