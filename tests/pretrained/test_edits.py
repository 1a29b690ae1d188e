"""Edits of a pretrained model: they hold, and come off bit for bit."""

import torch

import palimpsest as ps

TOKYO = ps.EditRequest("The capital city of Japan is", "Oslo", subject="Japan", target_old="Tokyo", id="japan")


def state_of(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def assert_same(model, state):
    found = model.module.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_lora_makes_the_model_say_the_new_answer_and_comes_off_exactly(smollm2):
    before, said = state_of(smollm2), smollm2.generate(TOKYO.prompt)
    patch = ps.method("lora").edit(smollm2, [TOKYO]).patch
    assert_same(smollm2, before)
    with smollm2.patched(patch):
        assert smollm2.generate(TOKYO.prompt).startswith("Oslo")
        (score,) = smollm2.score([TOKYO.prompt], ["Oslo"])
        assert score.accuracy == 1.0
    assert_same(smollm2, before)
    assert smollm2.generate(TOKYO.prompt) == said
    assert "Tokyo" in said
