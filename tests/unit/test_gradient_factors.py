"""Gradient factors against autograd on whole weights, and changes applied as factors against changed weights."""

from __future__ import annotations

import pytest
import torch

import tiny
from palimpsest import EditRequest
from palimpsest.models.sites.linear import weight_as_out_in
from palimpsest.patches.base import Manifest
from palimpsest.patches.weights import WeightPatch
from palimpsest.training.gradient_factors import Update, gradient_factors, low_rank, places, updated
from palimpsest.training.objectives import answer_losses

SITES = {
    "gpt2": ["mlp.up", "mlp.down"],  # stored (in, out)
    "gptj": ["mlp.up", "mlp.down", "attn.out"],
    "llama": ["mlp.gate", "mlp.down"],
    "opt": ["mlp.down"],  # computes its MLP on rows and tokens as one axis
    "t5": ["encoder.mlp.up", "encoder.mlp.down", "mlp.down"],
}
FACTS = [*tiny.requests(3), EditRequest("Rome is the capital of the old country that lies in", "a river of people")]


def encoded(model, facts=FACTS):
    return [model.encode(fact.prompt, fact.target_new) for fact in facts]


def weights_of(model, family):
    sites = SITES[family]
    return places(model, sites, [range(model.sites.layers_of(site)) for site in sites])


@pytest.mark.parametrize("family", SITES)
def test_factors_multiply_to_what_autograd_finds(family):
    model = tiny.tiny_model(family)
    where = weights_of(model, family)
    found = gradient_factors(model, encoded(model), where)
    for index, row in enumerate(encoded(model)):
        modules = [model.sites.module(place.site, place.layer) for place in where]
        sums, counts = answer_losses(model, [row], loss_on="answer")
        truth = torch.autograd.grad((sums / counts).sum(), [module.weight for module in modules])
        for place, module, gradient in zip(where, modules, truth, strict=True):
            factors = found[place.name]
            product = factors.gradients[index].t() @ factors.inputs[index]
            wanted = gradient.t() if module.weight is not weight_as_out_in(module) and family == "gpt2" else gradient
            assert gradient.abs().max() > 0
            torch.testing.assert_close(product, wanted, atol=1e-5 * float(gradient.abs().max()), rtol=1e-4)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("family", ["gptj", "t5"])
def test_a_facts_factors_depend_on_no_other_fact_and_on_no_padding(family):
    model = tiny.tiny_model(family)
    where = weights_of(model, family)
    together = gradient_factors(model, encoded(model), where)
    alone = gradient_factors(model, encoded(model)[:1], where)
    for place in where:
        kept = together[place.name].mask[0]
        assert kept.sum() == alone[place.name].mask[0].sum() > 0
        assert not together[place.name].inputs[0][~kept].any() and not together[place.name].gradients[0][~kept].any()
        torch.testing.assert_close(
            together[place.name].gradients[0][kept], alone[place.name].gradients[0][alone[place.name].mask[0]]
        )


def test_half_precision_does_not_lose_small_gradients():
    model, exact = tiny.tiny_model("gptj", dtype=torch.float16), tiny.tiny_model("gptj")
    where = weights_of(model, "gptj")
    found, truth = (gradient_factors(one, encoded(one), where) for one in (model, exact))
    for place in where:
        assert found[place.name].gradients.dtype == torch.float32
        difference = (found[place.name].gradients - truth[place.name].gradients).norm()
        assert difference < 0.02 * truth[place.name].gradients.norm()


@pytest.mark.parametrize("family", ["gpt2", "gptj", "opt", "t5"])
def test_an_update_applied_as_factors_is_the_patch(family):
    model = tiny.tiny_model(family)
    where = weights_of(model, family)
    draw = torch.Generator().manual_seed(0)
    factors = gradient_factors(model, encoded(model), where)
    updates = {
        name: Update(0.3 * torch.randn(one.gradients.shape, generator=draw) * one.mask[..., None], one.inputs)
        for name, one in factors.items()
    }
    rows = encoded(model)
    batch = model.batch(rows)
    at, columns, _ = model.answer_places(rows, batch)
    with updated(model, updates, torch.arange(len(rows))):
        each = model.logits_at(batch, at, columns)
    with updated(model, {name: one.together(len(rows)) for name, one in updates.items()}, torch.zeros_like(at[:4])):
        joined = model.logits_at(batch, at, columns)
    unedited = model.logits_at(batch, at, columns)
    for index in range(len(rows)):
        own = {name: Update(one.left[index : index + 1], one.right[index : index + 1]) for name, one in updates.items()}
        with model.patched(WeightPatch(low_rank(model, where, own), Manifest(label="one"))):
            truth = model.logits_at(batch, at, columns)
        assert (truth - unedited).abs().max() > 1e-2
        torch.testing.assert_close(each[at == index], truth[at == index], atol=1e-3, rtol=1e-3)
    with model.patched(WeightPatch(low_rank(model, where, updates), Manifest(label="all"))):
        torch.testing.assert_close(joined, model.logits_at(batch, at, columns), atol=1e-3, rtol=1e-3)
    assert model.weights.labels == []
