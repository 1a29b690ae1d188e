"""Every restoration against the whole model run once per row, with hooks of the test's own."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

import tiny
from palimpsest.tracing.restoration import Corruption, Restoration, restored_probabilities

IDS, SUBJECT, ANSWER = (7, 40, 3, 99, 21, 5), (1, 3), 11


def corruption(model, samples=2):
    noise = torch.randn(samples, 2, model.sites.d_model, generator=torch.Generator().manual_seed(1))
    return Corruption(IDS, SUBJECT, ANSWER, noise)


def tensor_of(output):
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def sites_of(model):
    """Of a mixture the MLP is the module as a whole, shared experts and all."""
    return ("resid", "mlp" if model.sites.architecture.is_mixture else "mlp.down", "attn.out")


def plain_run(model, noise=None, put_back=None, keep=None):
    """p(answer) of one row; `put_back` is {(site, layer): (token, vector)}, `keep` takes what the sites write."""

    def disturb(_module, _args, output):
        output = output.clone()
        output[0, SUBJECT[0] : SUBJECT[1]] += noise
        return output

    def handle(key):
        def hook(_module, _args, output):
            tensor = tensor_of(output).clone()
            rows = tensor if tensor.ndim == 2 else tensor[0]
            if keep is not None:
                keep[key] = rows.clone()
            if put_back and key in put_back:
                token, vector = put_back[key]
                rows[token] = vector
            return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

        return hook

    with ExitStack() as stack:
        if noise is not None:
            stack.callback(model.sites.module("embed").register_forward_hook(disturb).remove)
        for site in sites_of(model):
            for layer in range(model.num_layers):
                stack.callback(model.sites.module(site, layer).register_forward_hook(handle((site, layer))).remove)
        logits = model.module(input_ids=torch.tensor([IDS])).logits[0, -1]
    return float(logits.detach().softmax(-1)[ANSWER])


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "qwen2_moe", "gpt_oss"])
def test_restorations_equal_whole_runs(family):
    model = tiny.tiny_model(family)
    asked = corruption(model)
    restorations = [
        Restoration(site, layers, token)
        for site in sites_of(model)
        for layers in ((0,), (1,), (2,), (0, 1), (1, 2))
        for token in (1, 2, 4, 5)
    ]
    clean_states = {}
    clean = plain_run(model, keep=clean_states)
    corrupted = [plain_run(model, noise) for noise in asked.noise]

    found = restored_probabilities(model, asked, restorations, forward_batch_size=7)

    assert found.clean == pytest.approx(clean, rel=1e-4, abs=1e-9)
    assert found.corrupted == pytest.approx(sum(corrupted) / 2, rel=1e-4, abs=1e-9)
    for one, value in zip(restorations, found.restored, strict=True):
        put_back = {(one.site, layer): (one.token, clean_states[one.site, layer][one.token]) for layer in one.layers}
        expected = sum(plain_run(model, noise, put_back) for noise in asked.noise) / 2
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-9), one


def test_the_ends_of_the_grid():
    """The last layer's state at the prompt's end is the whole answer, and beside it nothing is."""
    model = tiny.tiny_model("gptj")
    top = model.num_layers - 1
    cells = [Restoration("resid", (top,), token) for token in reversed(range(SUBJECT[0], len(IDS)))]
    found = restored_probabilities(model, corruption(model), cells, forward_batch_size=64)
    assert abs(found.clean - found.corrupted) > 1e-6
    assert found.restored[0] == pytest.approx(found.clean, rel=1e-5)
    assert found.restored[1:] == pytest.approx([found.corrupted] * (len(cells) - 1), rel=1e-5)


@pytest.mark.parametrize("family", ["gptj", "llama"])
def test_the_model_is_left_as_it_was(family):
    model = tiny.tiny_model(family)
    before = model.score(["The capital of France is"], ["Paris"])[0].log_prob
    cells = [Restoration("resid", (layer,), 2) for layer in range(3)]

    def interrupt(_done):
        raise KeyboardInterrupt

    for advance in (lambda done: None, interrupt):
        try:
            restored_probabilities(model, corruption(model), cells, forward_batch_size=64, advance=advance)
        except KeyboardInterrupt:
            assert advance is interrupt
        assert all("forward" not in vars(model.sites.block(layer)) for layer in range(3))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())
        assert model.score(["The capital of France is"], ["Paris"])[0].log_prob == before
