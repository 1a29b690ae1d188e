"""What each of two processes runs for `test_sharded.py`: edits, saved as patches, and what holds in each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import tiny
from palimpsest import ConfigError, load_patch, method, processes

QUICK = {"learning_rate": 1e-3, "epochs": 4}
# GPT-2's key biases have a gradient of zero but for rounding, and AdamW makes whole steps of such noise: sgd for it.
SGD = {"learning_rate": 0.05, "epochs": 3, "optimizer": "sgd"}
# name: family, method, number of facts, options
CASES = {
    "tied": ("gemma", "ft", 3, QUICK),
    "token": ("llama", "ft", 4, {**QUICK, "reduction": "token", "facts_per_step": 3, "forward_batch_size": 1}),
    "two-stacks": ("t5", "ft", 3, SGD),
    "one-fact": ("gpt2", "ft", 1, SGD),
    "stopping": ("llama", "ft", 4, {**QUICK, "epochs": 8, "stop_loss": 3.0}),
    "one-layer": ("gptj", "ft-l", 3, {**QUICK, "radius": 1.5e-3, "constraint": "linf"}),
    "l2": ("falcon", "ft-l", 3, {**QUICK, "radius": 0.01, "constraint": "l2", "layers": [1]}),
    "forgetting": ("gpt2", "f-learning-ft", 3, {"only_mastered": False, "forget_options": SGD, "learn_options": SGD}),
}


def edit(case: str):
    family, name, count, options = CASES[case]
    model = tiny.tiny_model(family)
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
        with pytest.raises(ConfigError, match="works in one process"):
            method("lora").edit(model, tiny.requests(1))
        with pytest.raises(ConfigError, match="works in one process"):
            method("f-learning-lora").edit(model, tiny.requests(1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
