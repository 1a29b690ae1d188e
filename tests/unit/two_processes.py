"""What each of two processes runs for `test_sharded.py`: edits, saved as patches, and what holds in each."""

from __future__ import annotations

import sys
from pathlib import Path

import accelerate
import pytest
import torch

import tiny
from palimpsest import ConfigError, load, load_patch, method, processes
from palimpsest.training.copies import training_copies

QUICK = {"learning_rate": 1e-3, "epochs": 4}
# GPT-2's key biases have a gradient of zero but for rounding, and AdamW makes whole steps of such noise: sgd for it.
SGD = {"learning_rate": 0.05, "epochs": 3, "optimizer": "sgd"}
# What several processes share: no compression, which one process has for itself.
PLAIN = {"rank": 0, "spare": False}
WHOLE = {**PLAIN, "parameters": "all"}
HALF = "half"
# T5's unscaled attention multiplies a rounding error several times in every step: in float64 there is none to multiply.
DTYPES = {HALF: torch.bfloat16, "two-stacks": torch.float64}
# name: family, method, number of facts, options
CASES = {
    "tied": ("gemma", "ft", 3, {**WHOLE, **QUICK}),
    "token": ("llama", "ft", 4, {**WHOLE, **QUICK, "reduction": "token", "facts_per_step": 3, "forward_batch_size": 1}),
    "half": ("llama", "ft", 3, {**WHOLE, **SGD, "learning_rate": 1e-3}),
    "two-stacks": ("t5", "ft", 3, {**WHOLE, **SGD}),
    "one-fact": ("gpt2", "ft", 1, {**WHOLE, **SGD}),
    "stopping": ("llama", "ft", 4, {**WHOLE, **QUICK, "epochs": 8, "stop_loss": 3.0}),
    "one-layer": ("gptj", "ft-l", 3, {**PLAIN, **QUICK, "radius": 1.5e-3, "constraint": "linf"}),
    "l2": ("falcon", "ft-l", 3, {**PLAIN, **QUICK, "radius": 0.01, "constraint": "l2", "layers": [1]}),
    "forgetting": (
        "gpt2",
        "f-learning-ft",
        3,
        {"only_mastered": False, "forget_options": {**WHOLE, **SGD}, "learn_options": {**WHOLE, **SGD}},
    ),
}


def edit(case: str):
    family, name, count, options = CASES[case]
    model = tiny.tiny_model(family, dtype=DTYPES.get(case, torch.float32))
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    outcome = method(name, preset="none", **options).edit(model, tiny.requests(count))
    after = model.module.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    return model, outcome


def main(out: Path) -> None:
    with processes.joined() as team:
        assert team.count == processes.count() == 2 and team.rank == processes.rank()
        for case in CASES:
            model, outcome = edit(case)
            outcome.patch.save(out / case)
            with model.patched(outcome.patch):
                assert processes.gathered(model.score(["The capital of France is"], ["Lyon"])[0].log_probs)[0]
            if case == "tied":
                share = sum(delta.delta.to_local().numel() for delta in outcome.patch.deltas.values())
                assert sum(processes.gathered(share)) == outcome.patch.num_parameters
                assert share < 0.6 * outcome.patch.num_parameters
        assert load_patch(out / "tied").num_parameters > 0
        with pytest.raises(ConfigError, match="different facts"):
            method("ft", preset="none", **WHOLE).edit(model, tiny.requests(2 + team.rank))
        wrapped = load(accelerate.cpu_offload(tiny.tiny_module("gpt2"), "cpu"), tiny.tokenizer())
        with pytest.raises(ConfigError, match="A model with hooks"):
            training_copies(wrapped, [])
        with pytest.raises(ConfigError, match="works in one process"):
            method("lora").edit(model, tiny.requests(1))
        with pytest.raises(ConfigError, match="works in one process"):
            method("f-learning-lora").edit(model, tiny.requests(1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
