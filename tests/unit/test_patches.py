import errno
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from palimpsest import OutputError, PatchError, WeightPatch, load, load_patch, method
from palimpsest.patches import base
from palimpsest.patches.base import Manifest
from palimpsest.patches.weights import Dense, LowRank, add

NAME = "transformer.h.1.mlp.fc_out.weight"
OTHER = "transformer.h.0.attn.q_proj.weight"


def dense(name=NAME, scale=1.0, shape=(32, 128), seed=0):
    return {name: Dense(scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed)))}


def low_rank(rank=2, name=NAME, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: LowRank(torch.randn(32, rank, generator=generator), torch.randn(rank, 128, generator=generator))}


def patch(deltas, label="p"):
    return WeightPatch(deltas, Manifest(label=label))


def weights(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_apply_adds_and_remove_is_exact(dtype):
    model = tiny.tiny_model("gptj", dtype=dtype)
    before = weights(model)
    for deltas in (dense(), low_rank()):
        with model.patched(patch(deltas)):
            expected = (before[NAME].float() + deltas[NAME].dense()).to(dtype)
            assert torch.equal(model.module.state_dict()[NAME], expected)
        assert same(model, before)


def test_patches_stack_and_come_off_in_any_order():
    model = tiny.tiny_model("gptj")
    before = weights(model)
    first, second, third = (patch(dense(seed=seed), f"p{seed}") for seed in range(3))
    a, b, c = first.apply(model), second.apply(model), third.apply(model)
    assert model.weights.labels == ["p0", "p1", "p2"]
    b.remove()
    with_a_and_c = before[NAME] + first.deltas[NAME].dense() + third.deltas[NAME].dense()
    assert torch.equal(model.module.state_dict()[NAME], with_a_and_c)
    a.remove()
    assert torch.equal(model.module.state_dict()[NAME], before[NAME] + third.deltas[NAME].dense())
    with pytest.raises(PatchError, match="not on the model"):
        a.remove()
    c.remove()
    assert same(model, before)


class Interrupt(BaseException):
    pass


def test_an_interrupt_at_any_pointer_leaves_the_model_whole(monkeypatch):
    """The parameters are pointed to their new values one by one; stop between every two of them."""
    model = tiny.tiny_model("gptj")
    before = weights(model)
    several = patch({**dense(), **dense(OTHER, shape=(32, 32)), **dense("lm_head.bias", shape=(384,))})
    real = model.weights.point

    def stopping_at(call):
        """Pointing that is interrupted at one call and works again afterwards."""
        calls = iter(range(1000))

        def point(name, tensor):
            if next(calls) == call:
                raise Interrupt
            real(name, tensor)

        return point

    for call in range(3):
        monkeypatch.setattr(model.weights, "point", stopping_at(call))
        with pytest.raises(Interrupt):
            several.apply(model)
        assert same(model, before)
        assert model.weights.labels == []

        monkeypatch.setattr(model.weights, "point", real)
        applied = several.apply(model)
        assert not same(model, before)
        monkeypatch.setattr(model.weights, "point", stopping_at(call))
        with pytest.raises(Interrupt):
            applied.remove()
        assert same(model, before)
        assert model.weights.labels == []


def test_an_interrupt_after_the_patch_is_on_leaves_nothing(monkeypatch):
    """It falls between the stack holding the change and the caller holding its handle."""
    model = tiny.tiny_model("gptj")
    before = weights(model)
    real = model.weights.push

    def interrupted(label, compute, branches, origin):
        real(label, compute, branches, origin=origin)
        raise Interrupt

    outer = patch(dense(OTHER, shape=(32, 32))).apply(model)
    monkeypatch.setattr(model.weights, "push", interrupted)
    with pytest.raises(Interrupt), model.patched(patch(dense())):
        pass
    assert model.weights.labels == ["p"]
    outer.remove()
    assert same(model, before)


def test_an_interrupt_while_copies_are_made_leaves_nothing(monkeypatch):
    model = tiny.tiny_model("gptj")
    before, flags = weights(model), [p.requires_grad for p in model.module.parameters()]
    addresses = {name: value.data_ptr() for name, value in model.module.state_dict().items()}
    calls = iter(range(100))
    real = model.weights.point

    def point(name, tensor):
        if next(calls) == 1:
            raise Interrupt
        real(name, tensor)

    monkeypatch.setattr(model.weights, "point", point)
    with pytest.raises(Interrupt):
        method("ft", preset="none", parameters="all", spare=False).edit(model, tiny.requests(1))
    assert same(model, before)
    assert {name: value.data_ptr() for name, value in model.module.state_dict().items()} == addresses
    assert [p.requires_grad for p in model.module.parameters()] == flags


def test_an_exception_inside_the_block_restores():
    model = tiny.tiny_model("gptj")
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), model.patched(patch(dense())):
        raise KeyboardInterrupt
    assert same(model, before)


def test_tied_weights_are_changed_once():
    model = tiny.tiny_model("gpt2")
    embed = "transformer.wte.weight"
    assert model.weights.canonical("lm_head.weight") == embed
    assert model.weights.names().count(embed) == 1 and "lm_head.weight" not in model.weights.names()
    before = weights(model)
    delta = dense("lm_head.weight", shape=(384, 32))
    with model.patched(patch(delta)):
        state = model.module.state_dict()
        assert torch.equal(state[embed], before[embed] + delta["lm_head.weight"].dense())
        assert state["lm_head.weight"].data_ptr() == state[embed].data_ptr()
    assert same(model, before)
    with pytest.raises(PatchError, match="under two names"):
        patch({**delta, **dense(embed, shape=(384, 32))}).apply(model)
    assert same(model, before)


def test_arithmetic_is_that_of_the_deltas():
    p, q = patch(dense(seed=1)), patch(low_rank(seed=2))
    total = (2.0 * p - q).deltas[NAME].dense()
    assert torch.allclose(total, 2 * p.deltas[NAME].dense() - q.deltas[NAME].dense(), atol=1e-5)
    assert torch.equal((-p).deltas[NAME].dense(), -p.deltas[NAME].dense())
    assert torch.equal((0.0 * p + q).deltas[NAME].dense(), q.deltas[NAME].dense())
    assert (0.0 * p).is_empty()
    assert (p + patch(dense(OTHER, shape=(32, 32)))).touched() == sorted([NAME, OTHER])
    with pytest.raises(PatchError, match="differ in shape"):
        p + patch({NAME: Dense(torch.zeros(2, 2))})


@given(ranks=st.lists(st.integers(1, 12), min_size=2, max_size=5))
@settings(max_examples=25, deadline=None)
def test_low_rank_sums_stay_factored_while_that_is_smaller(ranks):
    parts = [low_rank(rank, seed=seed)[NAME] for seed, rank in enumerate(ranks)]
    total = parts[0]
    for part in parts[1:]:
        total = add(total, part)
    assert torch.allclose(total.dense(), sum(part.dense() for part in parts), atol=1e-4)
    if isinstance(total, LowRank):
        assert total.rank == sum(ranks) and total.rank * (32 + 128) < 32 * 128
    else:
        assert sum(ranks) * (32 + 128) >= 32 * 128


def test_saved_and_loaded_is_the_same(tmp_path):
    model = tiny.tiny_model("gptj")
    kept = patch(low_rank(seed=3), "inner")
    made = WeightPatch(
        {**dense(), **low_rank(name=OTHER.replace("q", "v"), seed=4)}, Manifest(label="p"), parts={"forget": kept}
    )
    made = WeightPatch({NAME: made.deltas[NAME]}, made.manifest, parts=made.parts)
    made.save(tmp_path / "p")
    read = load_patch(tmp_path / "p")
    assert torch.equal(read.deltas[NAME].dense(), made.deltas[NAME].dense())
    assert torch.equal(read.parts["forget"].deltas[NAME].dense(), kept.deltas[NAME].dense())
    assert torch.equal(load_patch(tmp_path / "p" / "parts" / "forget").deltas[NAME].left, kept.deltas[NAME].left)
    with model.patched(made):
        expected = model.score(["Anna"], ["Keller"])
    with model.patched(read):
        assert model.score(["Anna"], ["Keller"]) == expected
    assert {path.suffix for path in (tmp_path / "p").rglob("*") if path.is_file()} == {".json", ".safetensors"}
    with pytest.raises(OutputError, match="exists already"):
        made.save(tmp_path / "p")


def test_nothing_but_finite_numbers():
    with pytest.raises(PatchError, match="not finite"):
        patch({NAME: Dense(torch.tensor([[float("nan")]]))})


@pytest.mark.parametrize("damage", ["truncate", "flip", "manifest", "remove", "base", "kind", "later"])
def test_damaged_patches_are_refused(tmp_path, damage):
    patch(dense()).save(tmp_path / "p")
    tensors, manifest = tmp_path / "p" / "patch.safetensors", tmp_path / "p" / "manifest.json"
    content = bytearray(tensors.read_bytes())
    if damage == "truncate":
        tensors.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "manifest":
        manifest.write_text("{not json")
    elif damage == "remove":
        tensors.unlink()
    elif damage in ("base", "kind"):
        wrong = {"base": {}} if damage == "base" else {"kind": "router"}
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **wrong}))
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 99}))
    with pytest.raises(PatchError) as caught:
        load_patch(tmp_path / "p")
    assert str(tmp_path / "p") in str(caught.value)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(_tensors, file):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(base, "write_tensors", full)
    with pytest.raises(OutputError, match="No space left"):
        patch(dense()).save(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_patch_for_another_model_says_what_differs(tmp_path):
    model = tiny.tiny_model("gptj", seed=0)
    made = method("locft", learning_rate=1e-2, epochs=2).edit(model, tiny.requests(1)).patch
    for other, words in (
        (tiny.tiny_model("gptj", seed=1), "has other values"),
        (tiny.tiny_model("llama"), "config.model_type is 'llama'"),
        (load(tiny.tiny_module("gptj", layers=4), tiny.tokenizer()), "num_hidden_layers"),
    ):
        before = weights(other)
        with pytest.raises(PatchError, match="made for another model") as caught:
            made.apply(other)
        assert words in str(caught.value)
        assert same(other, before)


def test_one_checkpoint_in_two_precisions_is_one_model():
    made = method("locft", learning_rate=1e-2, epochs=2).edit(tiny.tiny_model("gptj"), tiny.requests(1)).patch
    assert made.differences_from(tiny.tiny_model("gptj", dtype=torch.bfloat16)) == []


def test_a_difference_outside_the_touched_tensors_is_noticed():
    made = method("locft", learning_rate=1e-2, epochs=2).edit(tiny.tiny_model("gptj"), tiny.requests(1)).patch
    other = tiny.tiny_module("gptj")
    with torch.no_grad():
        other.transformer.h[0].attn.q_proj.weight[3, 3] += 1
    assert made.differences_from(load(other, tiny.tokenizer())) == [
        "weights that the patch does not touch have other values"
    ]


def test_a_write_to_the_weights_is_noticed_after_a_fingerprint_was_taken():
    model = tiny.tiny_model("gptj")
    made = method("locft", learning_rate=1e-2, epochs=2).edit(model, tiny.requests(1)).patch
    assert made.differences_from(model) == []
    with torch.no_grad():
        model.module.get_parameter(NAME)[0, 0] += 1
    assert made.differences_from(model) == ["weights that the patch does not touch have other values"]


def test_a_patch_made_on_another_one_wants_it_below():
    model = tiny.tiny_model("gptj")
    first = method("locft", learning_rate=1e-2, epochs=2).edit(model, tiny.requests(1)).patch
    with model.patched(first):
        second = method("lora", epochs=2).edit(model, tiny.requests(2)[1:]).patch
    with pytest.raises(PatchError, match="on top of another"):
        second.apply(model)
    with model.patched(first), model.patched(second):
        stacked = model.score(["Anna"], ["Keller"])[0].log_prob
    with model.patched(first + second):
        assert model.score(["Anna"], ["Keller"])[0].log_prob == pytest.approx(stacked, abs=1e-4)


def test_sums_keep_every_edit_also_under_one_id():
    model = tiny.tiny_model("gptj")
    one, two = (replace(request, id="1") for request in tiny.requests(2))
    first, second = (method("locft", epochs=1).edit(model, [request]).patch for request in (one, two))
    assert [edit["prompt"] for edit in (first + second).manifest.edits] == [one.prompt, two.prompt]
    assert len(sum([first, second]).manifest.edits) == 2
    assert torch.allclose((first / 2).deltas[first.touched()[0]].dense(), first.deltas[first.touched()[0]].dense() / 2)
