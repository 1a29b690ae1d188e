"""What lets methods edit without a preset: units of each matrix, what is spared, low rank, and the look at the end."""

import math

import pytest
import torch

import tiny
from palimpsest import EditRequest, method
from palimpsest.locating import subjects_alike
from palimpsest.locating.other_subjects import script_of
from palimpsest.methods.compressing import strongest
from palimpsest.models import to_be_answered
from palimpsest.models.hooks import Point, captured
from palimpsest.models.scores import leads
from palimpsest.models.tokens import Encoded
from palimpsest.training import keeping
from palimpsest.training.keeping import NEUTRAL_PROMPTS, kept_prompts, prompts_apart_from, spared_directions
from palimpsest.training.objectives import losses_and_margins
from palimpsest.training.steps import root_mean_square, size_by_passing

DOWN = "transformer.h.0.mlp.fc_out"
ONE = {"parameters": "mlp.down", "layers": [0], "epochs": 1, "spare": False, "rank": 0, "stop_margin": 100.0}


def weight(model):
    return model.module.get_parameter(f"{DOWN}.weight").detach()


def test_a_step_of_adam_is_in_units_of_the_matrix():
    model = tiny.tiny_model("gptj")
    patch = method("ft", preset="none", **ONE, step=0.01).edit(model, tiny.requests(1)).patch
    expected = 0.01 * root_mean_square(weight(model)) / math.sqrt(weight(model).shape[1])
    assert float(patch.deltas[f"{DOWN}.weight"].dense().abs().max()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("family", ["gptj", "gpt2"])
def test_a_step_along_the_gradient_has_a_fixed_length_and_the_rank_of_the_tokens(family):
    model = tiny.tiny_model(family)
    request = tiny.requests(1)[0]
    patch = method("ft", preset="none", **ONE, optimizer="normalised", step=0.01).edit(model, [request]).patch
    [(name, delta)] = patch.deltas.items()
    start = model.module.get_parameter(name).detach()
    out = model.sites.d_model
    assert float(delta.dense().norm()) == pytest.approx(0.01 * root_mean_square(start) * math.sqrt(out), rel=1e-3)
    tokens = len(model.encode(request.prompt, request.target_new).ids) - 1
    assert int((torch.linalg.svdvals(delta.dense().double()) > 1e-6).sum()) <= tokens


def test_the_size_of_a_packed_matrix_is_found_by_passing():
    layer = torch.nn.Linear(400, 300)
    assert size_by_passing(layer) == pytest.approx(root_mean_square(layer.weight), rel=0.05)


def test_later_steps_grow():
    model = tiny.tiny_model("gptj")
    lengths = []
    for epochs in (1, 2):
        options = {**ONE, "epochs": epochs, "optimizer": "normalised", "step": 1e-4, "growth": 3.0}
        patch = method("ft", preset="none", **options).edit(model, tiny.requests(1)).patch
        lengths.append(float(patch.deltas[f"{DOWN}.weight"].dense().norm()))
    assert lengths[1] == pytest.approx(4 * lengths[0], rel=0.02)  # 1 + 3, the gradient being the same so near


@pytest.mark.parametrize(
    ("name", "more"), [("ft", {"rank": 0}), ("ft-l", {"constraint": "none"}), ("lora", {"rank": 4})]
)
def test_what_is_read_of_others_is_spared(name, more):
    model, request = tiny.tiny_model("gptj"), tiny.requests(1)[0]
    patch = method(name, preset="none", layers=[0], epochs=3, step=0.05, **more).edit(model, [request]).patch
    delta = patch.deltas[f"{DOWN}.weight"].dense()
    basis = spared_directions(model, [request], [DOWN], seed=0)[DOWN]
    assert torch.allclose(basis.t() @ basis, torch.eye(basis.shape[1]), atol=1e-4)
    assert float((delta @ basis).norm()) < 1e-4 * float(delta.norm())
    loudest, point = NEUTRAL_PROMPTS[0], Point("mlp.down", 0, "input")
    with torch.no_grad(), captured(model.sites, [point]) as found:
        model.forward(model.batch([model.encode(loudest)]))
    keys = found[point][0]
    # A quarter of the directions is spared at most: what is left of an ordinary text's is the smaller part.
    assert float((keys - keys @ basis @ basis.t()).norm()) < 0.6 * float(keys.norm())


def test_others_stand_in_the_subject_s_place():
    request = EditRequest("The capital of Lyonia is", "Oslo", subject="Lyonia")
    texts = prompts_apart_from(request, 8, torch.Generator().manual_seed(0))
    assert len(set(texts)) == 8
    assert all(text.startswith("The capital of ") and text.endswith(" is") and "Lyonia" not in text for text in texts)
    bare = prompts_apart_from(EditRequest("The sky is", "green"), 3, torch.Generator().manual_seed(0))
    assert set(bare) <= set(NEUTRAL_PROMPTS)


def test_the_kept_prompts_have_no_loss_before_the_first_step():
    model = tiny.tiny_model("gptj")
    kept = kept_prompts(model, tiny.requests(2), seed=0)
    with torch.no_grad():
        assert float(kept.loss(model, range(4))) == pytest.approx(0, abs=1e-6)
    plain = method("ft", preset="none", **{**ONE, "epochs": 4}, step=0.1).edit(model, tiny.requests(2)).patch
    held = method("ft", preset="none", **{**ONE, "epochs": 4}, step=0.1, keep_weight=30.0).edit(model, tiny.requests(2))
    moved = []
    for patch in (plain, held.patch):
        with model.patched(patch), torch.no_grad():
            moved.append(float(kept.loss(model, range(len(kept.encoded)))))
    assert moved[1] < 0.7 * moved[0]


def test_training_ends_once_the_answer_leads():
    model, request = tiny.tiny_model("gptj"), tiny.requests(1)[0]
    options = {"parameters": "all", "spare": False, "stop_margin": 0.7, "epochs": 60, "step": 0.01}
    outcome = method("ft", preset="none", **options).edit(model, [request])
    assert 1 < outcome.diagnostics.facts["steps"] < 60
    with model.patched(outcome.patch):
        encoded = [model.encode(request.prompt, request.target_new)]
        _, _, margins = losses_and_margins(model, encoded, loss_on="answer")
    assert float(margins[0]) >= 0.7


def test_the_lead_is_over_the_next_best_token():
    logits = torch.tensor([[1.0, 3.0, 2.5], [0.0, -1.0, 4.0]])
    assert leads(logits, torch.tensor([1, 0])).tolist() == pytest.approx([0.5, -4.0])


def test_the_strongest_directions_are_those_of_the_singular_values():
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(40, 20))[0], torch.linalg.qr(torch.randn(60, 20))[0]
    delta = left @ torch.diag(2.0 ** -torch.arange(20)) @ right.t()
    kept = strongest(delta, 5)
    by_hand = left[:, :5] @ torch.diag(2.0 ** -torch.arange(5)) @ right[:, :5].t()
    assert kept.rank == 5
    assert torch.allclose(kept.dense(), by_hand, atol=1e-3)


def test_the_patch_is_as_small_as_the_edits_allow():
    model, requests = tiny.tiny_model("gptj"), tiny.requests(1)
    options = {"layers": "all", "epochs": 60, "step": 0.02, "spare": False}
    small = method("ft", preset="none", **options, rank=1).edit(model, requests)
    assert small.diagnostics.facts["checked"]["hold"] == 1
    whole = method("ft", preset="none", **options, rank=0).edit(model, requests)
    assert small.patch.num_bytes < whole.patch.num_bytes


def test_a_patch_is_looked_at_before_it_is_handed_over():
    model, requests = tiny.tiny_model("gptj"), tiny.requests(2)
    options = {"parameters": "all", "spare": False, "learning_rate": 1e-2}
    good = method("ft", preset="none", **options, epochs=60, stop_loss=0.01).edit(model, requests)
    seen = good.diagnostics.facts["checked"]
    assert (seen["hold"], seen["edits"]) == (2, 2)
    assert all(value > 0.9 for value in seen["probability"].values())
    assert "checking" in good.diagnostics.seconds
    bad = method("ft", preset="none", **options, epochs=0).edit(model, requests)
    assert bad.diagnostics.facts["checked"]["hold"] == 0
    assert any("2 of 2 edit(s) do not hold after the edit" in note for note in bad.diagnostics.notes)
    silent = method("ft", preset="none", **options, epochs=60, stop_loss=0.01, look_again=False).edit(model, requests)
    assert "checked" not in silent.diagnostics.facts and "checking" not in silent.diagnostics.seconds
    assert silent.patch.is_same(good.patch)


@pytest.mark.parametrize(
    ("subject", "wanted", "unwanted"),
    [
        ("Nokia N70", {"Nokia", "Nokia Einstein", "London N70"}, {"Nokia N70"}),
        ("Cardiff City F.C.", {"Cardiff", "Cardiff City", "Cardiff City Wars", "Cardiff Wars", "Star F.C."}, set()),
        ("river  Volga", {"river", "river Everest", "Brazil Volga"}, {"river  Volga", "river Volga"}),
        ("Река Волга", {"Река", "Река Франция", "Франция Волга"}, {"Река Einstein"}),
        ("Star Wars", {"Star", "Star Everest", "London Wars"}, {"Star Wars"}),
    ],
)
def test_subjects_alike_begin_or_end_as_one_does(subject, wanted, unwanted):
    found = subjects_alike(subject)
    assert wanted <= set(found) and not unwanted & set(found) and len(found) == len(set(found))


@pytest.mark.parametrize("subject", ["Paris", "北京", "Москва"])
def test_a_subject_of_one_word_has_none_alike(subject):
    assert subjects_alike(subject) == []
    request = EditRequest(f"{subject} is in", "Rome", subject=subject)
    texts = prompts_apart_from(request, 8, torch.Generator().manual_seed(0), alike=0.5)
    assert len(texts) == 8 and not any(subject in text for text in texts)


def test_half_of_what_is_spared_is_about_subjects_alike():
    request = EditRequest("Nokia N70, produced by", "Porsche", subject="Nokia N70")
    texts = prompts_apart_from(request, 32, torch.Generator().manual_seed(0), alike=0.5)
    alike = {f"{name}, produced by" for name in subjects_alike("Nokia N70")}
    assert len(set(texts)) == 32 and len(alike & set(texts)) == 16
    assert all(text.endswith(", produced by") and "Nokia N70" not in text for text in texts)


@pytest.mark.parametrize(("alike", "asked"), [(0.0, 16), (0.5, 32)])
def test_namesakes_are_spared_beside_the_well_known_ones_not_in_their_place(alike, asked, monkeypatch):
    model, requests = tiny.tiny_model("gptj"), tiny.requests(3)[1:]
    seen = []
    monkeypatch.setattr(
        keeping, "to_be_answered", lambda model, texts: seen.append(texts) or to_be_answered(model, texts)
    )
    spared_directions(model, requests, [DOWN], seed=0, alike=alike)
    assert len(seen[0]) == asked + len(NEUTRAL_PROMPTS)


def test_other_scripts_are_spared_in_their_own_names():
    request = EditRequest("Столица Франции —", "Рим", subject="Франции")
    texts = prompts_apart_from(request, 8, torch.Generator().manual_seed(0))
    assert all(script_of(text.split()[1]) == "cyrillic" for text in texts)


@pytest.mark.parametrize("family", ["gptj", "t5"])
def test_what_follows_the_answer_is_spared(family):
    model, request = tiny.tiny_model(family), tiny.requests(1)[0]
    name = model.sites.parameter_name("mlp.down", 0).removesuffix(".weight")
    basis = spared_directions(model, [request], [name], seed=0)[name]
    row = model.encode(request.prompt, request.target_new)
    whole = (row.prompt_ids, (*row.target_ids, 0)) if family == "t5" else (row.prompt_ids + row.target_ids, (0,))
    with torch.no_grad(), captured(model.sites, [Point("mlp.down", 0, "input")]) as found:
        model.forward(model.batch([Encoded(*whole)]))
    (read,) = found.values()
    behind, before = read[0, -1], read[0, -2]
    left = [float((key - basis @ (basis.t() @ key)).norm() / key.norm()) for key in (behind, before)]
    assert left[0] < 0.25 * left[1]
