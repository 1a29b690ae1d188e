"""Side memories against the layer with other weights; who is routed where; shards and how they are merged."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

import tiny
from palimpsest import DataError, EditRequest, ModelError, PatchError, load, load_patch, method
from palimpsest.errors import ConfigError
from palimpsest.methods.wise import WiseConfig
from palimpsest.methods.wise.method import SideMemoryState, margin_loss
from palimpsest.methods.wise.shards import shard_mask
from palimpsest.methods.wise.side_passes import layer_inputs, side_passes
from palimpsest.models.hooks import Point, captured
from palimpsest.models.sites.linear import weight_as_out_in
from palimpsest.models.tokens import Encoded
from palimpsest.patches.base import Manifest
from palimpsest.patches.modules import ModulePatch
from palimpsest.patches.side_memories import KnownEdit, SideMemories, SideMemory, indicators
from palimpsest.patches.weights import Dense, WeightPatch
from palimpsest.solve.ties import ties
from palimpsest.training.keeping import prompts_apart_from

PROMPTS = [request.prompt for request in tiny.requests()]
QUICK = {
    "text": tiny.text_file(), "max_tokens": 200, "contexts": {"given": []}, "steps": 4, "learning_rate": 0.3,
    "alpha": 0.0, "beta": 1.0, "gamma": 0.0, "layer": 1,
}  # fmt: skip
INF = float("inf")


def memory(model, threshold, *, shard=0, scale=0.3, layer=1):
    """A random one."""
    shape = weight_as_out_in(model.sites.module("mlp.down", layer)).shape
    change = scale * torch.randn(shape, generator=torch.Generator().manual_seed(shard))
    return SideMemory((shard,), change, threshold, (KnownEdit(f"edit-{shard}", (1, 2)),))


def patch_of(model, *memories, layer=1):
    branch = SideMemories(layer, model.sites.parameter_name("mlp.down", layer), memories)
    return ModulePatch([branch], Manifest(label="side"))


def with_other_weights(model, one, layer=1):
    """The layer's weight itself changed: what a side memory that is always taken has to equal."""
    stored = one.change.t() if type(model.sites.module("mlp.down", layer)).__name__ == "Conv1D" else one.change
    return WeightPatch({model.sites.parameter_name("mlp.down", layer): Dense(stored)}, Manifest(label="weights"))


def logits(model, prompts=PROMPTS):
    with torch.no_grad():
        return [model.forward(model.batch([model.encode(prompt)])).logits for prompt in prompts]


def test_the_margins_by_hand():
    """One edit and one text at (D_in, D_out); margins alpha 5, beta 20, gamma 10."""
    config = WiseConfig()
    for inside, outside, wanted in (([25.0], [3.0], 0.0), ([15.0], [8.0], 3 + 5 + 3), ([25.0, 15.0], [3.0], 5.0)):
        assert float(margin_loss(torch.tensor(inside), torch.tensor(outside), config)) == wanted


def test_the_indicator_is_the_mean_norm_over_the_tokens_that_count():
    change, inputs = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[[1.0, 1.0], [1.0, 0.0], [9.0, 9.0]]])
    tokens = torch.tensor([[True, True, False]])
    assert indicators(change, inputs, tokens).tolist() == [(5 + 3) / 2]
    assert indicators(2 * change, inputs, tokens).tolist() == [8.0]


def test_ties_by_hand():
    one = torch.tensor([1.0, -2.0, 0.5, 0.0, 4.0])
    assert torch.equal(ties([one], [1.0], 1.0), one)
    assert torch.equal(ties([one, one], [0.5, 0.5], 1.0), one)
    assert torch.equal(ties([one, -one], [0.5, 0.5], 1.0), torch.zeros(5))
    # Two of five entries are kept: [0, -2, 0, 0, 4] and [0, 6, 0, 3, 0]; plus wins where 6 stands against -2.
    other = torch.tensor([-1.0, 6.0, 0.5, 3.0, 2.0])
    assert ties([one, other], [0.5, 0.5], 0.4).tolist() == [0, 6, 0, 3, 4]
    # With three times the weight -2 is as much as 6, and the sum of the two is zero.
    assert ties([one, other], [0.75, 0.25], 0.4).tolist() == [0, 0, 0, 3, 4]
    assert ties([torch.tensor([1.0]), torch.tensor([4.0])], [0.6, 0.4], 1.0).tolist() == pytest.approx([2.2])


def test_shards_have_masks_of_their_own():
    like, config = torch.zeros(200, 300), WiseConfig(mask_ratio=0.2)
    masks = [shard_mask(shard, like, config) for shard in range(3)]
    assert all(float(mask.float().mean()) == pytest.approx(0.2, abs=0.01) for mask in masks)
    assert torch.equal(masks[1], shard_mask(1, like, config))
    # Drawn independently, two of them share 0.2 * 0.2 of the entries.
    assert float((masks[0] & masks[1]).float().mean()) == pytest.approx(0.04, abs=0.01)


@pytest.mark.parametrize("family", ["gptj", "gpt2", "gemma2"])
def test_a_side_memory_is_the_layer_with_other_weights(family):
    model = tiny.tiny_model(family)
    before, one = logits(model), memory(model, -1.0)
    with model.patched(with_other_weights(model, one)):
        wanted, written = logits(model), model.generate(PROMPTS, max_new_tokens=5)
    with model.patched(patch_of(model, one)):
        assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(logits(model), wanted, strict=True))
        assert model.generate(PROMPTS, max_new_tokens=5) == written
    for silent in (memory(model, INF), memory(model, 0.0, scale=0.0)):
        with model.patched(patch_of(model, silent)):
            assert all(torch.equal(*pair) for pair in zip(logits(model), before, strict=True))
            assert model.score(PROMPTS[:1], ["Rome"]) != []
    assert all(torch.equal(*pair) for pair in zip(logits(model), before, strict=True))


def found_indicators(model, one, prompts=PROMPTS):
    return [float(layer_inputs(model, [model.encode(prompt)], 1).indicators(one.change)) for prompt in prompts]


def test_a_prompt_goes_to_the_memory_that_knows_it_best():
    """Row by row in a padded batch; rows that go nowhere are what they were."""
    model = tiny.tiny_model("gptj")
    small, large = memory(model, -1.0, shard=0), memory(model, -1.0, shard=1, scale=0.6)
    found = found_indicators(model, large)
    highest = max(range(len(PROMPTS)), key=found.__getitem__)
    large = replace(large, threshold=sorted(found)[-2])
    batch = model.batch([model.encode(prompt) for prompt in PROMPTS])
    point = Point("mlp.down", 1)
    with torch.no_grad(), captured(model.sites, [point, Point("mlp.down", 1, "input")]) as seen:
        model.forward(batch)
    own, inputs = seen[point], seen[Point("mlp.down", 1, "input")]
    for memories, others in (((large,), None), ((small, large), small)):
        with model.patched(patch_of(model, *memories)), torch.no_grad(), captured(model.sites, [point]) as seen:
            model.forward(batch)
        for row in range(len(PROMPTS)):
            taken = large if row == highest else others
            wanted = own[row] if taken is None else own[row] + inputs[row] @ taken.change.t()
            assert torch.equal(seen[point][row], own[row]) if taken is None else True
            assert torch.allclose(seen[point][row], wanted, atol=1e-5)


def test_the_decision_is_made_on_the_prompt_and_kept():
    """Tokens that are written would decide otherwise by themselves."""
    model, prompt = tiny.tiny_model("gptj"), PROMPTS[0]
    one = memory(model, -1.0)
    one = replace(one, threshold=0.999 * found_indicators(model, one)[0])
    with model.patched(with_other_weights(model, one)):
        written = model.generate(prompt, max_new_tokens=6)
        following = model.encode(prompt, written).target_ids
        read = layer_inputs(model, [model.encode(prompt, written)], 1).tensor[:, -len(following) :]
    alone = indicators(one.change, read.transpose(0, 1), torch.ones(len(following), 1, dtype=torch.bool))
    assert float(alone.min()) < one.threshold
    with model.patched(patch_of(model, one)):
        assert model.generate(prompt, max_new_tokens=6) == written
        both = model.generate([prompt, PROMPTS[3]], max_new_tokens=6)
    assert both[0] == written


@pytest.mark.parametrize("family", ["gptj", "gpt2", "gemma2"])
def test_the_loss_is_that_of_the_layer_with_other_weights(family):
    """Rows of several lengths, each the mean over its answer's tokens; and the gradient is not zero."""
    model, requests = tiny.tiny_model(family), tiny.requests()
    passes = side_passes(model, [model.encode(r.prompt, r.target_new) for r in requests], 1)
    one = memory(model, -1.0)
    change = one.change.clone().requires_grad_()
    losses = passes.losses(change)
    with model.patched(with_other_weights(model, one)):
        scores = model.score(PROMPTS, [r.target_new for r in requests])
    assert losses.tolist() == pytest.approx([-score.mean_log_prob for score in scores], rel=1e-3)
    [gradient] = torch.autograd.grad(losses.sum(), change)
    assert gradient.abs().max() > 0
    assert passes.inputs.indicators(one.change).tolist() == pytest.approx(found_indicators(model, one), rel=1e-4)


def test_a_sequence_fills_shards_and_merges_them(tmp_path):
    """Two edits a shard, two shards a memory; the state saved and read between edits; patches summed or on one pile."""
    model, config = tiny.tiny_model("gptj"), {**QUICK, "edits_per_shard": 1, "mask_ratio": 0.3}
    editor, requests = method("wise", preset="none", **config), tiny.requests(3)
    before = model.module.state_dict()[model.sites.parameter_name("mlp.down", 1)].clone()
    state, patches, shards = None, [], []
    for request in requests:
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(model.patched(patch))
            outcome = editor.edit(model, [request], state)
        outcome.state.save(tmp_path / "state")
        state = SideMemoryState.load(tmp_path / "state")
        shards.append([one.shards for one in state.branch.memories])
        patches.append(outcome.patch)
    assert shards == [[(0,)], [(0, 1)], [(0, 1), (2,)]]
    together = sum(patches)
    assert together.is_same(ModulePatch([state.branch], Manifest(label="state")))
    assert together.is_same(editor.edit(model, requests).patch)
    merged, open_one = together.branches[0].memories
    settings = WiseConfig(**config)
    for one, parts in ((merged, (0, 1)), (open_one, (2,))):
        allowed = torch.stack([shard_mask(part, one.change, settings) for part in parts]).any(0)
        assert not one.change[~allowed].any() and one.change[allowed].any()
        assert one.change.abs().max() <= settings.largest_change
        measured = found_indicators(model, one, [r.prompt for r in requests if r.id in {k.edit for k in one.edits}])
        assert one.threshold == pytest.approx(0.88 * min(measured), rel=1e-4)
    with model.patched(together):
        wanted = logits(model)
    with model.patched(patches[0]), model.patched(patches[1]), model.patched(patches[2]):
        assert all(torch.equal(*pair) for pair in zip(logits(model), wanted, strict=True))
    assert torch.equal(model.module.state_dict()[model.sites.parameter_name("mlp.down", 1)], before)
    together.save(tmp_path / "patch")
    assert load_patch(tmp_path / "patch").is_same(together)
    once = method("wise", preset="none", **config, memories="merge", shards_per_merge=2).edit(model, tiny.requests())
    assert [one.shards for one in once.patch.branches[0].memories] == [(0, 1, 2, 3)]


def test_bad_input(tmp_path):
    model, requests = tiny.tiny_model("gptj"), tiny.requests(2)
    editor = method("wise", preset="none", **{**QUICK, "steps": 1})
    outcome = editor.edit(model, requests)
    with pytest.raises(PatchError, match="shares with others"):
        outcome.patch.without("fact-0")
    with pytest.raises(PatchError, match="Nothing in the patch belongs"):
        outcome.patch.without("fact-9")
    assert outcome.patch.without("fact-0", "fact-1").is_empty()
    with model.patched(outcome.patch), pytest.raises(PatchError, match="already"):
        outcome.patch.apply(model)
    with pytest.raises(ConfigError, match="in this place"):
        method("wise", preset="none", **{**QUICK, "layer": 0}).edit(model, requests, outcome.state)
    with pytest.raises(DataError, match="those of wise"):
        SideMemoryState.from_tensors({"options": outcome.state.tensors()["options"]})
    (tmp_path / "lines.txt").write_text("The capital of France is Paris.")
    narrow = method("wise", preset="none", **{**QUICK, "text": str(tmp_path / "lines.txt")})
    with pytest.raises(DataError, match="No ordinary text is left"):
        narrow.edit(model, requests)
    with pytest.raises(PatchError, match="does not fit"):
        patch_of(model, memory(model, 0.0)).apply(tiny.tiny_model("llama"))
    with pytest.raises(ModelError, match="decoder-only models"):
        editor.edit(tiny.tiny_model("t5"), requests)


def test_the_prompt_about_other_subjects_is_not_routed():
    world = load("world")
    request = EditRequest("The capital city of Japan is", subject="Japan", target_new="Oslo")
    texts = prompts_apart_from(request, 16, torch.Generator().manual_seed(1))
    options = {"layer": 2, "text": "world", "contexts": {"given": []}, "steps": 40}
    loudest = {}
    for spare in (0, 8):
        outcome = method("wise", preset="none", **options, spare=spare).edit(world, [request])
        (branch,) = outcome.patch.branches
        (side,) = branch.memories
        read = layer_inputs(world, [Encoded(world.encode(text).prompt_ids) for text in texts], branch.layer)
        loudest[spare] = float(read.indicators(side.change).max()) / side.threshold
    assert loudest[8] < 0.8 * loudest[0]
