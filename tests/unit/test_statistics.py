"""Collecting second moments: one pass, what it leaves out, what it is kept under, and how it goes on."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

import tiny
from palimpsest import load
from palimpsest.errors import ConfigError, DataError
from palimpsest.files import cache_folder
from palimpsest.models.hooks import Point, captured
from palimpsest.models.sites.linear import features
from palimpsest.patches.base import Manifest
from palimpsest.patches.weights import Dense, WeightPatch
from palimpsest.solve.factorised import Factorised
from palimpsest.statistics.cache import Cache
from palimpsest.statistics.collecting import collect, identities
from palimpsest.statistics.moments import SecondMoment
from palimpsest.statistics.prepared import KeyMetrics, StatisticsConfig, open_source
from palimpsest.statistics.published import PublishedMoments, read_npz
from palimpsest.statistics.subspaces import spectrum_of
from palimpsest.statistics.text import GivenText

POINTS = [Point("mlp.down", layer, "input") for layer in (0, 1)]
ENCODER_POINTS = [Point("encoder.mlp.down", layer, "input") for layer in (0, 1)]


def lines(n=400, seed=0):
    """Texts of one to six sentences, no two alike, about 40 tokens each."""
    generator = torch.Generator().manual_seed(seed)
    words = ["Rome", "Oslo", "Lima", "Vienna", "Keller", "river", "capital", "born", "written", "people", "long", "ago"]
    picks = torch.randint(len(words), (n, 60), generator=generator).tolist()
    sizes = torch.randint(2, 30, (n,), generator=generator).tolist()
    return [" ".join(words[pick] for pick in row[:size]) for row, size in zip(picks, sizes, strict=True)]


TEXT = GivenText("lines", lines())


def by_numpy(model, points, rows):
    """The sums of k k^T over rows of ids, one unpadded forward pass a row, in numpy and float64."""
    keys = {point: [] for point in points}
    for row in rows:
        with torch.no_grad(), captured(model.sites, points) as found:
            model.forward(model.batch([row]))
        for point in points:
            keys[point].append(found[point][0].double().numpy())
    whole = {point: np.concatenate(parts) for point, parts in keys.items()}
    return {point: torch.from_numpy(one.T @ one) for point, one in whole.items()}


def first_rows(model, texts, max_tokens, row_length):
    """The rows that a pass should read."""
    rows, left = [], max_tokens
    for text in texts:
        rows.append(model.encode(text).ids[:row_length][:left])
        left -= len(rows[-1])
        if not left:
            break
    return rows


@contextmanager
def counted_passes(model):
    """How many forward passes are made inside the block."""
    with mock.patch.object(model, "forward", wraps=model.forward) as spy:
        yield spy.mock_calls


@pytest.mark.parametrize("family", tiny.FAMILIES + tiny.ENCODER_DECODERS)
def test_one_pass_equals_key_by_key(family):
    model = tiny.tiny_model(family)
    points = ENCODER_POINTS if family in tiny.ENCODER_DECODERS else POINTS
    width = features(model.sites.module(points[0].site, 0))[1]
    tokens = 4 * width
    found = collect(model, points, TEXT, max_tokens=tokens, row_length=30, tolerance=None)
    rows = first_rows(model, TEXT.texts(), tokens, 30)
    assert max(map(len, rows)) == 30 > min(map(len, rows)), "rows are cut, and padding is needed"
    expected = by_numpy(model, points, rows)
    for point in points:
        assert found[point].moment.count == tokens
        torch.testing.assert_close(found[point].moment.sum(), expected[point], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gptj", "gpt2", "llama"])
def test_nothing_above_the_deepest_point_is_computed(family):
    model = tiny.tiny_model(family)
    reached = []
    sites = model.sites
    above = [sites.block(2), sites.module("final_norm"), sites.module("unembed"), sites.module("mlp.down", 1)]
    handles = [module.register_forward_hook(lambda module, _in, _out: reached.append(module)) for module in above]
    collect(model, POINTS, TEXT, max_tokens=1000, tolerance=None)
    assert reached == []
    for handle in handles:
        handle.remove()
    # A pass that was cut short leaves the model as it was.
    fresh = tiny.tiny_model(family)
    assert model.score(["Anna"], ["Keller"]) == fresh.score(["Anna"], ["Keller"])


def test_keys_of_a_stopped_pass_are_those_of_capture():
    model = tiny.tiny_model()
    batch, whole = model.capture(lines(5), POINTS)
    with torch.no_grad(), captured(model.sites, POINTS, stops=True) as found:
        model.forward(batch)
        raise AssertionError("the pass did not stop")
    for point in POINTS:
        assert torch.equal(found[point], whole[point])


def test_a_layer_is_found_alike_alone_and_in_company():
    model = tiny.tiny_model()
    both = collect(model, POINTS, TEXT, tolerance=0.3)
    for point in POINTS:
        alone = collect(model, [point], TEXT, tolerance=0.3)[point]
        assert alone.moment.count == both[point].moment.count
        assert alone.error == both[point].error
        assert torch.equal(alone.moment.sum(), both[point].moment.sum())


def test_a_pass_stops_when_it_has_converged():
    model = tiny.tiny_model()
    width = features(model.sites.module("mlp.down", 0))[1]
    loose, all_of_it = (collect(model, POINTS[1:], TEXT, tolerance=t)[POINTS[1]] for t in (0.6, None))
    assert loose.error <= 0.6
    assert 8 * width <= loose.moment.count < 13 * width
    assert all_of_it.moment.count == min(64 * width, sum(len(model.encode(t).ids) for t in TEXT.texts()))
    assert all_of_it.error < loose.error


def test_patches_are_set_aside(tmp_path):
    model = tiny.tiny_model()
    expected = collect(model, POINTS, TEXT, max_tokens=1000)
    name = model.sites.parameter_name("mlp.up", 0)
    patch = WeightPatch({name: Dense(torch.ones_like(model.weights.base(name)))}, Manifest(label="ones"))
    with model.patched(patch):
        patched = model.weights.current(name).clone()
        found = collect(model, POINTS, TEXT, max_tokens=1000)
        assert torch.equal(model.weights.current(name), patched)
    for point in POINTS:
        assert torch.equal(found[point].moment.sum(), expected[point].moment.sum())


# The cache


def test_what_is_there_is_not_computed_again(tmp_path):
    model, cache = tiny.tiny_model(), Cache(tmp_path)
    first = collect(model, POINTS, TEXT, max_tokens=1000, cache=cache)
    with (
        mock.patch.object(model, "forward", side_effect=AssertionError("computed again")),
        mock.patch.object(TEXT, "texts", side_effect=AssertionError("read again")),
    ):
        again = collect(model, POINTS[1:], TEXT, max_tokens=1000, cache=cache)[POINTS[1]]
    assert again.is_cached and not first[POINTS[1]].is_cached
    assert torch.equal(again.moment.sum(), first[POINTS[1]].moment.sum())
    assert (again.moment.count, again.error) == (first[POINTS[1]].moment.count, first[POINTS[1]].error)
    assert [record["count"] for record in cache.records()] == [1000, 1000]
    assert not [file for file in cache.folder.iterdir() if file.suffix != ".safetensors"]


def known(model, text=TEXT, point=POINTS[1], **options):
    return identities(model, [point], text, **options)[point]


def test_everything_that_matters_is_in_the_key():
    base = known(tiny.tiny_model())
    assert known(tiny.tiny_model()) == base
    others = {
        "weights": known(tiny.tiny_model(seed=1)),
        "family": known(tiny.tiny_model("llama")),
        "dtype": known(tiny.tiny_model(dtype=torch.bfloat16)),
        "text": known(tiny.tiny_model(), GivenText("lines", lines(seed=1))),
        "layer": known(tiny.tiny_model(), point=POINTS[0]),
        "site": known(tiny.tiny_model(), point=Point("attn.out", 1, "input")),
        "tokens": known(tiny.tiny_model(), max_tokens=999),
        "tolerance": known(tiny.tiny_model(), tolerance=0.2),
        "rows": known(tiny.tiny_model(), row_length=20),
    }
    files = {Cache().file(identity) for identity in [base, *others.values()]}
    assert len(files) == 1 + len(others)


@pytest.mark.parametrize(
    ("site", "layer", "matters"),
    [("mlp.up", 0, True), ("mlp.down", 1, True), ("mlp.up", 2, False), ("attn.q", 2, False)],
)
def test_weights_count_up_to_the_layer_bit_by_bit(site, layer, matters):
    model, base = tiny.tiny_model(), known(tiny.tiny_model())
    with torch.no_grad():
        weight = model.sites.module(site, layer).weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(1e9))
    assert (known(model) != base) == matters


def test_a_tied_head_counts_as_the_embedding_it_is():
    model, base = tiny.tiny_model("gpt2"), known(tiny.tiny_model("gpt2"))
    with torch.no_grad():
        model.sites.module("unembed").weight[0, 0] += 1
    assert known(model) != base


def test_config_fields_that_no_weight_shows_count():
    base = known(tiny.tiny_model())
    model = tiny.tiny_model()
    model.module.config.layer_norm_epsilon = 1e-3
    assert known(model) != base


def test_the_name_of_a_model_is_no_part_of_the_key(tmp_path):
    first, second = tmp_path / "a" / "model", tmp_path / "b" / "model"
    for place, seed in ((first, 0), (second, 5), (tmp_path / "c" / "renamed", 0)):
        tiny.tiny_folder(place, seed=seed)
    same_name = [known(load(str(place))) for place in (first, second)]
    assert same_name[0] != same_name[1]
    assert known(load(str(tmp_path / "c" / "renamed"))) == same_name[0]


def test_the_tokenizer_counts_and_its_last_call_does_not():
    model, base = tiny.tiny_model(), known(tiny.tiny_model())
    other = tiny.tiny_model()
    other.tokenizer = lowercasing(model.tokenizer)
    assert known(other) != base
    model.tokenizer(["one", "one two three"], padding=True, truncation=True, max_length=2)
    assert known(model) == base


def lowercasing(tokenizer):
    """The same vocabulary after another normalisation."""
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def test_the_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("PALIMPSEST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "palimpsest"


def test_a_broken_file_is_computed_anew(tmp_path):
    model, cache = tiny.tiny_model(), Cache(tmp_path)
    first = collect(model, POINTS, TEXT, max_tokens=1000, cache=cache)
    for file in cache.folder.iterdir():
        file.write_bytes(file.read_bytes()[:500])
    again = collect(model, POINTS, TEXT, max_tokens=1000, cache=cache)
    assert not again[POINTS[0]].is_cached
    assert torch.equal(again[POINTS[0]].moment.sum(), first[POINTS[0]].moment.sum())
    assert collect(model, POINTS, TEXT, max_tokens=1000, cache=cache)[POINTS[0]].is_cached


# Interruption


@pytest.mark.parametrize("at", [1, 7])
def test_an_interrupted_pass_goes_on_with_the_same_bits(tmp_path, at):
    model, cache = tiny.tiny_model(), Cache(tmp_path)
    options = {"max_tokens": 1200, "tolerance": None}
    with counted_passes(model) as all_passes:
        expected = collect(model, POINTS, TEXT, **options)
    calls = []

    def interrupt(_stage, _done, _total):
        calls.append(1)
        if len(calls) == at + 1:
            raise KeyboardInterrupt

    with counted_passes(model) as before, pytest.raises(KeyboardInterrupt):
        collect(model, POINTS, TEXT, cache=cache, checkpoint_seconds=0, progress=interrupt, **options)
    # Asked for one layer alone first, then for both: each goes on from where it was.
    with counted_passes(model) as after:
        alone = collect(model, POINTS[1:], TEXT, cache=cache, checkpoint_seconds=0, **options)
    found = alone | collect(model, POINTS[:1], TEXT, cache=cache, checkpoint_seconds=0, **options)
    for point in POINTS:
        assert torch.equal(found[point].moment.sum(), expected[point].moment.sum())
        assert found[point].error == expected[point].error
        assert found[point].moment.count == 1200
    # Nothing but the window under way was lost.
    assert len(before) + len(after) == len(all_passes) + 1
    assert len(list(cache.folder.iterdir())) == 2, "checkpoints are gone"


def test_checkpoints_are_not_written_all_the_time(tmp_path):
    model, cache = tiny.tiny_model(), Cache(tmp_path)
    with mock.patch.object(Cache, "write", autospec=True, side_effect=Cache.write) as write:
        collect(model, POINTS, TEXT, max_tokens=2000, cache=cache)
    assert write.call_count == len(POINTS)


# What cannot be done is said before anything is computed


@pytest.fixture
def idle():
    """A model that must not be run."""
    model = tiny.tiny_model()
    with mock.patch.object(model, "forward", side_effect=AssertionError("something was computed")):
        yield model


def test_too_little_text_is_said(idle, tmp_path):
    with pytest.raises(DataError, match="too short") as failure:
        collect(idle, POINTS, GivenText("short", ["Anna Keller was born in Oslo."] * 3), cache=Cache(tmp_path))
    assert failure.value.expected.startswith("at least 512 tokens")
    assert "in 3 texts" in failure.value.found
    assert not list(tmp_path.iterdir())


def test_too_few_tokens_are_refused(idle):
    with pytest.raises(ConfigError, match="Too few tokens"):
        collect(idle, POINTS, TEXT, max_tokens=100)


def test_a_point_without_keys_is_refused(idle):
    for point in (Point("mlp.down", 0, "output"), Point("mlp", 0, "input")):
        with pytest.raises(ConfigError, match="no keys"):
            collect(idle, [point], TEXT)


def test_a_decoder_behind_an_encoder_is_refused():
    with pytest.raises(ConfigError, match="has none") as failure:
        collect(tiny.tiny_model("t5"), POINTS, TEXT)
    assert "encoder.mlp.down" in failure.value.expected


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_decoder_has_no_influence_on_encoder_keys(family):
    model, base = tiny.tiny_model(family), known(tiny.tiny_model(family), point=ENCODER_POINTS[1])
    with torch.no_grad():
        model.sites.module("decoder.mlp.up", 0).weight[0, 0] += 1
    assert known(model, point=ENCODER_POINTS[1]) == base
    with torch.no_grad():
        model.sites.module("encoder.mlp.up", 1).weight[0, 0] += 1
    assert known(model, point=ENCODER_POINTS[1]) != base


def test_a_key_that_is_not_finite_is_named():
    model = tiny.tiny_model()
    with torch.no_grad():
        model.sites.module("mlp.up", 1).weight[3, 2] = float("nan")
    with pytest.raises(DataError, match="not finite") as failure:
        collect(model, POINTS, TEXT, max_tokens=1000)
    assert "site mlp.down, layer 1, token" in failure.value.where


# Published files


def publish(folder, model, moments, *, prefix="mom2."):
    """Writes files as ROME's code does: a constructor's name, the count, the sum."""
    folder.mkdir()
    for point, found in moments.items():
        module = model.sites.parameter_name(point.site, point.layer).removesuffix(".weight")
        values = {"constructor": "m()", "count": found.moment.count, "mom2": found.moment.sum().float().numpy()}
        np.savez(
            folder / f"{module}_float32_mom2_100000.npz",
            **{f"{prefix}{name}": value for name, value in values.items()},
            sample_size=100000,
        )


@pytest.mark.parametrize("prefix", ["mom2.", ""])
def test_published_files_are_read(tmp_path, prefix):
    model = tiny.tiny_model()
    moments = collect(model, POINTS, TEXT, max_tokens=2000)
    publish(tmp_path / "stats", model, moments, prefix=prefix)
    source = open_source(str(tmp_path / "stats"))
    assert isinstance(source, PublishedMoments)
    found = collect(model, POINTS, source)
    for point in POINTS:
        assert found[point].moment.count == 2000
        torch.testing.assert_close(found[point].moment.mean(), moments[point].moment.mean(), rtol=1e-6, atol=1e-6)
        assert found[point].error is None
    config = StatisticsConfig(damping=1e-3)
    facts = KeyMetrics(str(tmp_path / "stats"), config, Cache(tmp_path / "cache")).factors(model, [0])[0].facts
    assert facts == {"tokens": 2000, "error": None, "is_cached": True, "condition": facts["condition"]}
    assert 1 < facts["condition"] < 1e6


def test_published_files_that_do_not_fit_are_refused(tmp_path):
    model = tiny.tiny_model()
    publish(tmp_path / "stats", model, collect(model, POINTS[:1], TEXT, max_tokens=2000))
    file = next((tmp_path / "stats").iterdir())
    with pytest.raises(DataError, match="cannot be used") as failure:
        read_npz(file, width=17)
    assert "(17, 17)" in failure.value.expected
    with pytest.raises(DataError, match="is missing"):
        collect(model, POINTS[1:], PublishedMoments(tmp_path / "stats"))
    broken = {
        "pickled": {"mom2.mom2": np.array([{"a": 1}], dtype=object), "mom2.count": 1},
        "other": {"mean": np.zeros(3)},
        "skewed": {"mom2.mom2": np.triu(np.ones((4, 4))), "mom2.count": 3},
        "nan": {"mom2.mom2": np.full((4, 4), np.nan), "mom2.count": 3},
        "empty": {"mom2.mom2": np.eye(4), "mom2.count": 0},
    }
    for name, values in broken.items():
        np.savez(tmp_path / f"{name}.npz", allow_pickle=True, **values)
        with pytest.raises(DataError, match="cannot be used"):
            read_npz(tmp_path / f"{name}.npz", width=4)
    # A header that breaks off, which numpy's parser says in a way of its own.
    np.savez(tmp_path / "header.npz", **{"mom2.mom2": np.eye(4), "mom2.count": 40})
    content = (tmp_path / "header.npz").read_bytes()
    at = content.index(b"\x93NUMPY")
    (tmp_path / "header.npz").write_bytes(content[: at + 8] + b"\x05\0" + content[at + 10 :])
    with pytest.raises(DataError, match="cannot be used"):
        read_npz(tmp_path / "header.npz", width=4)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match="cannot be used"):
        read_npz(tmp_path / "text.npz", width=4)


# What methods take


def test_factors_and_spectra_are_kept(tmp_path):
    model, cache = tiny.tiny_model(), Cache(tmp_path / "cache")
    (tmp_path / "text.txt").write_text("\n".join(lines()), encoding="utf-8")
    metrics = KeyMetrics(str(tmp_path / "text.txt"), StatisticsConfig(max_tokens=2000, damping=1e-6), cache)
    first = metrics.factors(model, [0, 1])
    moment = collect(model, POINTS, open_source(str(tmp_path / "text.txt")), max_tokens=2000)[POINTS[1]].moment
    expected = Factorised(moment.mean(), damping=1e-6)
    assert torch.equal(first[1].value.lower, expected.lower)
    assert first[1].facts["tokens"] == 2000
    spectra = metrics.spectra(model, [0, 1])
    values, vectors = spectra[1].value.values, spectra[1].value.vectors
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, moment.mean(), rtol=1e-8, atol=1e-8)
    with (
        mock.patch("torch.linalg.cholesky_ex", side_effect=AssertionError),
        mock.patch("torch.linalg.eigh", side_effect=AssertionError),
    ):
        assert metrics.factors(model, [1])[1].value is first[1].value
        assert metrics.spectra(model, [1])[1].value is spectra[1].value
        again = KeyMetrics(metrics.text, metrics.config, cache).spectra(model, [1])[1]
    assert torch.equal(again.value.vectors, vectors)
    # Another model is not given the first one's.
    other = metrics.factors(tiny.tiny_model(seed=3), [1])[1]
    assert not torch.equal(other.value.lower, first[1].value.lower)


def test_a_singular_moment_names_site_layer_and_remedy(tmp_path):
    model = tiny.tiny_model()
    moment = SecondMoment(128)
    moment.add(torch.randn(40, 128, generator=torch.Generator().manual_seed(0)))
    module = model.sites.parameter_name("mlp.down", 0).removesuffix(".weight")
    np.savez(tmp_path / f"{module}_x.npz", **{"mom2.mom2": moment.sum().numpy(), "mom2.count": 40})
    with pytest.raises(DataError, match="singular") as failure:
        KeyMetrics(str(tmp_path), StatisticsConfig(), Cache(tmp_path / "cache")).factors(model, [0])
    assert failure.value.where == "site mlp.down, layer 0, 40 tokens"


def test_a_spectrum_without_a_cache_is_computed():
    model = tiny.tiny_model()
    found = collect(model, POINTS[:1], TEXT, max_tokens=1000)[POINTS[0]]
    assert spectrum_of(found).values.shape == (128,)
