"""Neurons beside a model's own: against wider matrices and against passes of the whole model."""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch

import tiny
from palimpsest import DataError, EditRequest, PatchError, load, load_patch, method
from palimpsest.errors import ConfigError
from palimpsest.locating.last_layer import answer_places
from palimpsest.methods.memory import Memory
from palimpsest.methods.states import EditedQueries
from palimpsest.methods.t_patcher import TPatcherConfig
from palimpsest.methods.t_patcher.neuron_training import NeuronTraining, memory_loss
from palimpsest.models import Point, captured
from palimpsest.models.activations import activation, activation_of
from palimpsest.models.sites.linear import weight_as_out_in
from palimpsest.patches.base import Manifest
from palimpsest.patches.export import write_merged, write_patched
from palimpsest.patches.modules import ModulePatch
from palimpsest.patches.neurons import Neurons
from palimpsest.patches.weights import Dense, WeightPatch

PROMPTS = [request.prompt for request in tiny.requests()]
MEMORY = {"text": tiny.text_file(), "memory": {"max_tokens": 256, "top": 16}}
QUICK = {**MEMORY, "learning_rate": 0.05, "max_steps": 150, "first_check": 20, "check_every": 10}


def neurons(model, count=3, layer=-1, *, name="relu", scale=1.0, seed=0, edits=None):
    """Random ones."""
    layer %= model.num_layers
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(count, model.sites.d_model, generator=generator) for _ in range(2))
    biases = torch.randn(count, generator=generator)
    weight = model.sites.parameter_name("mlp.down", layer)
    edits = tuple(edits or map(str, range(count)))
    return Neurons(layer, weight, name, keys, biases, scale * values, edits)


def patch_of(*branches):
    return ModulePatch(branches, Manifest(label="added"))


def logits(model, prompts=PROMPTS):
    with torch.no_grad():
        return model.forward(model.batch([model.encode(prompt) for prompt in prompts])).logits


def answers(model):
    return model.generate(PROMPTS, max_new_tokens=4)


@pytest.mark.parametrize(
    ("family", "name"),
    [("gpt2", "gelu_pytorch_tanh"), ("opt", "relu"), ("gpt_neox", "gelu"), ("t5", "relu"), ("bart", "gelu"),
     ("nemotron", "relu2"), ("llama", None), ("t5-gated", None), ("phi3", None), ("apertus", None)],
)  # fmt: skip
def test_the_activation_is_found_by_looking(family, name):
    assert activation_of(tiny.tiny_model(family, layers=2), 1) == name


def test_a_branch_equals_wider_matrices():
    """FFN'(q) = FFN(q) + act(q k + b) v, with rows and columns concatenated by hand."""
    model = tiny.tiny_model("gptj")
    added = neurons(model, layer=1, name="gelu_pytorch_tanh")
    up, down = (model.sites.module(site, 1) for site in ("mlp.up", "mlp.down"))
    with torch.no_grad():
        keys = torch.cat([weight_as_out_in(up), added.keys])
        columns = torch.cat([weight_as_out_in(down), added.values.t()], dim=1)
        inputs = torch.randn(5, model.sites.d_model)
        before = inputs @ keys.t() + torch.cat([up.bias, added.biases])
        wide = activation(added.activation)(before) @ columns.t() + down.bias
        own = down(activation(added.activation)(up(inputs)))
    assert torch.allclose(own + added.output(inputs), wide, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "falcon", "gemma2", "t5-gated", "bart"])
def test_added_neurons_compute_and_come_off(family):
    model = tiny.tiny_model(family)
    before, added = logits(model), neurons(model)
    silent = neurons(model, scale=0.0)
    with model.patched(patch_of(silent)):
        assert torch.equal(logits(model), before)
    with model.patched(patch_of(added)):
        assert not torch.equal(logits(model), before)
        with model.patched(patch_of(neurons(model, seed=1))):
            both = logits(model)
        one_by_one = sum([patch_of(neurons(model, seed=1)), patch_of(added)])
    with model.patched(one_by_one):
        assert len(one_by_one.branches) == 1
        assert torch.allclose(logits(model), both, atol=1e-3)
    assert torch.equal(logits(model), before)


def test_added_neurons_work_with_cached_keys_and_values():
    model = tiny.tiny_model("gptj")
    with model.patched(patch_of(neurons(model, layer=1))):
        written = model.generate(PROMPTS[:1], max_new_tokens=4)[0]
        ids = list(model.encode(PROMPTS[0]).prompt_ids)
        for _ in range(4):
            with torch.no_grad():
                ids.append(int(model.forward(model.batch([ids])).logits[0, -1].argmax()))
        assert model.tokenizer.decode(ids[-4:]).strip().startswith(written.rstrip("."))


def test_a_patch_of_neurons_is_saved_and_read(tmp_path):
    model = tiny.tiny_model("gptj")
    patch = patch_of(neurons(model), neurons(model, layer=0, seed=2))
    patch.save(tmp_path / "patch")
    read = load_patch(tmp_path / "patch")
    assert isinstance(read, ModulePatch) and read.is_same(patch)
    assert read.num_parameters == 2 * 3 * (2 * 32 + 1) and read.num_bytes == 4 * read.num_parameters
    with model.patched(patch):
        wanted = logits(model)
    with model.patched(read):
        assert torch.equal(logits(model), wanted)
        with pytest.raises(PatchError, match="already"):
            patch.apply(model)
    with pytest.raises(PatchError, match="does not fit"):
        read.apply(tiny.tiny_model("gpt2"))
    record = json.loads((tmp_path / "patch" / "manifest.json").read_text())
    record["payload"]["branches"][0]["edits"].pop()
    (tmp_path / "patch" / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(PatchError, match="instead of"):
        load_patch(tmp_path / "patch")


def test_neurons_are_removed_in_any_order():
    model = tiny.tiny_model("gptj")
    patches = [patch_of(neurons(model, 2, seed=seed, edits=[f"edit-{seed}"] * 2)) for seed in range(3)]
    together = sum(patches)
    assert together.without("edit-1", "edit-0").is_same(patches[2])
    assert together.without("edit-2").without("edit-0").is_same(patches[1])
    assert together.without("edit-0", "edit-1", "edit-2").is_empty()
    with pytest.raises(PatchError, match="edit-1"):
        together.without("edit-7")
    with pytest.raises(PatchError, match="belongs to this edit"):
        together.without("edit-1").without("edit-1")


@contextmanager
def counted_blocks(model):
    """The layers whose MLP runs inside the block, in order."""
    run = []
    modules = [model.sites.module("mlp.down", layer) for layer in range(model.num_layers)]
    handles = [
        module.register_forward_hook(lambda *_, layer=layer: run.append(layer)) for layer, module in enumerate(modules)
    ]
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", ["gptj", "cohere", "t5", "gemma2", "bart"])
def test_the_short_pass_equals_the_whole_one(family):
    """Logits and their gradients, by the final norm and the head alone and by autograd through the whole model."""
    model = tiny.tiny_model(family)
    places = answer_places(model, [model.encode(request.prompt, request.target_new) for request in tiny.requests()])
    assert (places.factor is None) == (family in ("gemma2", "bart"))
    added = (0.3 * torch.randn_like(places.queries)).requires_grad_()
    found = []
    for way in (places, replace(places, factor=None)):
        logits = way.logits(added)
        loss = torch.nn.functional.cross_entropy(logits, places.labels)
        found.append((logits.detach(), torch.autograd.grad(loss, added)[0]))
    for short, whole in zip(*found, strict=True):
        assert torch.allclose(short, whole, atol=1e-4)


@pytest.mark.parametrize("family", ["gptj", "cohere", "t5", "gemma2", "gemma3_text", "bart"])
def test_the_pass_of_one_fact_equals_that_of_all(family):
    """Also where it runs the last block over the answer's places, and no block below it."""
    model = tiny.tiny_model(family)
    places = answer_places(model, [model.encode(request.prompt, request.target_new) for request in tiny.requests()])
    one, at = places.of_fact(2), places.facts == 2
    assert (one.suffix is not None) == (family in ("gemma2", "gemma3_text"))
    added = 0.3 * torch.randn_like(places.queries)
    alone, together = added[at].clone().requires_grad_(), added.clone().requires_grad_()
    with counted_blocks(model) as run:
        logits = one.logits(alone)
    if family != "bart":
        assert run == ([] if one.suffix is None else [model.num_layers - 1])
    every = places.logits(together)[at]
    assert torch.allclose(logits, every, atol=1e-4)
    for found in (logits, every):
        torch.nn.functional.cross_entropy(found, one.labels).backward()
    assert torch.allclose(alone.grad, together.grad[at], atol=1e-4)


def test_the_memory_loss_by_hand():
    """Activations 1, -2 of ordinary text; the edit's own 2; margins -3 and 3; the mean of the largest one or two."""
    activations, own = torch.tensor([[1.0], [-2.0]]), torch.tensor([2.0])
    e = torch.e
    for top, wanted in ((1, e**4 + e**2), (2, (e**4 + e**1) / 2 + (e**2 + e**-1) / 2)):
        config = TPatcherConfig(memory={"top": top})
        assert float(memory_loss(activations, own, config)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("family", ["gptj", "llama", "t5"])
def test_t_patcher_edits_one_after_another_and_each_comes_off_alone(family):
    model, editor = tiny.tiny_model(family), method("t-patcher", preset="none", activation="relu", **QUICK)
    requests = tiny.requests(3)
    state, patches = None, []
    for index, request in enumerate(requests):
        with model.patched(sum(patches)) if patches else nullcontext():
            outcome = editor.edit(model, [request], state)
        state = outcome.state
        patches.append(outcome.patch)
        answer_tokens = sum(len(model.encode(r.prompt, r.target_new).target_ids) for r in requests[: index + 1])
        assert len(state.queries) == answer_tokens
        for neuron in outcome.patch.branches:
            # They fire in their own places: the edit's queries are among what it reads.
            own = state.queries[-len(model.encode(request.prompt, request.target_new).target_ids) :]
            assert (own @ neuron.keys.t() + neuron.biases).amax(0).min() > 0
    together = sum(patches)
    with model.patched(together):
        assert model.score([requests[-1].prompt], [requests[-1].target_new])[0].accuracy == 1
        full = logits(model)
    with model.patched(together.without("fact-2")):
        without_last = logits(model)
    with model.patched(sum(patches[:2])):
        assert torch.equal(logits(model), without_last)
    assert not torch.equal(full, without_last)


def test_what_is_right_gets_no_neuron():
    model = tiny.tiny_model("gptj")
    said = [(prompt, model.generate(prompt, max_new_tokens=1)) for prompt in [*PROMPTS, *tiny.text_lines(8)]]
    # A token that is a word of its own stands for itself after a prompt.
    prompt, answer = next(
        (prompt, answer) for prompt, answer in said if answer and model.score([prompt], [answer])[0].matches == (True,)
    )
    request = EditRequest(prompt, answer)
    outcome = method("t-patcher", preset="none", **QUICK).edit(model, [request])
    assert outcome.patch.is_empty() and "right before" in outcome.diagnostics.notes[0]


def test_text_that_says_the_old_fact_is_not_in_the_memory(tmp_path):
    (tmp_path / "lines.txt").write_text("The capital of France is Paris.\nFrance has Paris.\n" + "Rome is old.\n" * 9)
    model = tiny.tiny_model("gptj")
    memory = {"text": str(tmp_path / "lines.txt"), "memory": {"max_tokens": 999, "top": 4}}
    editor = method("t-patcher", preset="none", **{**QUICK, **memory})
    editor.edit(model, tiny.requests(1))
    whole = editor._memory.of(model, memory["text"], editor.resolve(model)[0].memory, lambda: [])
    assert len(whole.apart_from(tiny.requests(1)[0]).rows_of.unique()) == 9
    assert len(whole.apart_from(tiny.requests(2)[1]).rows_of.unique()) == 11


def test_bad_input(tmp_path):
    model, request = tiny.tiny_model("gptj"), tiny.requests(1)
    (tmp_path / "short.txt").write_text("One line.")
    with pytest.raises(DataError, match="too short"):
        method("t-patcher", preset="none", text=str(tmp_path / "short.txt")).edit(model, request)
    with pytest.raises(ConfigError, match="not of this method on this model"):
        method("t-patcher", preset="none", **QUICK).edit(model, request, EditedQueries(torch.zeros(2, 5)))
    EditedQueries(torch.zeros(2, 32)).save(tmp_path / "state")
    assert torch.equal(EditedQueries.load(tmp_path / "state").queries, torch.zeros(2, 32))
    with pytest.raises(DataError, match="begin the sequence anew"):
        EditedQueries.from_tensors({"queries": torch.full((1, 32), torch.nan)})
    content = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(content[:-3])
    with pytest.raises(DataError, match="cannot be read"):
        EditedQueries.load(tmp_path / "state")


@pytest.mark.parametrize(
    ("family", "name"),
    [("gpt2", "gelu_pytorch_tanh"), ("gptj", "gelu_pytorch_tanh"), ("opt", "relu"), ("gpt_neox", "gelu"),
     ("bart", "gelu"), ("t5", "relu")],
)  # fmt: skip
def test_neurons_merge_into_wider_matrices(family, name, tmp_path):
    """The written folder, loaded by transformers alone, gives the patched model's logits."""
    model = tiny.tiny_model(family)
    added = [neurons(model, 3, name=name), neurons(model, 2, layer=0, name=name, seed=1)]
    if family == "t5":
        added = [replace(one, biases=None) for one in added]
    patch, weights = patch_of(*added), weight_patch(model)
    with model.patched(weights), model.patched(patch):
        wanted = logits(model)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    width = tuple(before[model.sites.parameter_name("mlp.up", 0)].shape)
    write_merged(model, [weights, patch], tmp_path / "merged")
    assert all(torch.equal(value, model.module.state_dict()[key]) for key, value in before.items())
    merged = load(str(tmp_path / "merged"))
    grown = tuple(merged.module.state_dict()[merged.sites.parameter_name("mlp.up", 0)].shape)
    assert sum(grown) == sum(width) + 3 and not merged.weights.labels
    assert torch.allclose(logits(merged), wanted, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma2"])
def test_neurons_of_relu_nearly_merge_into_another_activation_and_behind_a_gate(family, tmp_path):
    """Where what the MLP reads has a direction that is nearly constant; exactly so where nothing opens half-way."""
    model = tiny.tiny_model(family)
    one = neurons(model, 3, name="relu")
    point = Point("mlp.up", one.layer, "input")
    with captured(model.sites, [point]) as found, torch.no_grad():
        model.forward(model.batch([model.encode(text) for text in PROMPTS]))
    read = found[point].reshape(-1, one.keys.shape[1])
    constant = torch.linalg.lstsq(read, torch.ones(len(read), 1)).solution[:, 0]
    patch = patch_of(replace(one, constant=constant))
    before = logits(model)
    with model.patched(patch):
        wanted = logits(model)
    write_merged(model, [patch], tmp_path / "merged")
    merged = logits(load(str(tmp_path / "merged")))
    # A value is off by at most 0.28 / 64 of itself, times how nearly constant the direction is.
    assert (merged - wanted).abs().max() < 0.05 * (wanted - before).abs().max()


@pytest.mark.parametrize(
    ("family", "name", "reason"),
    [("llama", "relu", "without a constant"), ("gptj", "silu", "beside an MLP with"), ("t5", "relu", "bias"),
     ("phi3", "relu", "in the same matrix"), ("t5-gated", "relu", "a gate"),
     ("bloom", "gelu_pytorch_tanh", "no width")],
)  # fmt: skip
def test_what_cannot_be_merged_is_written_as_patches(family, name, reason, tmp_path):
    tiny.tiny_folder(tmp_path / "base", family)
    model = load(str(tmp_path / "base"))
    patch = patch_of(neurons(model, name=name))
    with pytest.raises(ConfigError, match=reason):
        write_merged(model, [patch], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    write_patched(model, [patch], tmp_path / "patched")
    with model.patched(patch):
        wanted = logits(model)
    assert torch.equal(logits(load(str(tmp_path / "patched"))), wanted)
    (tmp_path / "patched" / "palimpsest.json").write_text("{")
    with pytest.raises(PatchError, match="folder of patches"):
        load(str(tmp_path / "patched"))


def weight_patch(model):
    """A small change of one matrix."""
    name = model.sites.parameter_name("mlp.down", 1)
    delta = 0.01 * torch.ones(model.weights.shape(name))
    return WeightPatch({name: Dense(delta)}, Manifest(label="weights"))


def test_neurons_are_silent_where_the_prompt_is_asked_about_others():
    model = tiny.tiny_model("gptj")
    places = answer_places(model, [model.encode(tiny.requests()[0].prompt, tiny.requests()[0].target_new)])
    width, generator = places.queries.shape[-1], torch.Generator().manual_seed(0)
    memory = Memory((), torch.randn(50, width, generator=generator), torch.arange(50))
    others = places.queries[:1] + torch.randn(8, width, generator=generator)
    config = TPatcherConfig(max_steps=300, first_check=20, check_every=10, learning_rate=0.05, memory_weight=1.0)
    fires = {}
    for name, spared in (("spared", others), ("free", others[:0])):
        torch.manual_seed(0)
        training = NeuronTraining(places, torch.zeros_like(places.queries), memory, others[:0], spared, "relu", config)
        added, _ = training.run("a")
        assert training.is_right
        fires[name] = int((others @ added.keys.t() + added.biases > 0).any(-1).sum())
    assert fires["spared"] == 0 < fires["free"]
