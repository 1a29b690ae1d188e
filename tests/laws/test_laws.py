"""What every method must keep, whatever it computes. A new method adds one row to the table."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import pytest
import torch

import tiny
from palimpsest import ConfigError, DataError, EditRequest, ModelError, load_patch, method
from palimpsest.methods.catalogue import METHODS
from palimpsest.models.sites.table import row_for
from palimpsest.patches.weights import LowRank

QUICK = {"learning_rate": 1e-2, "epochs": 30, "stop_loss": 0.05}
ADAPTERS = {"sites": "auto", "layers": "all", "rank": 8, "alpha": 16.0, "spare": False}
BALL = {"radius": 0.05, "spare": False}
WHOLE = {"parameters": "all", "spare": False}
FORGET = {"only_mastered": False, "rate": 0.1, "forget_options": {"learning_rate": 1e-3, "epochs": 3}}
FORGET_WHOLE = {**FORGET, "forget_options": {**WHOLE, "learning_rate": 1e-3, "epochs": 3}}
STEP = {"learning_rate": 1e-2, "epochs": 1}
STEPS = {"only_mastered": False, "rate": 0.1, "forget_options": STEP, "learn_options": STEP}
KEYS = tiny.second_moments(damping=1e-3)
LOCATED = {**KEYS, "layers": [1]}
MEMORY = {"text": tiny.text_file(), "memory": {"max_tokens": 256, "top": 16}}
# As published, without a margin for the prompt about other subjects: random layers read those almost alike, and what is
# held against them takes most of what a few steps gain. test_added_neurons.py and test_wise.py test that margin.
NEURONS = {**MEMORY, "max_steps": 80, "first_check": 80, "learning_rate": 0.05, "label_smoothing": 0.0, "spare": 0}
FEW_NEURONS = {**NEURONS, "max_steps": 5, "memory_weight": 0.0}
SIDE = {
    "text": tiny.text_file(), "max_tokens": 200, "contexts": {"given": []},
    "alpha": 0.0, "beta": 0.0, "gamma": 0.0, "spare": 0,
}  # fmt: skip
GATES = {"text": tiny.text_file(), "max_tokens": 256, "layer": 1, "others": 4, "alike": 4}
GRADIENTS = {"text": tiny.text_file(), "warm_up": 256, "layers": [1], "step": 0.6}
FEWEST = {**KEYS, "layers": [0], "contexts": {"given": []}, "targets": {"steps": 4}}


class Row(NamedTuple):
    options: dict
    is_low_rank: bool = False
    edits_fully: bool = True
    """Whether a tiny random model can be brought to say the new answer with probability above one half."""
    drift: float = 8.0
    """How far, in nats per token, another answer of a tiny random model may move. Training all of 40,000 random weights
    moves everything; a trained model is steadier by far."""
    shortest: dict | None = None
    """Options for the least that is an edit, where every family and dtype is tried; left out: the options above."""
    is_composed: bool = False
    """Whether it is other rows of the table one after another, or one with other options, so that most of what a family
    can break breaks there; or computes in float32 whatever the model does."""
    is_trained: bool = True
    """Whether it takes gradient steps on weights, which have losses and can diverge."""
    gain: float = 1.0
    """Nats by which the new answer gains at least, where it cannot be edited fully."""
    edits_encoder_decoders: bool = True
    is_silent: bool = False
    """Whether what it adds may leave unrelated text exactly alone."""
    is_cautious: bool = False
    """Whether it hands over nothing where the new answer is not said, as a random model may never do."""
    is_read: bool = False
    """Whether it works through what is read in a prompt's place: a random model makes nothing sensible of that, and
    what the model itself computes of a batch stays as it is."""


def located(is_composed=False, **more):
    """A row of ROME's and MEMIT's kin: one vector in the middle of a random model does little."""
    return Row(
        {**LOCATED, **more},
        is_low_rank=True,
        edits_fully=False,
        shortest={**FEWEST, **more},
        is_composed=is_composed,
        is_trained=False,
        gain=0.4,
        edits_encoder_decoders=False,
    )


TABLE = {
    "auto": Row(
        {
            "ladder": [{"method": "ft", "preset": "none", "options": {**QUICK, **WHOLE, "epochs": 60}}],
            "keep": 0.0,
            "num_contexts": 1,
            "num_neighbours": 1,
        },
        is_composed=True,
        is_trained=False,
        is_cautious=True,
    ),
    "ft": Row({**QUICK, **WHOLE}, shortest={**STEP, **WHOLE}),
    "ft-l": Row({**QUICK, **BALL}, edits_fully=False, drift=1.5, shortest={**STEP, **BALL}),
    "locft": Row(
        {**QUICK, "learning_rate": 5e-2, "append_eos": False, "layers": "auto", "spare": False},
        drift=6.0,
        shortest=STEP,
    ),
    # Its first passes are those of the text's gradients, which are told to be not finite in other words.
    "crispedit": Row(
        {**LOCATED, **QUICK, "energy": 0.5, "spare": False},
        edits_fully=False,
        shortest={**LOCATED, **STEP, "energy": 0.5},
        is_composed=True,
        is_trained=False,
        edits_encoder_decoders=False,
    ),
    "lora": Row({**QUICK, **ADAPTERS, "learning_rate": 3e-2}, is_low_rank=True, shortest=STEP),
    "kn": Row(
        {"threshold": 0.05},
        is_low_rank=True,
        edits_fully=False,
        shortest={"threshold": 0.05, "steps": 2},
        is_trained=False,
    ),
    "ike": Row(
        {"corpus": tiny.corpus_file(), "encoder": "ngrams", "num_demonstrations": 2},
        is_trained=False,
        is_read=True,
        is_composed=True,
    ),
    "t-patcher": Row(NEURONS, is_trained=False, is_silent=True, shortest=FEW_NEURONS, is_composed=True),
    "mend": Row(
        {"editor": "fresh", "strength": 300.0},
        is_low_rank=True,
        edits_fully=False,
        is_trained=False,
    ),
    "grace": Row(
        {"steps": 60, "radius": 0.5},
        edits_fully=False,
        shortest={"steps": 2, "radius": 0.5},
        is_trained=False,
        is_silent=True,
        is_composed=True,
    ),
    "horen": Row(
        {"steps": 60},
        edits_fully=False,
        shortest={"steps": 2},
        is_trained=False,
        is_silent=True,
        is_composed=True,
    ),
    # Layers of a random model read all subjects much alike: gates open wider and sooner than in a trained one.
    "subject-neurons": Row(
        {**GATES, "contexts": {"given": ["It is said. {}"]}},
        edits_fully=False,
        shortest={**GATES, "layer": 0, "contexts": {"given": []}, "targets": {"steps": 4}},
        is_trained=False,
        is_silent=True,
        is_composed=True,
        edits_encoder_decoders=False,
    ),
    "wise": Row(
        {**SIDE, "steps": 30, "learning_rate": 0.3},
        edits_fully=False,
        shortest={**SIDE, "steps": 2, "learning_rate": 0.3},
        is_trained=False,
        is_silent=True,
        is_composed=True,
        edits_encoder_decoders=False,
    ),
    "calinet": Row(
        {"steps": 40, "learning_rate": 0.02},
        edits_fully=False,
        shortest={"steps": 2, "learning_rate": 0.1},
        is_trained=False,
        is_silent=True,
        is_composed=True,
    ),
    "ke": Row(
        {"editor": "fresh", "strength": 0.06},
        is_low_rank=True,
        edits_fully=False,
        is_trained=False,
    ),
    "serac": Row({"editor": "fresh"}, is_trained=False, is_read=True, is_silent=True, is_composed=True),
    "rome": located(),
    "r-rome": located(is_composed=True),
    "memit": located(strength=0.01),
    "emmet": located(is_composed=True),
    "pmet": located(is_composed=True, strength=0.01),
    "alphaedit": located(is_composed=True, strength=0.01, energy=0.5),
    "ultraedit": Row(
        {**GRADIENTS, "rounds": 6},
        is_low_rank=True,
        edits_fully=False,
        shortest={**GRADIENTS, "rounds": 1},
        is_trained=False,
        gain=0.4,
    ),
    "stableedit": Row(
        {**GRADIENTS, "rounds": 6, "normaliser": "shrunk"},
        is_low_rank=True,
        edits_fully=False,
        shortest={**GRADIENTS, "rounds": 1, "normaliser": "shrunk"},
        is_composed=True,
        is_trained=False,
        gain=0.4,
    ),
    "f-learning": Row({**FORGET_WHOLE, "learn_options": {**QUICK, **WHOLE}}, shortest=STEPS, is_composed=True),
    "f-learning-ft": Row({**FORGET_WHOLE, "learn_options": {**QUICK, **WHOLE}}, shortest=STEPS, is_composed=True),
    "f-learning-lora": Row(
        {
            **FORGET,
            "forget_options": {"rank": 2, "epochs": 3},
            "learn_options": {**QUICK, **ADAPTERS, "rank": 4, "learning_rate": 3e-2},
        },
        is_low_rank=True,
        drift=6.0,
        shortest=STEPS,
        is_composed=True,
    ),
    "f-learning-lora-ft": Row({**FORGET, "learn_options": {**QUICK, **WHOLE}}, shortest=STEPS, is_composed=True),
}


def cell(*values, is_quick):
    """A row of parameters; where other rows nearly stand for it, the fast suite leaves it to `make test-all`."""
    return pytest.param(*values, marks=() if is_quick else pytest.mark.slow)


FAMILIES = ("gpt2", "gptj", "llama")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Half precision of each of its kinds, with one kind of layers each.
HALVES = (("gptj", torch.bfloat16), ("llama", torch.float16))
COMPOSED = [name for name, row in TABLE.items() if row.is_composed]
# Methods that write into the experts of a mixture; what else changes one leaves them alone, or trains them all.
EDITS_EXPERTS = ("ft-l", "locft", "rome", "r-rome", "memit", "emmet", "pmet", "alphaedit")
# Where layers are of another kind, outputs are changed in place, or a norm follows the MLP: one method a kind of patch.
MORE_FAMILIES = ("gpt_neox", "opt", "gemma2", "falcon")


def in_turn(name, places):
    """The place of a composed method: what it is composed of is tried in all of them."""
    return places[COMPOSED.index(name) % len(places)]


def is_quick_cell(name, family, dtype):
    """The fast suite takes every way to edit with every kind of layers and dtype; one that is composed of others with
    one kind of layers."""
    if TABLE[name].is_composed:
        return dtype == torch.float32 and family == in_turn(name, FAMILIES)
    return dtype == torch.float32 or (family, dtype) in HALVES


CELLS = [
    cell(name, family, dtype, is_quick=is_quick_cell(name, family, dtype))
    for name in TABLE
    for family in FAMILIES
    for dtype in DTYPES
]
CELLS += [
    (name, family, torch.float32) for name in ("ft-l", "locft", "lora", "kn", "memit") for family in MORE_FAMILIES
]
CELLS += [
    cell(name, family, torch.float32, is_quick=not row.is_composed or family == in_turn(name, ("t5-gated", "bart")))
    for name, row in TABLE.items()
    for family in ("t5-gated", "bart")
    if row.edits_encoder_decoders
]
CELLS += [(name, "t5", torch.bfloat16) for name in ("ft", "lora")]
# Experts stored (out, width) without biases, and (width, out) with them; `locft` trains them as `ft-l` does.
CELLS += [
    cell(name, family, torch.float32, is_quick=(family == "gpt_oss") is TABLE[name].is_composed)
    for name in EDITS_EXPERTS
    if name != "locft"
    for family in ("mixtral", "gpt_oss")
]
# The first family of each row of the site table; others of a row have the same kinds of layers under the same names.
LAYOUTS = {row_for(tiny.tiny_config(family)).name: family for family in reversed(tiny.EVERY)}
# Of a composed method, the fast suite takes every third of them, another third for the next method.
STEP_OF_LAYOUTS = 3


# One of each way to change weights: all of them, beside them, and by a solve. The other dtypes take turns.
WAYS = ("ft", "lora", "memit")


def is_quick(name, family, dtype):
    """The fast suite takes every way to edit with every layout in bfloat16, the hardest dtype; the rest varies less."""
    if family not in LAYOUTS.values():
        return (name, dtype) in (("lora", torch.float32), ("ft-l", torch.bfloat16))
    turn = list(LAYOUTS.values()).index(family)
    if TABLE[name].is_composed:
        return dtype == torch.bfloat16 and (turn + COMPOSED.index(name)) % STEP_OF_LAYOUTS == 0
    return dtype == torch.bfloat16 or name == WAYS[(turn + DTYPES.index(dtype)) % len(WAYS)]


# One model at a time, for all methods.
EVERYTHING = [
    cell(family, dtype, name, is_quick=is_quick(name, family, dtype))
    for family in tiny.EVERY
    for dtype in DTYPES
    for name in TABLE
]


def make(name, **more):
    return method(name, preset="none", **{**TABLE[name].options, **more})


def make_shortest(name, **more):
    row = TABLE[name]
    return method(name, preset="none", **{**(row.options if row.shortest is None else row.shortest), **more})


def state(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def is_same(model, before):
    now = model.module.state_dict()
    return list(now) == list(before) and all(torch.equal(now[name], before[name]) for name in before)


def target_log_prob(model, request):
    return model.score([request.prompt], [request.target_new])[0].log_prob


def refused(row, outcome):
    """Whether a cautious method handed over nothing, which it may only where the fact does not hold."""
    if not (row.is_cautious and outcome.patch.is_empty()):
        return False
    assert not any(fact["holds"] for fact in outcome.diagnostics.facts["facts"])
    return True


def test_every_method_has_a_row():
    assert set(TABLE) == set(METHODS)


@lru_cache(maxsize=1)
def shared(family, dtype):
    """A model that all methods are tried on; each must leave it as it was."""
    model = tiny.tiny_model(family, dtype=dtype, layers=2)
    return model, state(model), logits(model)


def logits(model, is_read=False):
    request = tiny.requests(1)[0]
    if is_read:
        return torch.tensor(model.score([request.prompt], [request.target_new])[0].log_probs)
    batch = model.batch([model.encode(request.prompt, request.target_new)])
    with torch.no_grad():
        return model.forward(batch).logits


@pytest.mark.parametrize(("family", "dtype", "name"), EVERYTHING)
def test_every_family_in_every_dtype(family, dtype, name, tmp_path):
    """Edited, put on, taken off, saved, read back, put on: each bit for bit. Or refused before anything is computed."""
    model, before, unedited = shared(family, dtype)
    row, request = TABLE[name], tiny.requests(1)[0]
    editor = make_shortest(name)
    try:
        editor.require(model)
    except ModelError:
        assert name not in EDITS_EXPERTS or not model.sites.architecture.is_mixture
        reason = "mixture of experts" if model.sites.architecture.is_mixture else "supports decoder-only models"
        assert model.sites.architecture.is_mixture or (model.is_encoder_decoder and not row.edits_encoder_decoders)
        with pytest.raises(ModelError, match=reason):
            editor.edit(model, [request])
        return
    outcome = editor.edit(model, [request])
    patch = outcome.patch
    assert is_same(model, before)
    if refused(row, outcome):
        return
    assert all(tensor.dtype == torch.float32 for tensor in patch.tensors().values())
    unedited = logits(model, row.is_read) if row.is_read else unedited
    with model.patched(patch):
        edited = logits(model, row.is_read)
        assert edited.isfinite().all() and not torch.equal(edited, unedited)
    assert is_same(model, before) and torch.equal(logits(model, row.is_read), unedited)
    if dtype == torch.bfloat16:  # What is saved is float32 in each of them.
        patch.save(tmp_path / "patch")
        with model.patched(load_patch(tmp_path / "patch")):
            assert torch.equal(logits(model, row.is_read), edited)
        assert is_same(model, before)


@pytest.mark.parametrize(("name", "family", "dtype"), CELLS)
def test_editing_leaves_the_model_and_the_patch_makes_it_true(name, family, dtype, tmp_path):
    model = tiny.tiny_model(family, dtype=dtype)
    request = tiny.requests(1)[0]
    far = "It was written long ago by"
    before, flags = state(model), [p.requires_grad for p in model.module.parameters()]
    unedited, far_before = target_log_prob(model, request), model.score([far], ["people"])[0].mean_log_prob
    random_state = torch.get_rng_state()

    outcome = make(name).edit(model, [request])

    assert is_same(model, before)
    assert [p.requires_grad for p in model.module.parameters()] == flags
    assert all(p.grad is None for p in model.module.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    if refused(TABLE[name], outcome):
        return
    with model.patched(outcome.patch):
        edited = target_log_prob(model, request)
        far_after = model.score([far], ["people"])[0].mean_log_prob
        # A norm behind a layer bounds what the layer can write; in three random layers that is not enough.
        is_free = TABLE[name].edits_fully and model.sites.architecture.mlp_writes_residual
        if TABLE[name].is_read:
            assert edited != unedited
        else:
            assert edited > max(unedited, -0.7 if is_free else unedited + TABLE[name].gain)
        # Weights did change, and not beyond all bounds.
        assert TABLE[name].is_silent or far_after != far_before
        assert abs(far_after - far_before) < TABLE[name].drift
    assert is_same(model, before)
    assert model.score([far], ["people"])[0].mean_log_prob == far_before

    outcome.patch.save(tmp_path / "patch")
    with model.patched(load_patch(tmp_path / "patch")):
        assert target_log_prob(model, request) == edited
    if TABLE[name].is_low_rank:
        assert all(isinstance(delta, LowRank) for delta in outcome.patch.deltas.values())


@pytest.mark.parametrize("name", TABLE)
def test_one_seed_gives_the_same_bits(name):
    model = tiny.tiny_model("gptj")
    first, second = (make_shortest(name, seed=3).edit(model, tiny.requests(2)).patch for _ in range(2))
    assert first.touched() == second.touched()
    assert all(torch.equal(value, second.tensors()[key]) for key, value in first.tensors().items())


@pytest.mark.parametrize("name", TABLE)
def test_no_requests_give_an_empty_patch(name):
    model = tiny.tiny_model("gptj")
    patch = make(name).edit(model, []).patch
    assert patch.is_empty() and patch.num_bytes == 0
    with model.patched(patch):
        pass


@pytest.mark.parametrize("name", TABLE)
def test_the_patch_says_how_it_was_made(name):
    model = tiny.tiny_model("gptj")
    outcome = make_shortest(name, seed=5).edit(model, tiny.requests(2))
    manifest = outcome.patch.manifest
    assert (manifest.method, manifest.seed) == (name, 5)
    assert [edit["id"] for edit in manifest.edits] == ["fact-0", "fact-1"]
    assert set(type(make(name)).Config.model_fields) == set(manifest.config)
    assert set(manifest.base["touched"]) == set(outcome.patch.touched())
    assert outcome.diagnostics.seconds["total"] > 0 and outcome.diagnostics.peak_memory_bytes > 0
    if TABLE[name].is_trained:
        assert set(outcome.diagnostics.losses) == {"fact-0", "fact-1"}


@pytest.mark.parametrize("name", TABLE)
def test_the_model_survives_an_interrupt(name):
    model = tiny.tiny_model("gptj")
    before, flags = state(model), [p.requires_grad for p in model.module.parameters()]

    def stop(stage, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(name).edit(model, tiny.requests(2), progress=stop)
    assert is_same(model, before)
    assert [p.requires_grad for p in model.module.parameters()] == flags
    assert model.weights.labels == []


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.is_trained])
def test_a_loss_that_is_not_finite_is_an_error(name, monkeypatch):
    model = tiny.tiny_model("gptj")
    before, flags = state(model), [p.requires_grad for p in model.module.parameters()]
    real, calls = model.logits_at, iter(range(1000))

    def broken(*args):
        return real(*args) * (float("nan") if next(calls) == 2 else 1.0)

    monkeypatch.setattr(model, "logits_at", broken)
    with pytest.raises(ConfigError, match="diverged"):
        make(name).edit(model, tiny.requests(2))
    assert is_same(model, before)
    assert [p.requires_grad for p in model.module.parameters()] == flags
    assert model.weights.labels == []


@pytest.mark.parametrize("name", TABLE)
def test_bad_requests_cost_nothing(name, monkeypatch):
    model = tiny.tiny_model("gptj")
    monkeypatch.setattr(model, "forward", None)
    monkeypatch.setattr(model, "logits_at", None)
    one, two = (EditRequest("A is", target, subject="A", target_old="x") for target in "bc")
    with pytest.raises(DataError, match="contradict"):
        make(name).edit(model, [one, two])
    if make(name).capabilities.needs_old_answer:
        with pytest.raises(DataError, match="target_old"):
            make(name).edit(model, [EditRequest("A is", "b")])


@pytest.mark.parametrize("name", TABLE)
def test_unknown_options_get_near_matches(name):
    with pytest.raises(ConfigError, match="seed"):
        method(name, sed=1)
    with pytest.raises(ConfigError, match="no preset"):
        method(name, preset="nothing").edit(tiny.tiny_model("gptj"), tiny.requests(1))


def test_unknown_methods_get_near_matches():
    with pytest.raises(ConfigError, match="f-learning-lora"):
        method("f-learning-lorra")
