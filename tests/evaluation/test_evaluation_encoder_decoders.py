"""Evaluation of encoder-decoders: the same protocols and scorings, and what perplexity is for them."""

import math
from typing import Any

import pytest
import torch

import tiny
from evaluation.head_editor import SENTENCES, facts
from palimpsest import Batch, EditRequest, Probe, Sequential, Single, evaluate, method
from palimpsest.answers import is_exact
from palimpsest.evaluation import DEFAULT_SCORINGS, load_run
from palimpsest.evaluation.drift import perplexity
from palimpsest.evaluation.examiner import room_for
from palimpsest.models.generation import written_answers


def by_hand(model: Any, prompt: str, text: str) -> tuple[list[bool], list[int], float]:
    """Matches, predictions and mean log-probability from one unpadded pass of the transformers model on labels."""
    inputs = model.tokenizer(prompt, return_tensors="pt")
    labels = model.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        output = model.module(input_ids=inputs["input_ids"], labels=labels)
    predicted = output.logits[0].argmax(-1)
    return (labels[0] == predicted).tolist(), predicted.tolist(), -float(output.loss)


@pytest.mark.parametrize("family", tiny.ENCODER_DECODERS)
def test_every_scoring_is_what_the_bare_model_gives(family: str) -> None:
    model, data = tiny.tiny_model(family), facts(2)
    editor = method("ft", preset="none", parameters="all", spare=False, learning_rate=5e-3, epochs=8, append_eos=True)
    record = evaluate(model, editor, data, protocol=Batch(), max_new_tokens=6)
    assert record.status == "ok" and record.counts["failed"] == 0
    assert {result.outcome("generate") for result in record.probes} == {"scored"}
    before = {(r.prompt, r.expected): by_hand(model, r.prompt, r.expected) for r in record.probes if r.expected}
    with model.patched(editor.edit(model, data.requests).patch):
        for result in record.probes:
            [after] = written_answers(model, [result.prompt], room_for(model, data.requests, 6))
            assert result.after == after
            if result.expected is None:
                continue
            matches, predicted, likelihood = by_hand(model, result.prompt, result.expected)
            if result.kind.startswith("locality"):
                kept = [a == b for a, b in zip(before[result.prompt, result.expected][1], predicted, strict=True)]
                assert result.values["teacher_forced"] == pytest.approx(sum(kept) / len(kept))
            else:
                assert result.values["teacher_forced"] == pytest.approx(sum(matches) / len(matches))
                assert result.values["exact"] == float(is_exact(after, result.expected))
            if result.kind in ("reliability", "generality"):
                old = by_hand(model, result.prompt, result.target_old or "")[2]
                assert result.values["log_prob"] == float(likelihood > old)


@pytest.mark.parametrize("protocol", [Single(), Batch(2), Sequential(checkpoints=[1, 3])])
def test_every_protocol_runs_and_leaves_the_model_alone(protocol: Any, tmp_path: Any) -> None:
    model = tiny.tiny_model("t5-gated")
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    editor = method("ft", preset="none", parameters="all", spare=False, learning_rate=5e-3, epochs=40, append_eos=True)
    record = evaluate(model, editor, facts(3), protocol=protocol, out=tmp_path / "run", max_new_tokens=6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert record.status == "ok" and set(record.scores) == set(DEFAULT_SCORINGS)
    assert (record.immediate or record.scores)["generate"]["reliability"].mean == 1.0
    assert record.perplexity["before"] == pytest.approx(perplexity(model, SENTENCES), rel=1e-6)
    assert record.perplexity["after"] != record.perplexity["before"]
    assert any("second half" in note for note in record.notes)
    assert load_run(tmp_path / "run").notes == record.notes


@pytest.mark.parametrize("family", tiny.ENCODER_DECODERS)
def test_perplexity_is_that_of_second_halves(family: str) -> None:
    model = tiny.tiny_model(family)
    halves = [("People who lived", "in Rome."), ("It was written", "long ago."), ("Who wrote", "it?")]
    total, count = 0.0, 0
    for first, second in halves:
        _, predicted, likelihood = by_hand(model, first, second)
        total, count = total - likelihood * len(predicted), count + len(predicted)
    assert perplexity(model, [*SENTENCES, " O "]) == pytest.approx(math.exp(total / count), rel=1e-5)
    assert perplexity(model, ["O"]) is None
    # Parted at the last space where none follows the middle, and in the middle where there is none at all.
    for text, first, second in (("in Rome", "in", "Rome"), ("Oslo ", "Os", "lo")):
        assert perplexity(model, [text]) == pytest.approx(math.exp(-by_hand(model, first, second)[2]), rel=1e-5)


def test_an_answer_of_any_length_fits_behind_a_prompt_that_fills_the_encoder() -> None:
    model = tiny.tiny_model("bart")
    full, longer = " ".join(["Oslo"] * 127), " ".join(["Oslo"] * 128)
    request = EditRequest(
        "The river is", "Rhine", probes=(Probe("generality", full, "x"), Probe("generality", longer, "x"))
    )
    editor = method("ft", preset="none", parameters="all", spare=False, epochs=1)
    record = evaluate(model, editor, [request], max_new_tokens=100)
    assert [result.outcome("generate") for result in record.probes] == ["scored", "scored", "failed"]
