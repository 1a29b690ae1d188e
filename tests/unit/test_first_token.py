"""Subjects at the attention sink, and what is looked at before an edit is handed over."""

from __future__ import annotations

import pytest
import torch

import palimpsest as ps
import tiny
from palimpsest.locating.first_token import PROMPT_ALONE, apart_from_sink
from palimpsest.locating.subject_vectors import subject_rows, subject_vectors
from palimpsest.methods.catalogue import method
from palimpsest.methods.inspection import text_change
from palimpsest.methods.rome import SMALLEST_COSINE
from palimpsest.models import subject_last_token
from palimpsest.models.hooks import Point
from palimpsest.requests import EditRequest
from palimpsest.solve.factorised import Factorised
from palimpsest.solve.rank_one import cosine, rank_one
from palimpsest.solve.solution import RELATIVE_STRENGTH
from palimpsest.statistics.subspaces import decompose

TEMPLATES = ("{}", "It was long ago. {}", "We know this: {}")
REQUEST = EditRequest("The has a capital and it is", subject="The", target_new="Rome", id="one")
KEY = Point("mlp.down", 1, "input")


@pytest.fixture(scope="module")
def sunk():
    """A tiny model whose first place drowns whatever stands there."""
    model = tiny.tiny_model("gpt2")
    with torch.no_grad():
        noise = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(0))
        model.module.transformer.wpe.weight[0] += 30 * noise
    return model


@pytest.fixture(scope="module")
def sunk_twice(sunk):
    """One whose third place is a sink as well."""
    model = tiny.tiny_model("gpt2")
    with torch.no_grad():
        places, of_sunk = model.module.transformer.wpe.weight, sunk.module.transformer.wpe.weight
        places[2] += of_sunk[0] - places[0]
        places[0] = of_sunk[0]
    return model


def options(name, **more):
    shared = {"layers": [1], "contexts": {"given": list(TEMPLATES[1:])}, **tiny.second_moments(damping=1e-3)}
    strength = {"strength": 1e-3} if name in ("memit", "emmet", "pmet") else {}
    return {**shared, **strength, **more}


def test_a_subject_at_the_sink_is_edited_in_two_places(sunk):
    other = EditRequest("The capital of Spain is", subject="Spain", target_new="Oslo", id="two")
    parts, record = apart_from_sink(sunk, [REQUEST, other], TEMPLATES, 1)
    assert [part.id for part in parts] == ["one", "one" + PROMPT_ALONE, "two"]
    assert [part.prompt for part in parts] == ["It was long ago. " + REQUEST.prompt, REQUEST.prompt, other.prompt]
    assert [part.subject for part in parts] == ["The", "The h", "Spain"]
    found = record["edits"]["one"]
    assert list(record["edits"]) == ["one"] and found["like_others"] > 0.95 > found["like_itself"]
    assert not record["unwritten"]


def test_a_token_that_holds_more_than_the_subject_is_not_what_follows_it(sunk):
    """As in Chinese, where the subject and what follows it are one token: that one is the sink."""
    request = EditRequest(REQUEST.prompt, subject="Th", target_new="Rome", id="one")
    parts, record = apart_from_sink(sunk, [request], TEMPLATES, 1)
    assert [part.subject for part in parts] == ["Th", "The h"] and not record["unwritten"]
    places = [subject_last_token(sunk.tokenizer, part, chat=None) for part in parts]
    assert min(places) > 0
    (alone,) = [EditRequest("The", subject="Th", target_new="Rome", id="x")]
    assert apart_from_sink(sunk, [alone], ["{}"], 1)[1]["unwritten"] == ["x"]


@pytest.mark.parametrize("subject", ["The", "The h"])
def test_a_sink_behind_the_first_place_is_one_too(sunk_twice, subject):
    request = EditRequest(REQUEST.prompt, subject=subject, target_new="Rome", id="one")
    parts, record = apart_from_sink(sunk_twice, [request], TEMPLATES, 1)
    assert list(record["edits"]) == ["one"] and [part.id for part in parts] == ["one", "one" + PROMPT_ALONE]
    # The prompt alone is written at neither of the two.
    assert subject_last_token(sunk_twice.tokenizer, parts[1], chat=None) == 3
    nothing_left = EditRequest("The h", subject=subject, target_new="Rome", id="x")
    assert apart_from_sink(sunk_twice, [nothing_left], ["{}"], 1)[1]["unwritten"] == ["x"]


def test_a_gate_for_the_prompt_alone_stays_shut_behind_other_texts(sunk):
    options = {"layer": 1, "text": tiny.text_file(), "max_tokens": 256, "contexts": {"given": list(TEMPLATES[1:])}}
    outcome = method("subject-neurons", preset="none", **options).edit(sunk, [REQUEST])
    (branch,) = outcome.patch.branches
    assert set(branch.edits) == {"one"}
    behind, alone = outcome.diagnostics.facts["opened"]
    assert len(behind) == 3 and len(alone) == 1 and min(*behind, *alone) > 0.9
    # The gate's two neurons are the second and the fourth of the branch.
    parts, _ = apart_from_sink(sunk, [REQUEST], TEMPLATES, 1)
    reads = Point("mlp.up", 1, "input")
    read = subject_vectors(sunk, subject_rows(sunk, parts[1:], TEMPLATES), [reads])[reads][0]
    opened = (read @ branch.keys[1] + branch.biases[1]).clamp(0) - (read @ branch.keys[3] + branch.biases[3]).clamp(0)
    assert opened[0] > 0.9 and opened[1:].max() < 0.1


def test_where_the_first_place_is_like_any_other_nothing_changes():
    model = tiny.tiny_model("gptj")
    requests = [REQUEST]
    assert apart_from_sink(model, requests, TEMPLATES, 1) == (requests, {})


def test_a_prompt_that_is_its_subject_alone_is_written_behind_contexts(sunk):
    parts, record = apart_from_sink(sunk, [EditRequest("The", subject="The", target_new="Rome", id="x")], ["{}"], 1)
    assert [part.prompt for part in parts] == ["It is said that The"] and record["unwritten"] == ["x"]


@pytest.mark.parametrize("name", ["rome", "r-rome", "memit", "emmet", "pmet", "alphaedit"])
def test_both_places_are_written_and_the_sink_stays(sunk, name):
    outcome = method(name, preset="none", **options(name)).edit(sunk, [REQUEST])
    assert any("attention sink" in note for note in outcome.diagnostics.notes)
    # Any text begins at the sink: what is added for its key is far less than for the keys that are written.
    delta = next(iter(outcome.patch.deltas.values())).dense()
    parts, _ = apart_from_sink(sunk, [REQUEST], TEMPLATES, 1)
    keys = subject_vectors(sunk, subject_rows(sunk, [REQUEST, *parts]), [KEY])[KEY][:, 0]
    sink, behind, _ = (keys.to(delta) @ delta).norm(dim=1) / keys.norm(dim=1)
    assert sink < 0.2 * behind
    searched = [edit for search in outcome.diagnostics.facts["targets"] for edit in search["edits"]]
    assert searched == ["one", "one" + PROMPT_ALONE]


def test_a_tiny_divisor_is_not_divided_by():
    model = tiny.tiny_model("gptj")
    # Behind these contexts the mean key is far from the prompt's own, in the metric of this text.
    editor = method("rome", preset="none", **options("rome"))
    request = tiny.requests(1)[0]
    outcome = editor.edit(model, [request])
    factor = editor.metrics(editor.resolve(model)[0]).factors(model, [1])[1].value
    key = torch.randn(2, factor.width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    white = factor.whiten(key)
    # A second key all but orthogonal to the first in that metric.
    apart = white[1] - (white[1] @ white[0]) / white[0].square().sum() * white[0] + 1e-4 * white[0]
    second = factor.lower @ apart
    assert abs(cosine(factor, key[0], second)) < SMALLEST_COSINE
    assert (
        rank_one(factor, key[0], torch.ones(4), applied_to=second).norm()
        > 100 * rank_one(factor, key[0], torch.ones(4)).norm()
    )
    assert not any("as r-rome does" in note for note in outcome.diagnostics.notes)


def test_the_change_of_ordinary_text_is_what_it_is_for_the_texts_keys():
    model = tiny.tiny_model("gptj")
    keys = torch.randn(4000, 128, generator=torch.Generator().manual_seed(2)).double()
    keys[:, :20] *= 5
    moment = keys.T @ keys / len(keys)
    factor = Factorised(moment)
    solution = rank_one(factor, keys[0], torch.ones(32))
    weight = model.sites.module("mlp.down", 1).weight.detach().double()
    added, written = keys @ solution.dense().T, keys @ weight.T
    expected = float(added.norm() / written.norm())
    for metric in (factor, decompose(moment)):
        assert text_change(model, 1, [solution], metric) == pytest.approx(expected, rel=0.25)


def test_what_the_prompts_do_not_say_is_noted():
    model = tiny.tiny_model("gptj")
    weak = method("memit", preset="none", **{**options("memit"), "strength": 1e9})
    outcome = weak.edit(model, tiny.requests(2))
    assert outcome.diagnostics.facts["checked"]["hold"] == 0
    assert sum("do not hold after the edit" in note for note in outcome.diagnostics.notes) == 1
    said = method("rome").edit(ps.load("world"), [ps.dataset("world-counterfact").sample(1).requests[0]])
    assert said.diagnostics.facts["checked"]["hold"] == 1


def test_a_change_that_drowns_the_text_is_noted(monkeypatch):
    monkeypatch.setattr("palimpsest.methods.inspection.LARGEST_CHANGE", 1e-6)
    outcome = method("rome", preset="none", **options("rome")).edit(tiny.tiny_model("gptj"), tiny.requests(1))
    assert any("ordinary text changes by" in note for note in outcome.diagnostics.notes)


def test_kept_keys_weigh_in_the_metric():
    generator = torch.Generator().manual_seed(5)
    keys = torch.randn(500, 24, generator=generator, dtype=torch.float64)
    moment, kept, key = keys.T @ keys / 500, keys[:3] * 4, keys[7]
    factor, residual = Factorised(moment), torch.ones(5, dtype=torch.float64)
    found = rank_one(factor, key, residual, kept=kept).dense()
    metric = moment + kept.T @ kept / (RELATIVE_STRENGTH * 24 * 3)
    direction = torch.linalg.solve(metric, key)
    torch.testing.assert_close(found, torch.outer(residual, direction) / (direction @ key), rtol=1e-9, atol=1e-12)
    assert float((found @ kept.T).norm()) < 0.3 * float((rank_one(factor, key, residual).dense() @ kept.T).norm())
