"""Every preset can be used, and is taken by itself for exactly the model that its numbers were chosen for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from palimpsest import method
from palimpsest.methods.catalogue import METHODS
from palimpsest.methods.presets import find_preset, presets

ALL = [(name, preset) for name in METHODS for preset in presets(name)]
MATCHING = [(name, preset) for name, preset in ALL if presets(name)[preset].match]
PUBLISHED = [(name, preset) for name, preset in MATCHING if preset != "world"]
LOCATE_THEN_EDIT = ("rome", "r-rome", "memit", "emmet", "pmet", "alphaedit")


def a_model(match):
    """What a preset sees of a model with these config fields."""
    fields = {key: value for key, value in match.items() if key != "model_type"}
    config = AutoConfig.for_model(match["model_type"], **fields)
    return SimpleNamespace(module=SimpleNamespace(config=config))


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_options_are_usable_and_have_a_source(name, preset):
    found = presets(name)[preset]
    config, chosen = method(name, preset=preset).resolve(a_model(found.match or {"model_type": "gpt2"}))
    assert chosen is not None and chosen.name == preset
    assert set(found.options) <= set(type(config).model_fields)
    if found.training:
        method(name, preset=preset).Training.parse(found.training, owner=name)
    assert len(found.source) > 20


@pytest.mark.parametrize(("name", "preset"), MATCHING)
def test_a_model_gets_its_own_preset_and_no_other_fits(name, preset):
    model = a_model(presets(name)[preset].match)
    assert find_preset(name, "auto", model).name == preset
    assert [other for other, one in presets(name).items() if one.match and not one.mismatches(model)] == [preset]


@pytest.mark.parametrize(("name", "preset"), PUBLISHED)
def test_layers_are_layers_of_the_model(name, preset):
    found = presets(name)[preset]
    layers = found.options.get("layers", [])
    assert layers in ("auto", "all") or all(0 <= layer < found.match["num_hidden_layers"] for layer in layers)


@pytest.mark.parametrize(("name", "preset"), [row for row in PUBLISHED if row[0] in LOCATE_THEN_EDIT])
def test_published_numbers_come_with_the_published_search(name, preset):
    """Defaults of ours, which may change, must not leak into a preset that says that its numbers are others'."""
    model = a_model(presets(name)[preset].match)
    config, _ = method(name).resolve(model)
    targets, contexts = config.targets, config.contexts
    assert (targets.search, targets.stop_on, targets.learning_rate_unit) == ("adam", "total", "absolute")
    assert (targets.kl_position, targets.essence, targets.loss_layer) == ("subject", "{} is a", None)
    assert targets.relax_when_said == (name == "pmet")
    assert config.search_in == "all-contexts" and contexts.given is None
    num_texts = len(contexts.starts) * len(contexts.lengths) * contexts.per_start
    assert num_texts == (20 if name in ("rome", "r-rome") else 5)
    assert config.text == "wikipedia" and config.statistics.damping == 0
    if name not in ("rome", "r-rome"):
        assert (config.pooling, config.rounds) == ("half-clean", 1)
        assert config.site == ("mlp.down" if name == "pmet" else "resid")
    if name == "alphaedit":
        assert (config.null_space, config.threshold) == ("threshold", 2e-2)


@pytest.mark.parametrize(
    ("name", "preset", "layers", "steps", "rate", "decay", "clamp", "strength"),
    [
        ("rome", "gpt2-xl", [17], 20, 0.5, 0.5, 4.0, None),
        ("rome", "gpt2-medium", [8], 20, 0.5, 0.5, 3.0, None),
        ("r-rome", "gpt-j-6b", [5], 20, 0.5, 0.5, 4.0, None),
        ("memit", "gpt2-xl", [13, 14, 15, 16, 17], 20, 0.5, 0.5, 0.75, 20000),
        ("memit", "gpt-j-6b", [3, 4, 5, 6, 7, 8], 25, 0.5, 0.5, 0.75, 15000),
        ("emmet", "gpt2-xl", [17], 20, 0.5, 0.5, 0.75, 1000 * 0.1),
        ("pmet", "gpt-j-6b", [3, 4, 5, 6, 7, 8], 30, 0.2, 0.5, 0.75, 6000),
        ("alphaedit", "llama-3-8b", [4, 5, 6, 7, 8], 25, 0.1, 0.5, 0.75, 10),
    ],
)
def test_numbers_of_the_papers_code(name, preset, layers, steps, rate, decay, clamp, strength):
    config, _ = method(name, preset=preset).resolve(a_model(presets(name)[preset].match))
    found = config.targets
    assert config.layers == layers
    assert (found.steps, found.learning_rate, found.weight_decay) == (steps, rate, decay)
    assert (found.clamp_norm_factor, found.kl_factor) == (clamp, 1.0 if name == "pmet" else 0.0625)
    assert strength is None or config.strength == pytest.approx(strength)
