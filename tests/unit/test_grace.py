"""A codebook: its balls by hand, silence outside of them, and decisions that are kept while an answer is written."""

from __future__ import annotations

import pytest
import torch

import tiny
from palimpsest import DataError, PatchError, load_patch, method
from palimpsest.errors import ConfigError
from palimpsest.methods.grace import CodebookState, inserted
from palimpsest.models.hooks import Point, captured
from palimpsest.patches.base import Manifest
from palimpsest.patches.codebook import Codebook, CodebookEntry
from palimpsest.patches.modules import ModulePatch

QUICK = {"learning_rate": 1.0, "start": "random", "steps": 60, "stop_loss": 0.05, "radius": 0.5}
PROMPTS = [request.prompt for request in tiny.requests()]


def book_of(*, keys=(), values=(), radii=(), labels=(), narrowed=None, width=2):
    """A codebook in a plane."""
    entries = tuple(CodebookEntry(f"edit-{index}", label) for index, label in enumerate(labels))
    return Codebook(
        "mlp.down", 0, "weight", "last", torch.tensor(keys).reshape(-1, width).float(),
        torch.tensor(values).reshape(-1, width).float(), torch.tensor(radii).float(), entries,
    )  # fmt: skip


def put(book, key, edit, label, radius=1.0):
    return inserted(book, torch.tensor(key), torch.zeros(2), CodebookEntry(edit, label), radius)


def test_the_rules_of_the_balls():
    """Far: added. Near with another answer: split at half the distance. Near with the same one: expanded."""
    book, _ = put(book_of(), [0.0, 0.0], "a", (1,))
    book, changed = put(book, [5.0, 0.0], "b", (2,))
    assert changed == ["b"] and book.radii.tolist() == [1, 1]
    book, changed = put(book, [6.0, 0.0], "c", (3,))
    assert changed == ["b", "c"] and book.owners() == ["a", "b", "c"]
    assert book.radii[1] + book.radii[2] < 1 and book.radii.tolist() == pytest.approx([1, 0.5 - 1e-5, 0.5])
    book, changed = put(book, [0.0, 1.5], "d", (1,))
    assert changed == ["a"] and book.radii[0] == 1.5 and len(book.entries) == 3
    # The same prompt with another answer: the old key is never hit again.
    book, _ = put(book, [5.0, 0.0], "e", (9,))
    at, is_hit = book.nearest(torch.tensor([[5.0, 0.0]]))
    assert is_hit.item() and book.entries[at].edit == "e" and book.radii[3] == pytest.approx(0.5 - 1e-5)
    assert book.without(["e"]).radii[1] == pytest.approx(0.5 - 1e-5)


def test_inside_hits_and_outside_misses():
    book = book_of(keys=[[0.0, 0.0], [10.0, 0.0]], values=[[1.0, 1.0]] * 2, radii=[1.0, 2.0], labels=[(1,), (2,)])
    at, is_hit = book.nearest(torch.tensor([[0.99, 0.0], [1.01, 0.0], [8.01, 0.0], [7.99, 0.0], [0.0, 0.0]]))
    assert is_hit.tolist() == [True, False, True, False, True] and at.tolist() == [0, 0, 1, 1, 0]


def test_a_radius_comes_back_with_the_edit_that_narrowed_it():
    book, _ = put(book_of(), [0.0, 0.0], "a", (1,))
    book, _ = put(book, [1.0, 0.0], "b", (2,))
    assert book.radii[0] == pytest.approx(0.5 - 1e-5)
    assert book.without(["b"]).radii.tolist() == [1.0] and book.without(["a"]).owners() == ["b"]
    assert book.without(["a", "b"]) is None


def logits(model, prompts=PROMPTS):
    with torch.no_grad():
        return [model.forward(model.batch([model.encode(prompt)])).logits for prompt in prompts]


@pytest.mark.parametrize(
    ("family", "more"),
    [("gptj", {}), ("llama", {"replacement": "prompt"}), ("gpt2", {"replacement": "all", "layer": -1}), ("t5", {}),
     ("bart", {"replacement": "prompt"}), ("t5", {"site": "mlp.down", "replacement": "all"})],
)  # fmt: skip
def test_an_edit_holds_and_outside_the_ball_not_a_bit_moves(family, more, tmp_path):
    model, request = tiny.tiny_model(family), tiny.requests(1)[0]
    editor = method("grace", preset="none", **{**QUICK, **more})
    before = logits(model)
    outcome = editor.edit(model, [request])
    [book] = outcome.patch.branches
    reads, writes = Point(book.site, book.layer, "input"), Point(book.site, book.layer)
    with model.patched(outcome.patch):
        assert model.score([request.prompt], [request.target_new])[0].accuracy == 1
        batch = model.batch([model.encode(request.prompt)])
        with torch.no_grad(), captured(model.sites, [reads, writes]) as found:
            model.forward(batch)
        # The decoder behind an encoder has its start token for a prompt.
        last = 0 if family == "t5" and book.site == "mlp.down" else -1
        assert torch.allclose(found[reads][0, last], book.keys[0], atol=1e-5)
        where = last if book.replacement != "prompt" else slice(None)
        assert torch.equal(found[writes][0, where], book.values[0].expand_as(found[writes][0, where]))
        # A padded batch, and generation from a cache, take the same decision.
        batched = model.score(PROMPTS, [r.target_new for r in tiny.requests()])
        alone = [model.score([p], [r.target_new])[0] for p, r in zip(PROMPTS, tiny.requests(), strict=True)]
        assert [one.predicted for one in batched] == [one.predicted for one in alone]
        written = model.generate(PROMPTS, max_new_tokens=5)
        assert written[0].startswith(request.target_new)
        assert written[0] == model.generate(PROMPTS[0], max_new_tokens=5)
        if family != "t5" or book.site != "mlp.down":
            assert all(torch.equal(*pair) for pair in zip(logits(model)[1:], before[1:], strict=True))
    assert all(torch.equal(*pair) for pair in zip(logits(model), before, strict=True))
    outcome.patch.save(tmp_path / "patch")
    assert load_patch(tmp_path / "patch").is_same(outcome.patch)
    assert outcome.patch.without(request.id).is_empty()


def test_a_sequence_is_one_codebook_and_its_state_is_saved(tmp_path):
    model, editor = tiny.tiny_model("gptj"), method("grace", preset="none", **QUICK)
    state, total = None, None
    for request in tiny.requests():
        outcome = editor.edit(model, [request], state)
        outcome.state.save(tmp_path / "state")
        state = CodebookState.load(tmp_path / "state")
        total = outcome.patch if total is None else total + outcome.patch
    assert total.branches[0].owners() == [request.id for request in tiny.requests()]
    assert total.is_same(ModulePatch([state.branch], Manifest(label="state")))
    with model.patched(total):
        # One value has the last word on the first token of an answer alone.
        assert all(model.score([r.prompt], [r.target_new])[0].matches[0] for r in tiny.requests())
    # Values of one call do not see each other: together or one after another, with balls far apart, is one.
    together = editor.edit(model, tiny.requests()).patch.branches[0]
    assert torch.allclose(together.keys, total.branches[0].keys, atol=1e-5)
    assert together.owners() == total.branches[0].owners()


def test_bad_input(tmp_path):
    model, requests = tiny.tiny_model("gptj"), tiny.requests()
    with pytest.raises(ConfigError, match="full"):
        method("grace", preset="none", max_entries=2, **{**QUICK, "steps": 1}).edit(model, requests)
    state = method("grace", preset="none", layer=1, **{**QUICK, "steps": 1}).edit(model, requests[:1]).state
    with pytest.raises(ConfigError, match="in this place"):
        method("grace", preset="none", layer=0, **QUICK).edit(model, requests[1:2], state)
    with pytest.raises(DataError, match="those of grace"):
        CodebookState.from_tensors({**state.tensors(), "radii": torch.zeros(7)})
    with pytest.raises(DataError, match="those of grace"):
        CodebookState.from_tensors({**state.tensors(), "options": torch.zeros(3, dtype=torch.uint8)})
    patch = ModulePatch([state.branch], Manifest(label="codebook"))
    with pytest.raises(PatchError, match="does not fit"):
        patch.apply(tiny.tiny_model("llama"))
