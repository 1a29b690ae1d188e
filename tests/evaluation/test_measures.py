"""What is measured besides the probes, against sums and counts made here."""

from __future__ import annotations

import pytest
import torch

import tiny
from evaluation.head_editor import HeadEditor, facts
from palimpsest import Batch, ConfigError, Sequential, evaluate, load, method
from palimpsest.evaluation import find_measure, load_run, measures

# Where a block's parameters lie, by the place that measures give it.
PLACES = {
    "gpt2": {f"{part}.{n}": f"transformer.h.{n}.{part}." for part in ("attn", "mlp") for n in range(2)},
    "t5": {
        f"{stack}.{part}.{n}": f"{stack}.block.{n}.layer.{index}.{name}."
        for stack in ("encoder", "decoder")
        for part, (index, name) in {
            "attn": (0, "SelfAttention"),
            "mlp": (1 if stack == "encoder" else 2, "DenseReluDense"),
        }.items()
        for n in range(2)
    },
}


@pytest.mark.parametrize("family", PLACES)
@torch.no_grad()
def test_distances_are_those_of_the_weights(family):
    model = tiny.tiny_model(family)
    with torch.enable_grad():
        patch = (
            method("ft", preset="none", parameters="all", spare=False, epochs=2, learning_rate=1e-3)
            .edit(model, tiny.requests(1))
            .patch
        )
    found = find_measure("weight-distance")(model, patch, [])
    before = {name: weight.clone() for name, weight in model.module.named_parameters()}
    with model.patched(patch):
        squares = {name: float((one - before[name]).square().sum()) for name, one in model.module.named_parameters()}
    for place, path in PLACES[family].items():
        # T5 keeps a bias of positions, which is no matrix of attention, beside those of its first layer.
        own = [name for name in squares if name.startswith(path) and "relative" not in name]
        moved = sum(squares[name] for name in own)
        assert found[f"weight_distance.{place}"] == pytest.approx(moved**0.5, rel=1e-3)
    assert sum(value**2 for value in found.values()) ** 0.5 == pytest.approx(patch.norm(), rel=1e-6)
    assert find_measure("weight-distance")(model, None, []) == {}


def test_a_run_keeps_measures_before_and_after_and_reads_them_again(tmp_path, monkeypatch):
    model, asked = tiny.tiny_model("gpt2"), []

    def counted(_model, patch, prompts):
        asked.append((patch is not None, len(prompts)))
        return {"count": float(len(asked)), "only_after": 1.0} if patch else {"count": float(len(asked))}

    monkeypatch.setattr("palimpsest.evaluation.runner.find_measure", {"count": counted}.__getitem__)
    record = evaluate(model, HeadEditor(), facts(4), protocol=Batch(2), measures=["count"], out=tmp_path / "run")
    assert asked == [(False, 4), (True, 2), (True, 2)]
    assert record.measures == {"count": {"before": 1.0, "after": 2.5}, "only_after": {"before": None, "after": 1.0}}
    assert record.to_json()["measures"] == load_run(tmp_path / "run").measures == record.measures
    asked.clear()
    record = evaluate(model, HeadEditor(), facts(3), protocol=Sequential((1, 3)), measures=["count"])
    assert record.measures["count"] == {"before": 1.0, "after": 3.0}, "the last checkpoint's"


def test_seconds_a_token(monkeypatch):
    model, clock = tiny.tiny_model("gpt2"), iter(range(100))
    monkeypatch.setattr(measures, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(model, "generate", lambda prompt, max_new_tokens: "Rome Oslo")
    tokens = len(model.tokenizer("Rome Oslo", add_special_tokens=False)["input_ids"])
    assert find_measure("token-time")(model, None, ["a", "b"]) == {"token_seconds": 1 / (2 * tokens)}


def test_a_task_is_asked_with_its_limit(monkeypatch):
    asked = []

    def run_tasks(model, names, *, limit):
        asked.append((model, names, limit))
        return {"gsm8k": {"acc": 0.5}}

    monkeypatch.setattr("palimpsest.evaluation.other_tasks.run_tasks", run_tasks)
    assert find_measure("task:gsm8k@5")("model", None, []) == {"task.gsm8k.acc": 0.5}
    find_measure("task:mmlu")("model", None, [])
    assert asked == [("model", ["gsm8k"], 5), ("model", ["mmlu"], None)]


@pytest.mark.parametrize(
    ("name", "message"), [("token-tme", "token-time"), ("task:", "no task"), ("task:x@0", "no task")]
)
def test_unknown_measures(name, message):
    with pytest.raises(ConfigError, match=message):
        find_measure(name)


def test_what_training_took_is_in_the_record_of_a_trained_method():
    model = load("world")
    cost = method("mend").training_cost(model)
    assert cost["seconds"] > 0
    assert cost["num_parameters"] > 1000
    assert method("mend").training_cost(tiny.tiny_model("gpt2")) == {}
