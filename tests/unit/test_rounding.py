"""Gradients that are zero in mathematics: zero in float32 too, and no optimiser moves what has none."""

import random

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import tiny
from palimpsest import EditRequest, method
from palimpsest.models.tokens import Encoded
from palimpsest.training import rounding
from palimpsest.training.metatraining import MetaTrainingOptions, Objective, metatrain
from palimpsest.training.objectives import answer_losses
from palimpsest.training.rounding import TrueZeros, softmax_gradient

UNIT = 2.0**-24


def in_double(patch):
    """Whatever asks for float32 gets float64, so that a model computes in float64 from end to end."""
    patch.setattr(torch, "float32", torch.float64)
    patch.setattr(torch.Tensor, "float", torch.Tensor.double)


def gradients(model, encoded):
    for parameter in model.module.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    with TrueZeros(model.module) as zeros:
        sums, counts = answer_losses(model, encoded, loss_on="answer")
        (sums / counts).mean().backward()
        zeros.clean()
    return {name: one.grad.double() for name, one in model.module.named_parameters() if one.grad is not None}


def usual(model):
    return [model.encode(request.prompt, request.target_new) for request in tiny.requests(2)]


def single(model):
    """One token that is read, one that is said: all attention is over one key."""
    [encoded] = usual(model)[:1]
    return [Encoded(encoded.prompt_ids[:1], encoded.target_ids[:1])]


@pytest.mark.parametrize("family", tiny.EVERY)
def test_what_is_zero_in_float64_is_zero(family, monkeypatch):
    model, exact = tiny.tiny_model(family, layers=2), tiny.tiny_model(family, layers=2)
    exact.module.double()
    for one in (model, exact):
        if family in tiny.MIXTURES:
            one.module.set_experts_implementation("eager")
    for batch in (usual, single):
        found = gradients(model, batch(model))
        with monkeypatch.context() as patch:
            in_double(patch)
            truth = gradients(exact, batch(exact))
        assert found.keys() == truth.keys()
        largest = max(float(one.abs().max()) for one in truth.values())
        for name, one in found.items():
            noise = (one != 0) & (truth[name].abs() < 1e-9 * one.abs())
            assert not noise.any(), f"{name}: {int(noise.sum())} of {noise.numel()}, {batch.__name__}"
            assert (one - truth[name]).abs().max() < 2e-5 * largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("family", "bias"), [("opt", "k_proj.bias"), ("gpt2", "c_attn.bias"), ("bart", "k_proj.bias")])
def test_a_bias_that_all_keys_share_has_no_gradient(family, bias, dtype):
    model = tiny.tiny_model(family, dtype=dtype)
    found = {name: one for name, one in gradients(model, usual(model)).items() if name.endswith(bias)}
    assert found
    for one in found.values():
        # GPT-2 keeps queries, keys and values in one.
        keys = one.chunk(3)[1] if bias.startswith("c_attn") else one
        assert not keys.any()
        assert bias.startswith("k_proj") or all(part.ne(0).float().mean() > 0.8 for part in one.chunk(3)[::2])


@pytest.mark.parametrize(("share", "width"), [(0.5, 7), (0.999, 7), (1 - 1e-6, 3), (1.0, 1)])
def test_the_softmax_s_derivative_is_float64_s_also_where_one_share_is_nearly_one(share, width):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, width, generator=generator)
    if width > 1:
        scores[:, 2] += torch.logit(torch.tensor(share)) + 1
    upstream = 1 + torch.randn(50, width, generator=generator) / 10
    shares = scores.softmax(-1)
    found = softmax_gradient(shares, upstream)
    truth = softmax_gradient(scores.double().softmax(-1), upstream.double())
    leaf = scores.double().requires_grad_()
    leaf.softmax(-1).backward(upstream.double())
    torch.testing.assert_close(truth, leaf.grad, rtol=1e-6, atol=1e-15)
    assert (found - truth).abs().max() < 1e-6
    # However small it is, it sums to zero but for the rounding of each.
    sums = found.double().sum(-1).abs()
    assert (sums <= 8 * UNIT * found.double().abs().sum(-1)).all()
    assert (width == 1) == (not found.any())


@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "added"])
@pytest.mark.parametrize("groups", [1, 2])
def test_attention_s_derivatives_are_torch_s(mask, groups):
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    query, key, value = drawn(3, 4, 5, 8), drawn(3, 4 // groups, 5, 8), drawn(3, 4 // groups, 5, 8)
    added = drawn(1, 4, 5, 5)
    seen = torch.rand(3, 1, 5, 5, generator=generator) > 0.5
    seen[..., 0] = True
    seen[0, 0, 1] = False
    options = {
        "none": {"scale": 0.7},
        "causal": {"is_causal": True},
        "boolean": {"attn_mask": seen},
        "added": {"attn_mask": added},
    }[mask]
    leaves = [query, key, value, *([added] if mask == "added" else [])]
    weights = drawn(3, 4, 5, 8).detach()
    found = []
    for block in (TrueZeros(nn.Identity()), torch.enable_grad()):
        with block:
            out = scaled_dot_product_attention(query, key, value, enable_gqa=groups > 1, **options)
        found.append((out, *torch.autograd.grad((out * weights).sum(), leaves)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_every_path_has_the_same_derivatives(monkeypatch):
    """Dropout, and attention too large to be kept, beside the usual one."""
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randn(2, 2, 6, 4, generator=generator, requires_grad=True) for _ in range(3)]

    def slopes(**options):
        torch.manual_seed(3)
        with TrueZeros(nn.Identity()):
            out = scaled_dot_product_attention(*parts, **options)
        return torch.autograd.grad(out.square().sum(), parts)

    usual, dropped = slopes(), slopes(dropout_p=1e-12)
    monkeypatch.setattr(rounding, "LARGEST", 1)
    for one, *others in zip(usual, dropped, slopes(), strict=True):
        for other in others:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not torch.equal(slopes(dropout_p=0.5)[0], usual[0])
    with TrueZeros(nn.Identity()), torch.no_grad():
        assert not scaled_dot_product_attention(*parts).requires_grad


@pytest.mark.parametrize("name", ["ft", "lora"])
@pytest.mark.parametrize("family", ["bart", "t5", "llama", "opt", "phi", "gpt2"])
def test_an_edit_moves_nothing_that_has_no_gradient(family, name):
    model = tiny.tiny_model(family)
    [encoded] = single(model)
    prompt, answer = (model.tokenizer.decode([one]) for one in (encoded.prompt_ids[0], encoded.target_ids[0]))
    request = EditRequest(prompt, answer.strip() if model.is_encoder_decoder else answer, id="short")
    parts = (".q", ".k", ".v", ".qkv")
    options = {"sites": [one for one in model.sites.names() if one.endswith(parts) and model.sites.has_weight(one)]}
    options = {"learning_rate": 1e-2, "epochs": 4, **({**options, "layers": "all"} if name == "lora" else {})}
    patch = method(name, preset="none", **options).edit(model, [request]).patch
    read = model.encode(request.prompt, request.target_new)
    assert len(read.target_ids) == 1
    alone = (lambda n: "encoder" not in n.replace("decoder", "")) if model.is_encoder_decoder else lambda n: True
    assert model.is_encoder_decoder or len(read.prompt_ids) == 1
    silent = [n for n in patch.touched() if alone(n) and is_of_scores(n)]
    assert patch.touched() and not silent


# What is trained beside the weights: neurons, slots, values, and a copy of a matrix.
ADDED = {
    "t-patcher": {"text": tiny.text_file(), "memory": {"max_tokens": 256, "top": 16}, "max_steps": 9, "first_check": 9},
    "calinet": {"steps": 9},
    "grace": {"steps": 9},
    "wise": {"text": tiny.text_file(), "max_tokens": 200, "contexts": {"given": []}, "steps": 9},
}


class EnoughError(Exception):
    pass


def gradients_of_steps(name, model, patch, steps=3):
    """The gradients of the first steps that a method takes."""
    taken, step, slope = [], torch.optim.Adam.step, torch.autograd.grad

    def take(found):
        taken.append([one.double() for one in found])
        if len(taken) == steps:
            raise EnoughError

    def stepping(adam, *arguments):
        take([one.grad.clone() for group in adam.param_groups for one in group["params"]])
        return step(adam, *arguments)

    def sloping(*arguments):
        found = slope(*arguments)
        take(found)
        return found

    patch.setattr(torch.optim.Adam, "step", stepping)
    if name == "wise":
        patch.setattr(torch.autograd, "grad", sloping)
    with pytest.raises(EnoughError):
        method(name, preset="none", seed=1, **ADDED[name]).edit(model, tiny.requests(2))
    return taken


@pytest.mark.parametrize(
    ("name", "family"),
    [(name, one) for name in ADDED for one in ("gptj", "gemma2", "t5-gated") if (name, one) != ("wise", "t5-gated")],
)
def test_what_is_trained_beside_the_weights_has_float64_s_gradients(name, family, monkeypatch):
    model, exact = tiny.tiny_model(family), tiny.tiny_model(family)
    exact.module.double()
    with monkeypatch.context() as patch:
        found = gradients_of_steps(name, model, patch)
    with monkeypatch.context() as patch:
        in_double(patch)
        drawn, zeros = torch.randn, torch.zeros
        patch.setattr(torch, "randn", lambda *shape, **more: drawn(*shape, **more).double())
        patch.setattr(torch, "zeros", lambda *shape, **more: zeros(*shape, **{"dtype": torch.float64, **more}))
        truth = gradients_of_steps(name, exact, patch)
    for step, (ours, right) in enumerate(zip(found, truth, strict=True)):
        largest = max(float(one.abs().max()) for one in right)
        assert largest > 0
        for one, other in zip(ours, right, strict=True):
            noise = (one != 0) & (other.abs() < 1e-9 * one.abs())
            assert not noise.any(), f"step {step}: {int(noise.sum())} of {noise.numel()}"
            assert (one - other).abs().max() < 1e-4 * largest


def is_of_scores(name):
    parts = name.split(".")
    if "EncDecAttention" in parts or "encoder_attn" in parts:
        return False
    return parts[-2] in ("q", "k", "q_proj", "k_proj") or "relative_attention_bias" in name


def test_a_bias_without_gradient_stays_in_training_of_editors():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, rows):
            parts = [one(rows)[:, None] for one in (self.query, self.key, self.value)]
            return scaled_dot_product_attention(*parts)[:, 0]

    torch.manual_seed(0)
    module = Attention()
    before = {name: one.detach().clone() for name, one in module.named_parameters()}
    rows = torch.randn(8, 5, 6)

    def losses(chunk: list[int], _draw: random.Random):
        return {"loss": module(rows[chunk]).square().mean()}

    options = MetaTrainingOptions(steps=6, examples_per_step=2, learning_rate=1e-2, validate_every=3)
    metatrain(Objective(module, losses), [0, 1, 2, 3, 4, 5], [6, 7], options, seed=0)
    still = {name for name, one in module.named_parameters() if torch.equal(one, before[name])}
    assert still == {"key.bias"}
