"""On a CUDA device: the laws that could break there, and one edit at a real model's dimensions."""

from __future__ import annotations

import pytest
import torch

import tiny
from palimpsest import load, load_patch, method
from palimpsest.models.hooks import Point
from palimpsest.solve.factorised import Factorised
from palimpsest.solve.least_squares import ridge
from palimpsest.statistics.collecting import collect
from palimpsest.statistics.text import GivenText

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["ft", "locft", "lora", "f-learning-lora-ft"])
def test_edits_are_exact_on_the_device(name, dtype, tmp_path):
    model = load(tiny.tiny_module("gptj").to("cuda", dtype), tiny.tokenizer())
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    learn = {"learning_rate": 1e-2, "epochs": 20}
    options = {"learn_options": learn, "only_mastered": False, "rate": 0.1} if name.startswith("f-") else learn
    request = tiny.requests(1)[0]
    unedited = model.score([request.prompt], [request.target_new])[0].log_prob
    patch = method(name, preset="none", **options).edit(model, [request]).patch
    patch.save(tmp_path / "patch")
    with model.patched(load_patch(tmp_path / "patch")):
        assert model.score([request.prompt], [request.target_new])[0].log_prob > unedited + 1
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())


def test_the_device_agrees_with_the_processor():
    prompts, targets = [request.prompt for request in tiny.requests()], [r.target_new for r in tiny.requests()]
    here = load(tiny.tiny_module("llama"), tiny.tokenizer()).score(prompts, targets)
    there = load(tiny.tiny_module("llama").to("cuda"), tiny.tokenizer()).score(prompts, targets)
    assert [s.log_prob for s in there] == pytest.approx([s.log_prob for s in here], abs=1e-3)


def test_second_moments_and_solves_agree_with_the_processor():
    facts = [f"{request.prompt} {request.target_old}" for request in tiny.requests()]
    text = GivenText("lines", [f"{fact}, {years} years." for years in range(200) for fact in facts])
    point = Point("mlp.down", 1, "input")
    found = []
    for device in ("cpu", "cuda"):
        model = load(tiny.tiny_module("llama").to(device), tiny.tokenizer())
        moment = collect(model, [point], text, max_tokens=2000)[point].moment
        assert moment.count == 2000 and moment.sum().device.type == "cpu"
        _, keys = model.capture(["Anna Keller was born in"], [point])
        factor = Factorised(moment.mean().to(device), damping=1e-3)
        key, residual = keys[point][0, -1:], torch.ones(1, 32, device=device)
        found.append((moment.mean(), ridge(factor, key, residual, strength=1.0).dense().cpu()))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)


def test_a_world_model_is_trained_on_the_device(tmp_path):
    from palimpsest.teaching.training import DecoderRecipe, train
    from palimpsest.world import build

    recipe = DecoderRecipe(width=32, layers=1, heads=2, vocabulary=500, epochs=1, device="cuda")
    result = train(tmp_path / "model", recipe=recipe, knowledge=build(0, people=50), progress=False, card=False)
    assert result.last_loss < result.first_loss
