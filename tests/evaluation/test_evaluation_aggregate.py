"""Intervals against numbers worked out by hand, and perplexity against the library's own loss."""

import math

import pytest
import torch

import tiny
from palimpsest.evaluation import ProbeResult, aggregate, drift


def test_wilson_by_hand() -> None:
    # 20 of 20: centre (1 + z2/40) / (1 + z2/20), lower bound n / (n + z2) = 20 / 23.8415.
    assert aggregate.wilson(1.0, 20) == pytest.approx((20 / (20 + 1.959964**2), 1.0), abs=1e-6)
    # 8 of 10, from the textbook formula.
    z2 = 1.959964**2
    centre, half = (0.8 + z2 / 20) / (1 + z2 / 10), math.sqrt(z2) * math.sqrt(0.016 + z2 / 400) / (1 + z2 / 10)
    assert aggregate.wilson(0.8, 10) == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert aggregate.wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_effective_n_by_hand() -> None:
    # Independent: every value its own edit. The clustered variance is the usual one, to the last digit.
    assert aggregate.effective_n([1, 0, 1, 1], ["a", "b", "c", "d"]) == pytest.approx(4)
    # Four edits of two probes that agree. Mean 1/2; squares sum to 8/4 = 2, so the independent variance is
    # 2 / 7 / 8 = 1/28. Residuals of edits are +-1, so the clustered one is 4/3 * 4 / 64 = 1/12. Effect 28/12.
    values, clusters = [1, 1, 1, 1, 0, 0, 0, 0], ["a", "a", "b", "b", "c", "c", "d", "d"]
    assert aggregate.effective_n(values, clusters) == pytest.approx(8 * 12 / 28)
    # Edits that all have the same mean do not give more than independent probes would.
    assert aggregate.effective_n([1, 0, 1, 0], ["a", "a", "b", "b"]) == 4
    # One edit is one observation, and so is each edit when nothing varies.
    assert aggregate.effective_n([1, 0, 1], ["a", "a", "a"]) == 1
    assert aggregate.effective_n([1.0] * 30, [str(i // 10) for i in range(30)]) == 3


def test_estimate_is_a_mean_over_probes_with_a_wide_interval_where_little_is_known() -> None:
    uneven = aggregate.estimate([1, 1, 1, 0], ["a", "a", "a", "b"])
    assert (uneven.mean, uneven.n) == (0.75, 4)
    lone = aggregate.estimate([1.0] * 10, ["a"] * 10)
    assert (lone.low, lone.high) == pytest.approx((1 / (1 + aggregate.Z**2), 1.0))
    twenty = aggregate.estimate([1.0] * 20, [str(i) for i in range(20)])
    assert twenty.low == pytest.approx(0.8389, abs=1e-4)


def result(kind: str, edit: str, value: float | None, **options: object) -> ProbeResult:
    fields = {"prompt": "p", "target_new": "t", "values": {"generate": value}, **options}
    return ProbeResult(edit_id=edit, kind=kind, **fields)


def test_scores_counts_and_reasons() -> None:
    results = [
        result("reliability", "a", 1.0, old_answer={"generate": 0.0}),
        result("reliability", "b", 0.0, old_answer={"generate": 1.0}),
        result("generality", "b", 0.0, old_answer={"generate": 1.0}),
        result("locality.namesake", "a", None, is_left_out=True, reasons={"generate": "left out: x"}),
        result("locality.namesake", "b", 1.0),
        result("portability.one_hop", "a", None, reasons={"generate": "why"}),
        result("portability.one_hop", "b", None, is_failed=True, reasons={"generate": "broke"}),
    ]
    scores = aggregate.scores(results, ["generate"])["generate"]
    assert list(scores) == ["reliability", "generality", "locality.namesake", "old_answer_rate"]
    assert (scores["reliability"].mean, scores["reliability"].n) == (0.5, 2)
    assert scores["old_answer_rate"].mean == pytest.approx(2 / 3)
    assert aggregate.counts(results, ["generate"]) == {"scored": 4, "unscored": 1, "failed": 1, "left_out": 1}
    assert aggregate.reasons(results, ["generate"])["generate"]["portability.one_hop"] == {"why": 1, "broke": 1}


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_perplexity_is_token_weighted_and_independent_of_batching(family: str) -> None:
    model = tiny.tiny_model(family)
    texts = ["People who lived in Rome.", "It was written long ago by people who lived in Oslo and Lima.", "Who?", "x"]
    total, count = 0.0, 0
    for text in texts:
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
        if ids.shape[1] > 1:
            with torch.no_grad():
                total += float(model.module(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    for size in (1, 2, 64):
        found = drift.perplexity(model, texts, forward_batch_size=size)
        assert found == pytest.approx(math.exp(total / count), rel=1e-4)
    assert drift.perplexity(model, []) is None
    assert len(drift.neutral_sentences(["a", " "] * 100)) == drift.MAX_SENTENCES


def test_perplexity_of_a_broken_model_is_none() -> None:
    model = tiny.tiny_model("gptj")
    with torch.no_grad():
        model.module.lm_head.weight.fill_(float("nan"))
    assert drift.perplexity(model, ["People who lived in Rome."]) is None
