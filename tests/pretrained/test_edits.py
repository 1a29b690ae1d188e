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


def test_a_sink_behind_the_first_token_is_not_written_at(smollm2):
    """`Columbo` is two tokens here, of which the second takes attention as first tokens do."""
    edit = ps.EditRequest("Columbo was originally aired on", "HBO", subject="Columbo", id="columbo")
    others = ["The capital of Japan is", "Water is made of", "Mozart was a", "Microsoft was founded by"]
    before = smollm2.generate(others, max_new_tokens=6)
    outcome = ps.method("subject-neurons", text="world").edit(smollm2, [edit])
    assert list(outcome.diagnostics.facts["first_token"]["edits"]) == ["columbo"]
    with smollm2.patched(outcome.patch):
        assert smollm2.generate(edit.prompt).startswith("HBO")
        assert smollm2.generate(others, max_new_tokens=6) == before
