"""Models with weights in several places: what is offloaded is computed with and never edited."""

import accelerate
import pytest
import torch

import tiny
from palimpsest import ConfigError, ModelError, load, load_patch, method
from palimpsest.models.hooks import Point
from palimpsest.patches.export import write_merged

FIRST = {"parameters": "mlp.down", "layers": [0], "epochs": 4, "learning_rate": 1e-2}
PROMPTS = [prompt for prompt, *_ in tiny.FACTS]
MAPS = {
    "llama": {
        "model.embed_tokens": "cpu",
        "model.rotary_emb": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.layers.2": "disk",
        "model.norm": "cpu",
        "lm_head": "disk",
    },
    # Its head is tied to its embedding, and both are offloaded.
    "gpt2": {
        "transformer.wte": "disk",
        "transformer.wpe": "cpu",
        "transformer.h.0": "cpu",
        "transformer.h.1": "disk",
        "transformer.h.2": "disk",
        "transformer.ln_f": "cpu",
        "lm_head": "disk",
    },
}


@pytest.fixture(params=sorted(MAPS))
def pair(request, tmp_path):
    """One model twice: whole, and with most of it on disk."""
    folder = tiny.tiny_folder(tmp_path / "model", request.param)
    return load(folder), load(folder, device_map=MAPS[request.param])


def test_an_offloaded_model_answers_as_the_whole_one(pair):
    whole, split = pair
    assert sum(parameter.is_meta for parameter in split.module.parameters()) > 10
    assert split.score(PROMPTS, ["Lyon"] * 4) == whole.score(PROMPTS, ["Lyon"] * 4)
    assert split.generate(PROMPTS, max_new_tokens=5) == whole.generate(PROMPTS, max_new_tokens=5)
    points = [Point("resid", 2), Point("mlp.down", 1, "input")]
    (_, expected), (_, found) = (model.capture(PROMPTS[:2], points) for model in pair)
    assert all(torch.equal(found[point], expected[point]) for point in points)
    assert split.device == torch.device("cpu")


def test_an_offloaded_model_is_known_as_the_same(pair):
    whole, split = pair
    assert split.weights.names() == whole.weights.names()
    assert split.fingerprint(whole.weights.names()) == whole.fingerprint(whole.weights.names())


def test_what_is_present_is_edited_as_in_the_whole_model(pair, tmp_path):
    whole, split = pair
    patches = [method("ft", preset="none", **FIRST).edit(model, tiny.requests()).patch for model in pair]
    for name, delta in patches[0].deltas.items():
        assert (patches[1].deltas[name].dense() - delta.dense()).abs().max() < 1e-6
    adapters = method("lora", preset="none", layers=[0], epochs=2).edit(split, tiny.requests()).patch
    assert not adapters.is_empty() and all(one.requires_grad for one in split.module.parameters())
    with whole.patched(patches[0]), split.patched(patches[0]):
        assert split.score(PROMPTS, ["Lyon"] * 4) == whole.score(PROMPTS, ["Lyon"] * 4)
    write_merged(split, [patches[0]], tmp_path / "merged")
    with whole.patched(patches[0]):
        merged = load(tmp_path / "merged").module.state_dict()
        assert all(torch.equal(value, merged[name]) for name, value in whole.module.state_dict().items())


def test_what_is_offloaded_is_refused_before_anything_is_computed(pair, monkeypatch):
    whole, split = pair
    all_weights = {"preset": "none", "parameters": "all", "spare": False}
    everything = method("ft", epochs=1, **all_weights).edit(whole, tiny.requests(1)).patch
    monkeypatch.setattr(type(split), "forward", lambda *_: pytest.fail("a forward pass"))
    monkeypatch.setattr(type(split), "logits_at", lambda *_: pytest.fail("a forward pass"))
    for edit in (
        lambda: method("ft", **all_weights).edit(split, tiny.requests()),
        lambda: method("ft", preset="none", parameters="mlp.down", layers=[0, 2]).edit(split, tiny.requests()),
        lambda: method("lora", preset="none", sites="auto", layers="all").edit(split, tiny.requests()),
        lambda: everything.apply(split),
        lambda: split.weights.current(split.sites.parameter_name("mlp.down", 2)),
    ):
        with pytest.raises(ModelError, match="are offloaded") as caught:
            edit()
        assert caught.value.remedy and "device map" in caught.value.remedy
    assert split.weights.labels == []
    assert all(parameter.requires_grad for parameter in split.module.parameters())


def test_a_model_kept_in_main_memory_by_accelerate(tmp_path):
    whole = tiny.tiny_model("gptj")
    module = accelerate.cpu_offload(tiny.tiny_module("gptj"), execution_device="cpu")
    kept = load(module, tiny.tokenizer())
    assert all(parameter.is_meta for parameter in module.parameters())
    assert kept.score(PROMPTS, ["Lyon"] * 4) == whole.score(PROMPTS, ["Lyon"] * 4)
    assert kept.fingerprint() == whole.fingerprint()
    folder = tmp_path / "patch"
    method("ft", preset="none", **FIRST).edit(whole, tiny.requests()).patch.save(folder)
    with pytest.raises(ModelError, match="are offloaded"):
        load_patch(folder).apply(kept)


def test_weights_that_are_nowhere_are_no_model():
    with pytest.raises(ModelError, match="nowhere"):
        load(tiny.tiny_module("gptj").to("meta"), tiny.tokenizer())


def test_a_map_with_one_device_is_that_device(tmp_path):
    folder = tiny.tiny_folder(tmp_path / "model", "llama")
    mapped = load(folder, device_map={"": "cpu"})
    assert not any(parameter.is_meta for parameter in mapped.module.parameters())
    ft = method("ft", preset="none", epochs=1)
    assert ft.edit(mapped, tiny.requests()).patch.touched() == ft.edit(load(folder), tiny.requests()).patch.touched()
    halved = load(folder, dtype="bfloat16", device="cpu")
    assert {parameter.dtype for parameter in halved.module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device_map": "automatic"}, "did you mean 'auto'"),
        ({"device_map": "auto", "device": "cpu"}, "A device and a device map"),
        ({"device_map": {"": "cuda:7"}}, "The device cannot be used"),
        ({"device_map": {"": "cpu", "transformer.(h": "cpu"}}, "none of a module"),
        ({"device_map": {"h" * 2_000: "cpu"}}, "none of a module"),
        ({"device": "gpu"}, "The device cannot be used"),
        ({"dtype": "int8"}, "Unknown dtype"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(options, words, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tiny.tiny_folder(tmp_path / "model", "llama"), **options)
    assert words in str(caught.value)


def test_a_model_in_memory_is_taken_as_it_is():
    with pytest.raises(ConfigError, match="as it is"):
        load(tiny.tiny_module("gptj"), tiny.tokenizer(), dtype="bfloat16")
