"""A model's own writing: how it is sampled, what it is known by, and what is taken from it."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

import tiny
from palimpsest.errors import ConfigError, ModelError
from palimpsest.methods.catalogue import method
from palimpsest.models.hooks import Point, captured
from palimpsest.statistics import writing
from palimpsest.statistics.cache import Cache
from palimpsest.statistics.catalogue import open_text
from palimpsest.statistics.collecting import collect, identities
from palimpsest.statistics.writing import OwnWriting, WrittenText, drawn, sample_rows, start_token

POINT = Point("mlp.down", 1, "input")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(writing, "ROWS", 32)
    monkeypatch.setattr(writing, "ROW_LENGTH", 32)
    # Else what is found would depend on the machine.
    monkeypatch.setattr(writing, "fast_dtype", lambda model: None)


def test_ids_are_drawn_by_their_probabilities():
    generator = torch.Generator().manual_seed(0)
    # Wider than one block, and with blocks of no weight at all.
    logits = torch.randn(1, 1300, generator=generator) * 2
    logits[:, 512:1024] = -torch.inf
    chances = torch.rand(60_000, generator=generator, dtype=torch.float64)
    ids = drawn(logits.expand(len(chances), -1), chances)
    found = torch.bincount(ids, minlength=1300) / len(ids)
    expected = logits[0].softmax(-1)
    assert float((found - expected).abs().sum()) < 0.12
    assert not found[512:1024].any()


@pytest.mark.parametrize("chance", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_are_ids_that_can_be(chance):
    logits = torch.full((1, 600), -torch.inf)
    logits[0, [3, 555]] = 0.0
    assert int(drawn(logits, torch.tensor([chance], dtype=torch.float64))) == (3 if chance == 0 else 555)


def test_rows_are_what_the_plain_model_gives_step_by_step():
    model = tiny.tiny_model("llama")
    rows = sample_rows(model, 6, 12, seed=4, before=3)
    chances = torch.rand(9, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)[3:]
    assert rows[:, 0].tolist() == [start_token(model)] * 6
    with torch.no_grad():
        # One pass without a cache: every place's distribution at once.
        logits = model.module(rows).logits.double()
    reached = logits.softmax(-1).cumsum(-1)
    for row in range(6):
        for step in range(1, 12):
            above, chosen = reached[row, step - 1], int(rows[row, step])
            assert float(above[chosen]) >= float(chances[row, step]) - 1e-4
            assert chosen == 0 or float(above[chosen - 1]) <= float(chances[row, step]) + 1e-4


def test_it_is_the_base_models_and_draws_from_no_other_generator():
    model = tiny.tiny_model("gpt2")
    expected = sample_rows(model, 4, 8)
    outcome = method("ft", preset="none", epochs=1).edit(model, tiny.requests(1))
    before = torch.random.get_rng_state()
    with model.patched(outcome.patch):
        assert torch.equal(sample_rows(model, 4, 8), expected)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(sample_rows(model, 4, 8, seed=1), expected)


def test_rounds_are_kept_and_an_interrupted_run_goes_on(tmp_path):
    model, cache = tiny.tiny_model(), Cache(tmp_path)
    expected = list(WrittenText(model).rows(3 * 32 * 32))
    calls, real = [], writing.sample_rows

    def interrupted(model, rows, length, seed, before, progress):
        calls.append(before)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, rows, length, seed, before, progress)

    with mock.patch.object(writing, "sample_rows", interrupted):
        with pytest.raises(KeyboardInterrupt):
            list(WrittenText(model, cache=cache).rows(3 * 32 * 32))
        assert list(WrittenText(model, cache=cache).rows(3 * 32 * 32)) == expected
    assert calls == [0, 32, 32, 64]
    with mock.patch.object(writing, "sample_rows", side_effect=AssertionError):
        assert list(WrittenText(model, cache=cache).rows(2 * 32 * 32)) == expected[:64]


def test_the_last_round_has_no_more_rows_than_are_read(tmp_path):
    model, cache = tiny.tiny_model(), Cache(tmp_path)
    length = WrittenText(model).row_length
    with mock.patch.object(writing, "ROWS", 64):
        sizes, real = [], writing.sample_rows

        def counted(model, rows, *given):
            sizes.append(rows)
            return real(model, rows, *given)

        with mock.patch.object(writing, "sample_rows", counted):
            few = list(WrittenText(model, cache=cache).rows(70 * length))
            assert list(WrittenText(model, cache=cache).rows(70 * length)) == few
            text = WrittenText(model, cache=cache)
            assert list(text.rows(70 * length)) == few
            more = list(text.rows(120 * length))
            assert list(WrittenText(model, cache=cache).rows(70 * length))[:64] == few[:64]
    assert sizes == [64, 32, 64] and (len(few), len(more)) == (96, 128)
    assert more[:64] == few[:64] and all(len(row) == length for row in more)


def test_what_it_is_known_by():
    model = tiny.tiny_model()
    own = WrittenText(model).identity()
    assert WrittenText(tiny.tiny_model(), 0).identity() == own
    others = [WrittenText(model, 1), WrittenText(tiny.tiny_model(seed=3)), WrittenText(tiny.tiny_model("llama"))]
    assert all(other.identity() != own for other in others)
    # The head counts too, though no key depends on it: it decides what is written.
    changed = tiny.tiny_model("gptj")
    before = WrittenText(changed).identity()
    with torch.no_grad():
        changed.module.get_output_embeddings().weight[0] += 1
    assert WrittenText(changed).identity() != before


def test_second_moments_are_those_of_the_rows(tmp_path):
    model, cache = tiny.tiny_model(), Cache(tmp_path)
    told = []
    found = collect(model, [POINT], open_text("own"), cache=cache, progress=lambda *what: told.append(what))[POINT]
    rows = [list(row) for row in WrittenText(model).rows(2 * 32 * 32)]
    with torch.no_grad(), captured(model.sites, [POINT]) as seen:
        model.module(torch.tensor(rows))
    keys = seen[POINT].flatten(0, 1).double()
    torch.testing.assert_close(found.moment.mean(), keys.T @ keys / len(keys), rtol=1e-5, atol=1e-7)
    assert found.moment.count == 2 * 32 * 32 and found.error is not None
    assert {stage for stage, _, _ in told} == {"own writing", "statistics"}
    assert collect(model, [POINT], open_text("own"), cache=cache)[POINT].is_cached
    known = identities(model, [POINT], OwnWriting())[POINT]
    assert known["text"]["kind"] == "own writing" and known["tolerance"] is None


def test_a_wide_key_gets_more_tokens():
    assert writing.tokens_for(100) == 2 * 32 * 32
    assert writing.tokens_for(1000) == 4000


def test_bfloat16_where_it_is_fast_stays_near(monkeypatch):
    model = tiny.tiny_model("llama")
    exact = collect(model, [POINT], OwnWriting())[POINT].moment
    rows = list(WrittenText(model).rows(2 * 32 * 32))
    monkeypatch.setattr(writing, "fast_dtype", lambda model: torch.bfloat16)
    monkeypatch.setattr(WrittenText, "rows", lambda self, max_tokens: iter(rows))
    near = collect(model, [POINT], OwnWriting())[POINT].moment
    assert float((near.mean() - exact.mean()).norm() / exact.mean().norm()) < 0.01
    assert all(parameter.dtype == torch.float32 for parameter in model.module.parameters())


def test_the_start_is_what_documents_begin_with():
    with_start = tiny.tiny_model("llama")
    ids = with_start.tokenizer("a")["input_ids"]
    expected = ids[0] if len(ids) > 1 else with_start.tokenizer.eos_token_id
    assert start_token(with_start) == expected
    nothing = mock.Mock(eos_token_id=None, bos_token_id=None, all_special_ids=[], return_value={"input_ids": [5]})
    nothing.get_vocab.return_value = {}
    with pytest.raises(ModelError, match="cannot write texts of its own") as failure:
        start_token(mock.Mock(tokenizer=nothing))
    assert "option text" in failure.value.remedy


def test_an_encoder_decoder_reads_the_bundled_text():
    text = OwnWriting().for_model(tiny.tiny_model("t5"))
    assert text.identity() == open_text("world").identity()


@pytest.mark.parametrize("name", ["rome", "memit", "alphaedit", "t-patcher", "wise"])
def test_no_text_is_asked_for(name):
    quick = {
        "t-patcher": {"max_steps": 2, "memory": {"top": 16}},
        "wise": {"steps": 2, "layer": 1},
    }.get(name, {"layers": [1], "targets": {"steps": 2}, "statistics": {"max_tokens": 1024}})
    model = tiny.tiny_model("gptj")
    outcome = method(name, preset="none", **quick).edit(model, tiny.requests(1))
    assert outcome.patch is not None


@pytest.mark.parametrize(
    ("name", "options"),
    [("memit", {"statistics": {"text": "world"}}), ("t-patcher", {"memory": {"text": "world"}})],
)
def test_the_former_names_lead_to_the_one_there_is(name, options):
    with pytest.raises(ConfigError) as failure:
        method(name, **options)
    assert failure.value.remedy == "did you mean 'text'?"
