"""ROME, R-ROME, MEMIT, EMMET and PMET against the papers' formulas, written plainly in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

import palimpsest as ps
import tiny
from palimpsest import ConfigError, DataError, EditRequest, ModelError, load, method
from palimpsest.locating.target_vector import TargetOptions, find_target_vectors
from palimpsest.methods import rome
from palimpsest.models.hooks import Point
from palimpsest.models.sites.linear import weight_as_out_in
from palimpsest.models.sites.mixtures import MIXTURE
from palimpsest.models.tokens import subject_last_token

TEMPLATES = ("{}", "It was written long ago. {}", "Rome. {}")
PROMPT_ALONE = {"given": []}
SEARCH = {"search": "adam", "steps": 5}
FAMILIES = ("gpt2", "gptj", "llama")
TOLERANCE = 1e-4
"""Rotations and norms are computed in single precision, whatever the weights are in, and patches are kept in it."""


def make(name, **options):
    shared = {"layers": [1], "contexts": {"given": list(TEMPLATES[1:])}, "targets": SEARCH}
    shared |= {"search_in": "all-contexts", **tiny.second_moments()}
    return method(name, preset="none", **{**shared, **options})


def exact(family="gptj"):
    # Beside padding, Gemma 2's attention is not finite in double precision.
    return tiny.tiny_model(family, dtype=torch.float32 if family == "gemma2" else torch.float64)


def module(model, layer):
    return model.sites.module("mlp.down", layer)


def dense(model, patch, layer):
    """A patch's change of one layer, (out, in)."""
    delta = patch.deltas[model.sites.parameter_name("mlp.down", layer)].dense().double()
    return delta.t() if delta.shape != weight_as_out_in(module(model, layer)).shape else delta


def is_close(found, expected, tolerance=TOLERANCE):
    return bool((found - expected).norm() <= tolerance * expected.norm())


def at_subject(model, request, point, template="{}"):
    text = template.replace("{}", request.prompt)
    _, found = model.capture([text], [point])
    placed = EditRequest(text, subject=request.subject, target_new="x")
    column = subject_last_token(model.tokenizer, placed, chat=None)
    return found[point][0, column].detach().double()


def in_contexts(model, request, point, templates=TEMPLATES):
    return torch.stack([at_subject(model, request, point, template) for template in templates])


@cache
def moment(family, layer):
    """E[k k^T] over the first 1,024 tokens of the text, one row after another."""
    model = exact(family)
    keys, left, point = [], tiny.statistics()["max_tokens"], Point("mlp.down", layer, "input")
    for text in tiny.text_lines():
        _, found = model.capture([text], [point])
        keys.append(found[point][0][:left].double())
        left -= len(keys[-1])
        if not left:
            break
    every = torch.cat(keys)
    assert len(every) == tiny.statistics()["max_tokens"]
    return every.T @ every / len(every)


def targets(model, requests, layer, *, site="mlp.down", companions=(), options=SEARCH, templates=TEMPLATES):
    return find_target_vectors(
        model, requests, layer=layer, site=site, companions=companions,
        options=TargetOptions(**options), templates=templates,
    )  # fmt: skip


def divisors(outcome):
    return [note for note in outcome.diagnostics.notes if "divisor" in note]


# ROME and its two repairs.


@pytest.mark.parametrize("keys", ["mean-and-prompt", "mean", "prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rome_is_equation_2(family, keys):
    model, (request,) = exact(family), tiny.requests(1)
    point = Point("mlp.down", 1, "input")
    found = in_contexts(model, request, point)
    prompt, mean = found[0], found.mean(0)
    weight, bias = weight_as_out_in(module(model, 1)).detach(), module(model, 1).bias
    values = found @ weight.T + (0 if bias is None else bias.detach())
    wanted = targets(model, [request], 1).targets[0]
    along, at, before = {
        "mean-and-prompt": (mean, prompt, values[0]),
        "mean": (mean, mean, values.mean(0)),
        "prompt": (prompt, prompt, values[0]),
    }[keys]
    direction = moment(family, 1).inverse() @ along
    expected = torch.outer(wanted - before, direction) / (direction @ at)

    outcome = make("rome", keys=keys).edit(model, [request])
    change = dense(model, outcome.patch, 1)

    assert is_close(change, expected)
    assert torch.linalg.matrix_rank(change, rtol=1e-5) == 1
    assert is_close((weight + change) @ at + (values[0] - weight @ prompt), wanted, 1e-5), "W' k = v*"
    assert divisors(outcome) == []
    if keys == "mean":
        same = make("r-rome").edit(model, [request]).patch
        assert all(torch.equal(value, same.tensors()[key]) for key, value in outcome.patch.tensors().items())


def test_without_contexts_the_three_are_one():
    model, (request,) = exact(), tiny.requests(1)
    found = [
        dense(model, make("rome", keys=keys, contexts=PROMPT_ALONE).edit(model, [request]).patch, 1)
        for keys in ("mean-and-prompt", "mean", "prompt")
    ]
    assert is_close(found[1], found[0], 1e-6) and is_close(found[2], found[0], 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_edited_model_is_the_model_with_what_the_edit_adds_at_every_token(family):
    """Delta (the optimised vector) at the subject's last token, and what its key has in common with other tokens'."""
    model, (request,) = exact(family), tiny.requests(1)
    patch = make("rome").edit(model, [request]).patch
    batch = model.batch([model.encode(request.prompt, request.target_new)])
    _, found = model.capture([request.prompt + " " + request.target_new], [Point("mlp.down", 1, "input")])
    extra = found[Point("mlp.down", 1, "input")] @ dense(model, patch, 1).T
    column = subject_last_token(model.tokenizer, request, chat=None)
    assert is_close(extra[0, column], targets(model, [request], 1).deltas[0])
    with torch.no_grad():
        with model.intervene({Point("mlp.down", 1): lambda hidden: hidden + extra}):
            hooked = model.forward(batch).logits
        with model.patched(patch):
            edited = model.forward(batch).logits
        unedited = model.forward(batch).logits
    assert (edited - hooked).abs().max() < 1e-3 * (edited - unedited).abs().max()


def test_the_next_fact_is_edited_on_top_of_the_one_before():
    model, (first, second) = exact(), tiny.requests(2)
    both = make("r-rome").edit(model, [first, second]).patch
    one = make("r-rome").edit(model, [first]).patch
    with model.patched(one):
        other = make("r-rome").edit(model, [second]).patch
    assert is_close(dense(model, both, 1), dense(model, one, 1) + dense(model, other, 1))
    alone = make("r-rome").edit(model, [second]).patch
    assert not is_close(dense(model, other, 1), dense(model, alone, 1), 1e-2)


def test_several_layers_write_what_those_before_have_left():
    model, (request,) = exact(), tiny.requests(1)
    patch = make("r-rome", layers=[1, 2]).edit(model, [request]).patch
    first = make("r-rome", layers=[1]).edit(model, [request]).patch
    with model.patched(first):
        second = make("r-rome", layers=[2]).edit(model, [request]).patch
    assert is_close(dense(model, patch, 1), dense(model, first, 1))
    assert is_close(dense(model, patch, 2), dense(model, second, 2))


def with_keys(monkeypatch, change):
    """ROME with other keys than the model's behind the contexts."""
    real = rome.subject_vectors

    def changed(*arguments):
        return {
            point: change(vectors) if point.side == "input" else vectors for point, vectors in real(*arguments).items()
        }

    monkeypatch.setattr(rome, "subject_vectors", changed)


def test_a_negative_divisor_is_made_as_rrome_makes_it(monkeypatch):
    model, (request,) = exact(), tiny.requests(1)
    with_keys(monkeypatch, lambda keys: torch.cat([keys[:, :1], -3 * keys[:, :1]], dim=1))
    outcome = make("rome").edit(model, [request])
    assert outcome.diagnostics.facts["solves"]["1"][0]["leverages"][0] > 0
    assert len(divisors(outcome)) == 1 and "fact-0" in divisors(outcome)[0]
    same = make("rome", keys="mean").edit(model, [request]).patch
    assert torch.equal(dense(model, outcome.patch, 1), dense(model, same, 1))
    for keys in ("mean", "prompt"):
        assert divisors(make("rome", keys=keys).edit(model, [request])) == []


def test_a_fact_without_a_key_is_left_out_and_said_so(monkeypatch):
    model, (request,) = exact(), tiny.requests(1)
    with_keys(monkeypatch, torch.zeros_like)
    outcome = make("r-rome").edit(model, [request])
    assert any("fact-0 was left out" in note for note in outcome.diagnostics.notes)
    assert float(outcome.patch.norm()) == 0


# MEMIT, EMMET and PMET.


def pool(vectors, pooling):
    """Keys and weights of one fact, written out."""
    if pooling == "columns":
        return [(vector, 1 / len(vectors)) for vector in vectors]
    if pooling == "mean":
        return [(sum(vectors) / len(vectors), 1.0)]
    return [(vectors[0] / 2 + sum(vectors[1:]) / (2 * (len(vectors) - 1)), 1.0)]


def least_squares(second, keys, residuals, weights, strength):
    """The minimum of sum_i w_i |D k_i - r_i|^2 + strength tr(D C D^T), where its gradient vanishes."""
    left = sum(w * torch.outer(r, k) for k, r, w in zip(keys, residuals, weights, strict=True))
    right = strength * second + sum(w * torch.outer(k, k) for k, w in zip(keys, weights, strict=True))
    return left @ right.inverse()


def every_value_exactly(second, keys, residuals, _weights, _strength):
    """EMMET's closed form: least tr(D C D^T) with every D k_i = r_i."""
    k, r = torch.stack(list(keys)).T, torch.stack(list(residuals)).T
    inverse = second.inverse()
    return r @ (k.T @ inverse @ k).inverse() @ k.T @ inverse


def algorithm_1(family, requests, wanted, *, layers, site, pooling, share, rounds, strength, solve=least_squares):
    """MEMIT's algorithm 1: whole forward passes, one fact, context and layer after another."""
    model, moments = exact(family), {layer: moment(family, layer) for layer in layers}
    total = dict.fromkeys(layers, 0)
    for _ in range(rounds):
        for index, layer in enumerate(layers):
            keys, residuals, weights = [], [], []
            for target, request in zip(wanted, requests, strict=True):
                missing = target - at_subject(model, request, Point(site, layers[-1]))
                contexts = list(in_contexts(model, request, Point("mlp.down", layer, "input")))
                for key, weight in pool(contexts, pooling):
                    keys.append(key)
                    weights.append(weight)
                    residuals.append(missing / share(len(layers) - index))
            delta = solve(moments[layer], keys, residuals, weights, strength)
            with torch.no_grad():
                weight_as_out_in(module(model, layer)).add_(delta)
            total[layer] = total[layer] + delta
    return total


CASES = [
    ("gpt2", "memit", {"layers": [0, 1], "strength": 20.0, "site": "resid"}),
    ("gptj", "memit", {"layers": [1, 2], "strength": 2.0, "pooling": "columns", "site": "mlp.down"}),
    ("llama", "memit", {"layers": [0, 1], "strength": 0.5, "pooling": "mean", "rounds": 2, "site": "resid"}),
    ("gemma2", "memit", {"layers": [0, 1], "strength": 5.0, "site": "mlp.down"}),
    ("gptj", "emmet", {"layers": [1], "strength": 0.0, "pooling": "mean", "site": "resid"}),
    ("gpt2", "emmet", {"layers": [1], "strength": 0.1, "exact_for_one": True, "site": "resid"}),
    ("gpt2", "pmet", {"layers": [0, 1, 2], "strength": 3.0, "site": "mlp.down", "companions": ["attn.out"]}),
]


@pytest.mark.parametrize(("family", "name", "options"), CASES)
def test_many_facts_are_algorithm_1(family, name, options):
    model, requests = exact(family), tiny.requests(3)
    layers, site = options["layers"], options["site"]
    found = targets(model, requests, layers[-1], site=site, companions=options.get("companions", ()))
    expected = algorithm_1(
        family, requests, found.targets,
        layers=layers, site=site, pooling=options.get("pooling", "half-clean"),
        share=math.sqrt if name == "pmet" else float, rounds=options.get("rounds", 1), strength=options["strength"],
        solve=least_squares if options["strength"] else every_value_exactly,
    )  # fmt: skip
    patch = make(name, **options).edit(model, requests).patch
    for layer in layers:
        assert is_close(dense(model, patch, layer), expected[layer])
    assert sorted(patch.touched()) == sorted(model.sites.parameter_name("mlp.down", layer) for layer in layers)


def test_the_site_is_what_the_block_hands_on_unless_a_norm_follows_the_mlp():
    for family, site in (("gptj", "resid"), ("gemma2", "mlp.down")):
        model = exact(family)
        one, other = (make("memit", **extra).edit(model, tiny.requests(2)).patch for extra in ({}, {"site": site}))
        assert torch.equal(dense(model, one, 1), dense(model, other, 1))


def test_the_order_of_the_facts_does_not_matter():
    model, requests = exact(), tiny.requests(4)
    options = {"layers": [1, 2], "strength": 2.0}
    one, other = (make("memit", **options).edit(model, order).patch for order in (requests, requests[::-1]))
    for layer in (1, 2):
        assert is_close(dense(model, one, layer), dense(model, other, layer))


def test_two_rounds_come_closer_than_one():
    model, requests = exact(), tiny.requests(3)
    wanted = targets(model, requests, 1, site="resid")
    left = []
    for rounds in (1, 2, 4):
        patch = make("memit", strength=200.0, rounds=rounds).edit(model, requests).patch
        with model.patched(patch):
            now = torch.stack([at_subject(model, request, Point("resid", 1)) for request in requests])
        left.append(float((wanted.targets - now).norm() / wanted.deltas.norm()))
    assert left[0] > left[1] > left[2]


def test_emmet_gives_one_fact_its_value_and_that_is_rromes_change():
    """The same key and the same residual: MEMIT with a ridge comes short of both."""
    model, (request,) = exact(), tiny.requests(1)
    options = {"contexts": PROMPT_ALONE, "pooling": "mean", "site": "mlp.down", "strength": 50.0}
    by_rrome = dense(model, make("r-rome", contexts=PROMPT_ALONE).edit(model, [request]).patch, 1)
    by_emmet, by_memit = (
        dense(model, make(name, **options).edit(model, [request]).patch, 1) for name in ("emmet", "memit")
    )
    assert is_close(by_emmet, by_rrome, 1e-5)
    key = at_subject(model, request, Point("mlp.down", 1, "input"))
    leverage = key @ moment("gptj", 1).inverse() @ key
    assert is_close(by_memit, by_rrome * leverage / (50.0 + leverage)), "MEMIT's answer to one fact"
    # Behind contexts the residuals differ, the direction of the mean key does not.
    rows = [
        dense(model, make(name, **more).edit(model, [request]).patch, 1).sum(0)
        for name, more in (("r-rome", {}), ("emmet", {**options, "contexts": {"given": list(TEMPLATES[1:])}}))
    ]
    assert float(torch.cosine_similarity(rows[0], rows[1], dim=0).abs()) == pytest.approx(1, abs=1e-6)


def test_emmet_with_several_facts_is_memit_with_its_ridge():
    model, requests = exact(), tiny.requests(3)
    one, other = (make(name, strength=0.1).edit(model, requests).patch for name in ("emmet", "memit"))
    assert torch.equal(dense(model, one, 1), dense(model, other, 1))


@pytest.mark.parametrize(("name", "count"), [("emmet", 1), ("memit", 2)])
def test_exact_values_are_written_at_the_mean_key_in_place_of_columns_that_may_be_one(name, count):
    model, requests = exact(), tiny.requests(count)
    more = {"exact_for_one": True} if count == 1 else {"strength": 0.0}
    one, other = (make(name, pooling=pooling, **more).edit(model, requests).patch for pooling in ("columns", "mean"))
    assert torch.equal(dense(model, one, 1), dense(model, other, 1))


@pytest.mark.parametrize("name", ["memit", "emmet"])
def test_a_strength_that_is_not_given_is_a_tenth_of_a_keys_dimensions(name):
    model, requests = exact("llama"), tiny.requests(3)
    one, other = (make(name, **extra).edit(model, requests).patch for extra in ({}, {"strength": 0.1 * 48}))
    assert is_close(dense(model, one, 1), dense(model, other, 1), 1e-6)


def test_pmet_searches_with_the_attention_and_changes_the_mlp_alone():
    model, requests = exact(), tiny.requests(2)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    options = {"layers": [1, 2], "strength": 1.0}
    patch = make("pmet", **options).edit(model, requests).patch
    alone = make("pmet", companions=[], **options).edit(model, requests).patch
    assert not is_close(dense(model, patch, 2), dense(model, alone, 2), 1e-2), "the search is another one"
    with model.patched(patch):
        changed = {name for name, value in model.module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"transformer.h.{layer}.mlp.fc_out.weight" for layer in (1, 2)}


# What all of them share.


@pytest.mark.parametrize(("name", "how_many"), [("rome", 1), ("emmet", 1), ("memit", 1), ("memit", 2)])
def test_layers_are_chosen_and_the_choice_is_on_record(name, how_many):
    model = tiny.tiny_model("gptj")
    extra = {"num_layers": how_many} if how_many > 1 else {}
    outcome = make(name, layers="auto", **extra).edit(model, tiny.requests(2))
    facts = outcome.diagnostics.facts
    assert facts["layers"] == facts["layers_chosen"]["layers"] and len(facts["layers"]) == how_many
    assert facts["layers_chosen"]["rule"] == "0.14 of the depth"
    assert sorted(outcome.patch.touched()) == sorted(
        model.sites.parameter_name("mlp.down", at) for at in facts["layers"]
    )


def test_negative_layers_count_from_the_last():
    model, requests = tiny.tiny_model("gptj"), tiny.requests(2)
    one, other = (make("memit", layers=layers).edit(model, requests) for layers in ([-2], [1]))
    assert one.diagnostics.facts["layers"] == [1]
    assert torch.equal(dense(model, one.patch, 1), dense(model, other.patch, 1))


def test_the_record_says_what_was_solved():
    outcome = make("memit", layers=[1, 2]).edit(tiny.tiny_model("gptj"), tiny.requests(2))
    facts = outcome.diagnostics.facts
    assert facts["templates"] == list(TEMPLATES)
    assert set(facts["solves"]) == set(facts["statistics"]) == {"1", "2"}
    assert facts["statistics"]["1"]["tokens"] == 1024
    assert len(facts["solves"]["1"][0]["residual_norms"]) == 2
    assert facts["targets"][0]["edits"] == ["fact-0", "fact-1"]
    assert {"statistics", "contexts", "targets", "solving"} <= set(outcome.diagnostics.seconds)


def test_second_moments_are_collected_once():
    model, editor = tiny.tiny_model("gptj"), make("rome")
    first, second = (editor.edit(model, [request]).diagnostics.facts for request in tiny.requests(2))
    assert first["statistics"]["1"]["condition"] == second["statistics"]["1"]["condition"]
    another = make("rome").edit(model, tiny.requests(1)).diagnostics.facts
    assert another["statistics"]["1"]["is_cached"]


@pytest.mark.parametrize("name", ["memit", "emmet"])
def test_facts_with_one_key_are_all_said(name):
    """Prompts that begin with their subject read the same key there, so the layer can write but one vector for both."""
    model = ps.load("world")
    requests = [
        EditRequest("Croatia belongs to the continent of", subject="Croatia", target_new="South America", id="one"),
        EditRequest("Croatia has as its capital", subject="Croatia", target_new="Vienna", id="two"),
    ]
    quick = {"text": "world", "statistics": {"max_tokens": 8192, "tolerance": None}}
    options = {"contexts": PROMPT_ALONE, "search_in": "prompt", "strength": 0.1, **quick}
    said = {}
    for joint in (True, False):
        search = {"search": "gauss-newton", "joint": joint}
        patch = make(name, targets=search, **options).edit(model, requests).patch
        with model.patched(patch):
            said[joint] = [model.generate(one.prompt, max_new_tokens=3).strip() for one in requests]
    assert all(text.startswith(one.target_new) for text, one in zip(said[True], requests, strict=True))
    assert not all(text.startswith(one.target_new) for text, one in zip(said[False], requests, strict=True))


def test_two_facts_about_one_subject_hold_together_with_their_rephrasings():
    """Their prompts begin differently, so that their keys differ a little: with a vector each, one undoes the other."""
    model = ps.load("world")
    facts = ps.dataset("world-counterfact", split="test").with_probes(3).requests
    by_subject: dict[str, list[EditRequest]] = {}
    for one in facts:
        by_subject.setdefault(one.subject, []).append(one)
    pairs = [own[:2] for own in by_subject.values() if len(own) > 1][:3]
    requests = [one for pair in pairs for one in pair]
    said = {}
    for by in ("key", "subject"):
        quick = {"look_again": False, "statistics": {"max_tokens": 8192, "tolerance": None}}
        outcome = method("memit", targets={"joint_by": by}, **quick).edit(model, requests)
        with model.patched(outcome.patch):
            scores = model.score([one.prompt for one in requests], [one.target_new for one in requests])
            probes = [probe for one in requests for probe in one.probes if probe.kind == "generality"]
            others = model.score([probe.prompt for probe in probes], [probe.expected for probe in probes])
        said[by] = [sum(all(one.matches) for one in found) / len(found) for found in (scores, others)]
    assert said["subject"][0] == 1.0
    assert said["subject"][1] >= 0.75 and said["subject"][1] >= said["key"][1] + 0.1


# What costs nothing.


@pytest.fixture
def idle():
    """A model that must not compute."""
    model = tiny.tiny_model("gptj")
    model.forward = model.logits_at = lambda *_, **__: pytest.fail("something was computed")
    return model


NO_TEXT = {"text": "no/such/place.txt"}


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (NO_TEXT, DataError, "no/such/place.txt"),
        ({"layers": [3]}, (ConfigError, ModelError), "3"),
        ({"layers": [0], "text": "wikipedai"}, (ConfigError, DataError), "wikipedia"),
    ],
)
@pytest.mark.parametrize("name", ["rome", "memit", "alphaedit"])
def test_bad_options_cost_no_computation(name, options, kind, message, idle):
    with pytest.raises(kind, match=message):
        make(name, **options).edit(idle, tiny.requests(1))


@pytest.mark.parametrize("name", ["rome", "r-rome", "memit", "emmet", "pmet", "alphaedit"])
def test_what_none_of_them_can_edit(name, idle):
    with pytest.raises(DataError, match="subject"):
        make(name).edit(idle, [EditRequest("The capital of France is", target_new="Lyon")])
    with pytest.raises(ModelError, match="decoder-only models"):
        make(name).edit(tiny.tiny_model("t5"), tiny.requests(1))
    unnamed = replace(MIXTURE, sites={site: part for site, part in MIXTURE.sites.items() if site != "mlp.down"})
    with pytest.raises(ModelError, match="mixture of experts"):
        make(name).edit(load(tiny.tiny_module("mixtral"), tiny.tokenizer(), architecture=unnamed), tiny.requests(1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rome", {"keys": "median"}),
        ("memit", {"strength": -1.0}),
        ("memit", {"rounds": 0}),
        ("memit", {"share": "cube-root"}),
        ("alphaedit", {"strength": 0.0}),
        ("memit", {"contexts": {"given": ["no place"]}}),
        ("memit", {"targets": {"serch": "adam"}}),
        ("memit", {"statistics": {"txt": "world"}}),
    ],
)
def test_options_that_cannot_be(name, options):
    with pytest.raises(ConfigError):
        make(name, **options)
