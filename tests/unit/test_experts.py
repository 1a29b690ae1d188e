"""The experts of a mixture as one linear layer: its keys and outputs against plain transformers, and edits that write
into it, against formulas in float64 and bit for bit."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import Mxfp4GptOssExperts

import tiny
from palimpsest import ConfigError, EditRequest, ModelError, load, load_patch, method
from palimpsest.cli.doctor import examine
from palimpsest.models.hooks import Point
from palimpsest.models.sites import features, weight_as_out_in
from palimpsest.patches import Dense, LowRank, WeightPatch, write_adapter, write_merged
from palimpsest.statistics import collect, open_text

PROMPT = "The capital of France is"
LAYER = 1
READ, WRITTEN = Point("mlp.down", LAYER, "input"), Point("mlp.down", LAYER)
FAMILIES = ("qwen3_moe", "mixtral", "gpt_oss")
MANY = {"num_local_experts": 8, "num_experts": 8, "n_routed_experts": 8}
KEY_TEXT = {"text": tiny.text_file(), "statistics": {"max_tokens": 2048, "tolerance": None}}
NAMES = ("France", "Italy", "Vienna", "Rome", "Oslo", "Lima", "Anna", "Keller")
CITIES = ("Lyon", "Milan", "Paris", "Rome", "Oslo", "Lima")


def exact(family, implementation="eager"):
    module = tiny.tiny_module(family).double()
    module.set_experts_implementation(implementation)
    return load(module, tiny.tokenizer())


def seen_by_transformers(model, prompt):
    """What the experts of the layer are called with and return, from transformers' own modules: (tokens, ...)."""
    seen = {}
    experts = model.module.get_submodule(model.sites.path("mlp.down", LAYER))
    handle = experts.register_forward_hook(lambda _, args, output: seen.update(args=args, output=output))
    with torch.no_grad():
        model.module(**tiny.tokenizer()(prompt, return_tensors="pt"))
    handle.remove()
    return experts, *seen["args"], seen["output"]


def by_hand(family, experts, hidden, chosen, weights):
    """Keys, (tokens, experts, width), and the biases that are added, (tokens, out), token by token."""
    count, width = len(experts.down_proj), experts.down_proj.shape[1 if family == "gpt_oss" else 2]
    keys, biases = hidden.new_zeros(len(hidden), count, width), torch.zeros_like(hidden)
    for token, (experts_of, weights_of) in enumerate(zip(chosen.tolist(), weights, strict=True)):
        for expert, weight in zip(experts_of, weights_of, strict=True):
            both = experts.gate_up_proj[expert]
            if family == "gpt_oss":
                both = both.T @ hidden[token] + experts.gate_up_proj_bias[expert]
                gate, up = both[0::2].clamp(max=7.0), both[1::2].clamp(-7.0, 7.0)
                inside = (up + 1) * gate * torch.sigmoid(1.702 * gate)
                biases[token] += weight * experts.down_proj_bias[expert]
            else:
                gate, up = (both @ hidden[token]).split(width)
                inside = functional.silu(gate) * up
            keys[token, expert] = weight * inside
    return keys, biases


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_outputs_are_those_of_plain_transformers(family, implementation):
    model = exact(family, implementation)
    experts, hidden, chosen, weights, output = seen_by_transformers(model, PROMPT)
    keys, biases = by_hand(family, experts, hidden, chosen, weights)

    _, found = model.capture([PROMPT], [READ, WRITTEN])

    assert torch.allclose(found[READ][0], keys.flatten(1), atol=1e-12)
    assert torch.equal(found[WRITTEN][0], output)
    matrix = weight_as_out_in(experts)
    assert matrix.shape == features(experts) == (32, keys[0].numel())
    assert torch.allclose(keys.flatten(1) @ matrix.T + biases, output, atol=1e-12)
    each = [one.T if family == "gpt_oss" else one for one in experts.down_proj]
    assert torch.equal(matrix, torch.cat([one for one in each], dim=1))


@pytest.mark.parametrize("family", [*tiny.MIXTURES])
def test_the_output_is_the_matrix_times_the_keys_with_the_kernels_of_every_family(family):
    """In float32, with transformers' default; biases are told apart by what a zero matrix leaves."""
    model = tiny.tiny_model(family)
    _, found = model.capture([PROMPT], [READ, WRITTEN])
    experts = model.sites.module("mlp.down", LAYER)
    name = model.sites.parameter_name("mlp.down", LAYER, takes_experts=True)
    with model.patched(WeightPatch({name: Dense(-experts.down_proj.detach())})):
        _, alone = model.capture([PROMPT], [WRITTEN])
    written = found[READ] @ weight_as_out_in(experts).T
    assert torch.allclose(found[WRITTEN] - alone[WRITTEN], written, atol=1e-5) and written.abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_done_to_keys_reaches_the_output(family):
    model = exact(family)
    added = torch.randn(features(model.sites.module("mlp.down", LAYER))[1], dtype=torch.float64)
    _, before = model.capture([PROMPT], [WRITTEN])
    with model.intervene({READ: lambda keys: keys + added}):
        _, after = model.capture([PROMPT], [WRITTEN])
    expected = (weight_as_out_in(model.sites.module("mlp.down", LAYER)) @ added).expand(1, len(before[WRITTEN][0]), -1)
    assert torch.allclose(after[WRITTEN] - before[WRITTEN], expected, atol=1e-10)


# Edits


@cache
def taught(family):
    """A tiny mixture that was trained on some facts for two seconds, and these facts as edits of them."""
    facts = [(f"{a} {b}", CITIES[(3 * i + j) % 6]) for i, a in enumerate(NAMES) for j, b in enumerate(NAMES)][::3]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(tiny.tiny_config(family, **MANY), dtype=torch.float32)
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        rows = [f"The capital of {subject} {city}." for subject, city in facts]
        batch = tiny.tokenizer()(rows, return_tensors="pt", padding=True, padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
        for _ in range(150):
            loss = module(**batch, labels=labels).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for parameter in module.parameters():
        parameter.grad = None
    requests = [
        EditRequest(f"The capital of {subject}", subject=subject, target_old=city, target_new=new, id=str(number))
        for number, (subject, city) in enumerate(facts)
        for new in ["Oslo" if city == "Lima" else "Lima"]
    ]
    return load(module.eval(), tiny.tokenizer()), requests


def says(model, prompt):
    return model.generate(prompt, max_new_tokens=3).strip()


def editor(name, **more):
    options = {"layers": [0], **more}
    if name in ("ft", "ft-l"):
        # Nothing but the edit's own tokens, so that it is known which experts are trained.
        options |= {"parameters": "mlp.down", "spare": name == "ft-l", "keep_weight": 0.0, "epochs": 60}
        options |= {"relative_radius": 4.0} if name == "ft-l" else {}
    else:
        options |= {"contexts": {"given": []}, **KEY_TEXT}
    return method(name, preset="none", look_again=False, **options)


def experts_reached(model, texts, layer=0):
    """Which experts some token of the texts is sent to, as the router says."""
    reached = set()
    experts = model.sites.module("mlp.down", layer)
    handle = experts.register_forward_hook(lambda _, args, __: reached.update(args[1].flatten().tolist()))
    for text in texts:
        model.capture([text], [Point("resid", layer)])
    handle.remove()
    return reached


@pytest.mark.parametrize("name", ["rome", "memit", "emmet", "alphaedit", "ft", "ft-l"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_says_the_new_answer_and_leaves_other_experts_alone(family, name, tmp_path):
    model, (request, *_) = taught(family)
    assert says(model, request.prompt).startswith(request.target_old)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    unedited = model.capture([PROMPT], [Point("resid", 2)])[1][Point("resid", 2)]

    patch = editor(name).edit(model, [request]).patch

    stored = model.sites.parameter_name("mlp.down", 0, takes_experts=True)
    assert patch.touched() == [stored] and stored.endswith("experts.down_proj")
    with model.patched(patch):
        assert says(model, request.prompt).startswith(request.target_new)
        edited = model.module.state_dict()[stored].clone()
        logits = model.capture([PROMPT], [Point("resid", 2)])[1][Point("resid", 2)]
    # Bit for bit as it was, negative zeros included.
    now = model.module.state_dict()
    assert all(torch.equal(value.view(torch.int32), now[key].view(torch.int32)) for key, value in before.items())
    again = model.capture([PROMPT], [Point("resid", 2)])[1][Point("resid", 2)]
    assert torch.equal(again, unedited) and not torch.equal(logits, unedited)
    patch.save(tmp_path / "patch")
    with model.patched(load_patch(tmp_path / "patch")):
        assert torch.equal(model.capture([PROMPT], [Point("resid", 2)])[1][Point("resid", 2)], logits)
        assert torch.equal(model.module.state_dict()[stored], edited)

    changed = {index for index in range(8) if not torch.equal(edited[index], before[stored][index])}
    text = f"{request.prompt} {request.target_new}" if name in ("ft", "ft-l") else request.prompt
    assert changed and changed <= experts_reached(model, [text]) and len(changed) < 8
    for index in set(range(8)) - changed:
        assert torch.equal(edited[index].view(torch.int32), before[stored][index].view(torch.int32))


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_written_exactly_with_the_least_change_in_the_blocks_metric(family):
    """Delta = R (K^T C^-1 K)^-1 K^T C^-1, from the model's own keys and one dense C in float64."""
    model = exact(family)
    moment = collect(model, [READ], open_text(tiny.text_file()), max_tokens=2048, tolerance=None)[READ].moment
    matrix = torch.block_diag(*moment.mean())
    matrix += moment.floor * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)
    rows = [f"It is long ago that people saw {name}" for name in NAMES[:4]]
    requests = [EditRequest(row, "Lyon", subject=row.split()[-1], id=row) for row in rows]
    keys = torch.cat([model.capture([row], [READ])[1][READ][0, -1:] for row in rows])

    options = {"layers": [LAYER], "contexts": {"given": []}, "site": "mlp.down", "targets": {"steps": 3}, **KEY_TEXT}
    outcome = method("memit", preset="none", look_again=False, strength=0.0, **options).edit(model, requests)

    (delta,) = outcome.patch.deltas.values()
    dense = delta.dense().double()
    change = torch.cat([one.T if family == "gpt_oss" else one for one in dense], dim=1)
    solved = torch.linalg.solve(matrix, keys.T)
    expected = change @ keys.T @ torch.linalg.solve(keys @ solved, solved.T)
    assert (change - expected).norm() < 1e-4 * change.norm()
    (facts,) = outcome.diagnostics.facts["solves"][str(LAYER)]
    assert torch.allclose((change @ keys.T).norm(dim=0), torch.tensor(facts["residual_norms"]).double(), rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_patches_of_experts_add_up_scale_and_merge(family, tmp_path):
    model, requests = taught(family)
    first, second = (
        editor(name, **more).edit(model, [request]).patch
        for name, more, request in (("memit", {}, requests[0]), ("ft", {"rank": 0}, requests[1]))
    )
    (name,) = first.touched()
    low, dense = first.deltas[name], second.deltas[name]
    assert isinstance(low, LowRank) and isinstance(dense, Dense) and low.shape == dense.shape
    assert low.squared_norm() == pytest.approx(float(low.dense().double().square().sum()), rel=1e-5)
    both = 2.0 * first + second - first
    assert torch.allclose(both.deltas[name].dense(), low.dense() + dense.dense(), atol=1e-6)
    twice = (first + first).deltas[name]
    assert torch.allclose(twice.dense(), 2 * low.dense(), atol=1e-6) and isinstance(twice, LowRank)
    assert (0.0 * first).is_empty()

    with model.patched(first), model.patched(second):
        above = model.module.state_dict()[name].clone()
        logits = model.capture([PROMPT], [Point("resid", 2)])[1][Point("resid", 2)]
    write_merged(model, [first, second], tmp_path / "merged")
    merged = load(str(tmp_path / "merged"))
    assert torch.equal(merged.module.state_dict()[name], above)
    assert torch.equal(merged.capture([PROMPT], [Point("resid", 2)])[1][Point("resid", 2)], logits)
    with pytest.raises(ConfigError, match=r"cannot be written as a LoRA adapter(.|\n)*experts(.|\n)*--as merged"):
        write_adapter(model, [first], tmp_path / "adapter")


def test_fine_tuning_keeps_a_change_of_low_rank():
    model, requests = taught("mixtral")
    patch = editor("ft", rank=2).edit(model, requests[:1]).patch
    (delta,) = patch.deltas.values()
    assert isinstance(delta, LowRank) and len(delta.shape) == 3
    with model.patched(patch):
        assert says(model, requests[0].prompt).startswith(requests[0].target_new)


def test_a_sequence_with_history_and_a_leak():
    model, requests = taught("qwen3_moe")
    for name, options in (("memit", {"history": True}), ("rome", {"history": True}), ("alphaedit", {"leak": 1.0})):
        first = editor(name, **options).edit(model, requests[:1])
        with model.patched(first.patch):
            second = editor(name, **options).edit(model, requests[1:2], state=first.state)
        assert second.state is not None and not second.patch.is_empty()


# What is refused


class Packed(Mxfp4GptOssExperts):
    """gpt-oss's experts as they are published, four bits a number, which compute nothing without their kernels."""

    def forward(self, hidden_states, *_):
        return torch.zeros_like(hidden_states)


@pytest.mark.parametrize("name", ["rome", "memit", "emmet", "alphaedit", "ft-l"])
def test_quantised_experts_are_refused_before_anything_is_computed(name, monkeypatch):
    module = tiny.tiny_module("gpt_oss")
    for layer in module.model.layers:
        layer.mlp.experts = Packed(module.config)
    model = load(module, tiny.tokenizer())
    monkeypatch.setattr(model.module, "forward", None)
    with pytest.raises(
        ModelError, match=r"quantised(.|\n)*Packed, its weight a Parameter of uint8(.|\n)*mlp.down"
    ) as caught:
        method(name, preset="none", layers=[1]).edit(model, tiny.requests(1))
    assert "take lora" in str(caught.value)
    with pytest.raises(ModelError, match="quantised"):
        model.sites.parameter_name("mlp.down", 1, takes_experts=True)


def test_doctor_says_that_quantised_experts_cannot_be_edited():
    module = tiny.tiny_module("gpt_oss")
    for layer in module.model.layers:
        layer.mlp.experts = Packed(module.config)
    found = examine(load(module, tiny.tokenizer()))
    methods = {one["method"]: one for one in found["methods"]}
    assert not methods["memit"]["can_edit"] and "quantised" in methods["memit"]["needs"] and methods["lora"]["can_edit"]
    assert any(
        "Packed, which cannot be changed, so only the attention can be edited" in one for one in found["special"]
    )
    assert not next(site for site in found["sites"] if site["site"] == "mlp.down")["verified"]


def test_experts_that_the_model_computes_past_are_refused(monkeypatch):
    module = tiny.tiny_module("mixtral")
    for layer in module.model.layers:
        layer.mlp.forward = torch.zeros_like  # as a kernel of the hub takes the place of the whole MLP
    model = load(module, tiny.tokenizer())
    with pytest.raises(ModelError, match=r"not stored in a way that can be edited(.|\n)*without kernels"):
        method("memit", preset="none", layers=[1]).edit(model, tiny.requests(1))


@pytest.mark.parametrize("name", ["ft-l", "crispedit"])
def test_a_projection_is_of_one_matrix(name):
    project = {"project": "inputs"} if name == "ft-l" else {}
    with pytest.raises(ModelError, match=r"mixture of experts(.|\n)*project = 'none'"):
        method(name, preset="none", layers=[1], **project).edit(tiny.tiny_model("mixtral"), tiny.requests(1))
