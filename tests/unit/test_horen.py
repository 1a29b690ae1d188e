"""HoReN's codebook by hand, and its edits on tiny models."""

from __future__ import annotations

import math

import pytest
import torch

import tiny
from palimpsest import ConfigError, load_patch, method
from palimpsest.methods.horen import RetrievalState, inserted
from palimpsest.patches.prompts import PromptColumns
from palimpsest.patches.retrieval import Retrieval, RetrievalEntry

QUICK = {"steps": 40}
FAR = {"learning_rate": 1.0, "start": "random", "steps": 60, "stop_loss": 0.05}
"""As far as a random model needs."""


def unit(*numbers):
    return torch.nn.functional.normalize(torch.tensor(numbers, dtype=torch.float32), dim=0)


def book_of(*keys, thresholds=None, damping=0.0, beta=20.0, share=0.5):
    """A codebook in a plane or in space, one label each."""
    stacked = torch.stack(keys) if keys else torch.zeros(0, 2)
    count = len(keys)
    return Retrieval(
        "mlp.down", 0, "weight", share, damping, beta, stacked, torch.eye(max(count, 2))[:count],
        torch.tensor(thresholds or [0.9] * count), tuple(RetrievalEntry(f"edit-{at}", (at,)) for at in range(count)),
    )  # fmt: skip


def test_without_damping_it_is_the_nearest_cosine():
    book = book_of(unit(1, 0), unit(0, 1))
    queries = torch.stack([unit(3, 1), unit(1, 1), unit(0, 2)])
    torch.testing.assert_close(book.scores(queries), queries @ torch.eye(2))
    at, is_hit = book.most_like(queries)
    assert at.tolist()[::2] == [0, 1] and is_hit.tolist() == [True, False, True]


def test_the_step_is_one_damped_hopfield_step():
    book = book_of(unit(1, 0), unit(1, 1), damping=0.1, beta=5.0)
    query = unit(2, 1)
    weights = torch.softmax(5.0 * book.keys @ query, 0)
    drawn = torch.nn.functional.normalize(weights @ book.keys, dim=0)
    moved = torch.nn.functional.normalize(0.9 * query + 0.1 * drawn, dim=0)
    torch.testing.assert_close(book.scores(query[None])[0], book.keys @ moved)


def test_the_step_turns_a_query_by_little():
    """By at most arcsin(a / (1 - a)), so that an own prompt is always found."""
    draw = torch.Generator().manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(50, 8, generator=draw), dim=1)
    book = Retrieval(
        "mlp.down", 0, "weight", 0.5, 0.1, 20.0, keys, torch.zeros(50, 2), torch.full((50,), 0.5),
        tuple(RetrievalEntry(str(at), (at,)) for at in range(50)),
    )  # fmt: skip
    own = book.scores(keys).diagonal()
    assert own.min() >= math.cos(math.asin(0.1 / 0.9)) - 1e-6


def test_the_query_is_the_mean_over_the_last_share_of_the_prompt_and_padding_is_no_part_of_it():
    rows = torch.arange(2 * 6 * 2, dtype=torch.float32).reshape(2, 6, 2) ** 2
    # The first row has five tokens of prompt on the right of one of padding; the second three and two of an answer.
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    prompts = PromptColumns(torch.tensor([1, 0]), torch.tensor([5, 2]), mask)
    found = book_of(unit(1, 0)).queries(rows, prompts)
    torch.testing.assert_close(found[0], torch.nn.functional.normalize(rows[0, 3:6].mean(0), dim=0))
    torch.testing.assert_close(found[1], torch.nn.functional.normalize(rows[1, 1:3].mean(0), dim=0))
    torch.testing.assert_close(book_of(unit(1, 0)).queries(7 * rows, prompts), found, msg="any scale")
    last = book_of(unit(1, 0), share=0.01).queries(rows, prompts)
    torch.testing.assert_close(last[0], torch.nn.functional.normalize(rows[0, 5], dim=0))


def test_the_same_answer_again_gets_a_new_value_and_another_one_an_entry():
    book, touched = inserted(book_of(unit(1, 0)), unit(1, 0.01), torch.ones(2), 0.8, RetrievalEntry("again", (0,)))
    assert touched == "edit-0" and book.owners() == ["edit-0"] and book.values.tolist() == [[1, 1]]
    book, touched = inserted(book, unit(1, 0.01), torch.zeros(2), 0.8, RetrievalEntry("other", (7,)))
    assert touched == "other" and book.owners() == ["edit-0", "other"]
    book, _ = inserted(book, unit(1, 0), torch.zeros(2), 0.8, RetrievalEntry("last", (8,)))
    at, is_hit = book.most_like(unit(1, 0)[None])
    assert book.entries[int(at)].edit == "last" and is_hit.item(), "of two with one key the later one decides"
    at, _ = book.without(["last"]).most_like(unit(1, 0)[None])
    assert book.entries[int(at)].edit == "edit-0", "and without it the earlier one again"


def test_what_is_taken_out_leaves_no_trace():
    book = book_of(unit(1, 0), unit(1, 1))
    more = book.with_entry(RetrievalEntry("new", (5,)), keys=unit(0, 1), values=torch.ones(2), thresholds=0.9)
    back = more.without(["new"])
    assert all(torch.equal(value, back.tensors()[name]) for name, value in book.tensors().items())
    assert book.without(["edit-0", "edit-1"]) is None
    assert book_of().most_like(torch.zeros(3, 2))[1].tolist() == [False] * 3


def logits(model):
    with torch.no_grad():
        return [model.forward(model.batch([model.encode(one.prompt)])).logits for one in tiny.requests()]


@pytest.mark.parametrize("family", ["gptj", "t5"])
def test_an_edit_holds_and_elsewhere_not_a_bit_moves(family, tmp_path):
    model, request = tiny.tiny_model(family), tiny.requests(1)[0]
    before = logits(model)
    outcome = method("horen", preset="none", threshold=0.9999, **FAR).edit(model, [request])
    with model.patched(outcome.patch):
        assert model.score([request.prompt], [request.target_new])[0].accuracy == 1
        assert model.generate(request.prompt, max_new_tokens=4).startswith(request.target_new)
        assert all(torch.equal(*pair) for pair in zip(logits(model)[1:], before[1:], strict=True))
        batched = model.score([one.prompt for one in tiny.requests()], [one.target_new for one in tiny.requests()])
        padded = model.score(
            [request.prompt, "It was written long ago by"], [request.target_new, "people"], side="left"
        )
        assert batched[0].predicted == padded[0].predicted
    assert all(torch.equal(*pair) for pair in zip(logits(model), before, strict=True))
    outcome.patch.save(tmp_path / "patch")
    assert load_patch(tmp_path / "patch").is_same(outcome.patch)
    assert outcome.patch.without(request.id).is_empty()


def test_edits_of_a_call_are_those_of_a_sequence_and_the_state_goes_on_from_a_file(tmp_path):
    model, editor = tiny.tiny_model("gptj"), method("horen", preset="none", **QUICK)
    together = editor.edit(model, tiny.requests(3)).state.branch
    state = None
    for request in tiny.requests(3):
        outcome = editor.edit(model, [request], state)
        outcome.state.save(tmp_path / "state")
        state = RetrievalState.load(tmp_path / "state")
    for name, value in together.tensors().items():
        torch.testing.assert_close(value, state.branch.tensors()[name], atol=1e-3, rtol=1e-3)
    thresholds = together.thresholds
    assert ((thresholds < 1) & (thresholds > 0)).all()
    with pytest.raises(ConfigError, match="in this place"):
        method("horen", preset="none", layer=0, **QUICK).edit(model, tiny.requests(1), state)
