"""Editors: trained, saved, read back, bound to their model; and what cannot be trained on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import tiny
from palimpsest import ConfigError, DataError, EditRequest, ModelError, OutputError, Probe, load, load_patch, method
from palimpsest.methods.editors import TrainedEditor, read_record
from palimpsest.training.examples import editing_examples, split_examples
from palimpsest.world import bundled_editors

QUICK = {
    "steps": 4, "examples_per_step": 4, "forward_batch_size": 3, "validate_every": 2, "layers": [1, 2], "rank": 4,
    "learning_rate": 1e-2, "step_size": 0.01, "validation_examples": 2,
}  # fmt: skip


def train(model, requests=None, name="mend", **more):
    return method(name, preset="none").train(model, requests or tiny.trainable_requests(), QUICK, **more)


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    """A model, its editor, and the folder that the editor was saved in."""
    model = tiny.tiny_model("gptj")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    trained = train(model)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.module.parameters())
    folder = tmp_path_factory.mktemp("editors") / "mine"
    trained.save(folder)
    return model, trained, folder


def test_an_editor_read_back_edits_as_it_did(editor, tmp_path):
    model, trained, folder = editor
    read = TrainedEditor.load(folder)
    assert read.tensors.keys() == trained.tensors.keys()
    assert all(torch.equal(value, trained.tensors[name]) for name, value in read.tensors.items())
    assert read.record.training == {**read.record.training, **QUICK} and read.record.data["validation_edits"] == 2
    patches = [method("mend", editor=str(folder)).edit(model, tiny.requests(2)).patch for _ in range(2)]
    assert patches[0].is_same(patches[1]) and not patches[0].is_empty()
    patches[0].save(tmp_path / "patch")
    assert load_patch(tmp_path / "patch").manifest.config["editor"] == str(folder)
    fresh = method("mend", editor="fresh", preset="none").edit(model, tiny.requests(2)).patch
    assert sorted(set(fresh.touched()) - set(patches[0].touched())) == ["transformer.h.0.mlp.fc_in.weight",
                                                                       "transformer.h.0.mlp.fc_out.weight"]  # fmt: skip


def test_training_brings_the_losses_down(editor):
    curve = editor[1].record.curve
    assert [point["step"] for point in curve] == [0, 2, 4]
    assert curve[-1]["validation"]["edit"] < curve[0]["validation"]["edit"] - 0.1
    assert set(curve[0]["validation"]) == {"loss", "edit", "locality", "answered", "kept"}


def test_one_seed_gives_the_same_editor_and_a_killed_training_goes_on_with_it(editor, tmp_path):
    def stop(_stage, done, _total):
        if done == 3:
            raise KeyboardInterrupt

    model, trained, _ = editor
    with pytest.raises(KeyboardInterrupt):
        train(model, checkpoint=tmp_path / "c", progress=stop)
    assert model.weights.labels == [] and all(one.requires_grad for one in model.module.parameters())
    resumed = train(model, checkpoint=tmp_path / "c", resume=True)
    assert all(torch.equal(value, resumed.tensors[name]) for name, value in trained.tensors.items())
    with pytest.raises(ConfigError, match="learning_rate"):
        method("mend", preset="none").train(
            model, tiny.trainable_requests(), {**QUICK, "learning_rate": 1.0}, checkpoint=tmp_path / "c", resume=True
        )


def test_another_model_is_refused_by_name_of_what_differs(editor):
    _, _, folder = editor
    for other, reason in ((tiny.tiny_model("gptj", seed=3), "other values"), (tiny.tiny_model("gpt2"), "model_type")):
        with pytest.raises(ModelError, match=reason):
            method("mend", editor=str(folder)).edit(other, tiny.requests(1))
    chatting = load(tiny.tiny_module("gptj"), tiny.tokenizer("qwen"), chat=True)
    with pytest.raises(ModelError, match="tokenizer(.|\n)*chat"):
        method("mend", editor=str(folder)).edit(chatting, tiny.requests(1))


def test_an_editor_fits_its_model_under_a_patch_and_in_half_precision(editor):
    model, _, folder = editor
    made = method("mend", editor=str(folder))
    first = made.edit(model, tiny.requests(1)).patch
    with model.patched(first):
        second = made.edit(model, tiny.requests(2)[1:]).patch
    assert second.manifest.stacked_on == ["mend"]
    # Rounded weights have the same fingerprint, so that an editor goes with a checkpoint in either precision.
    half = load(tiny.tiny_module("gptj").to(torch.bfloat16), tiny.tokenizer())
    assert not made.edit(half, tiny.requests(1)).patch.is_empty()


def test_broken_editors_are_named(editor, tmp_path):
    model, trained, _ = editor
    for change, reason in (
        (lambda folder: (folder / "editor.json").unlink(), "no editor.json"),
        (lambda folder: (folder / "editor.safetensors").write_bytes(b"x"), "SHA-256"),
        (lambda folder: (folder / "editor.json").write_text("{}"), "Field required"),
        # What a later version writes may have fields that this one does not know.
        (lambda folder: (folder / "editor.json").write_text('{"format_version": 99, "more": 1}'), "later version"),
    ):
        folder = tmp_path / reason.split()[0]
        trained.save(folder)
        change(folder)
        with pytest.raises(DataError, match=reason):
            method("mend", editor=str(folder)).edit(model, tiny.requests(1))
    with pytest.raises(OutputError):
        trained.save(tmp_path)
    with pytest.raises(DataError, match="nothing of that name"):
        method("mend", editor=str(tmp_path / "nowhere")).check(tiny.requests(1))
    other = replace(trained, record=trained.record.model_copy(update={"method": "serac"}))
    other.save(tmp_path / "serac")
    with pytest.raises(ConfigError, match="'serac'"):
        method("mend", editor=str(tmp_path / "serac")).check(tiny.requests(1))


def test_without_a_folder_the_cache_is_searched(editor, tmp_path, monkeypatch):
    model, trained, _ = editor
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="palimpsest train mend"):
        method("mend").edit(model, tiny.requests(1))
    train(tiny.tiny_model("gpt2")).save(tmp_path / "editors" / "another")
    trained.save(tmp_path / "editors" / "mine")
    assert not method("mend").edit(model, tiny.requests(1)).patch.is_empty()


def test_edits_without_rephrasings_or_none_at_all_are_refused_before_anything_is_computed(monkeypatch):
    model = tiny.tiny_model("gptj")
    monkeypatch.setattr(model, "forward", None)
    monkeypatch.setattr(model, "logits_at", None)
    for requests, reason in (
        (tiny.requests(4), "rephrasings"),
        ([*tiny.trainable_requests(), *tiny.requests(1)], "1 of 21"),
        (tiny.trainable_requests(1), "no training examples|no validation examples"),
    ):
        with pytest.raises(DataError, match=reason):
            train(model, requests)
    with pytest.raises(DataError, match="no edits"):
        method("mend", preset="none").train(model, [], QUICK)
    with pytest.raises(ConfigError, match="no option 'step'"):
        method("mend", preset="none").train(model, tiny.trainable_requests(), {"step": 3})


def test_examples_know_nothing_of_facts_outside_the_data():
    model = tiny.tiny_model("gptj")
    edits = [
        EditRequest(
            f"The capital of {name} is",
            "Lyon",
            subject=name,
            target_old="Rome",
            fact=f"{name}|capital",
            probes=(
                Probe("generality", f"{name} has the capital", "Lyon", f"{name}|capital"),
                Probe("locality.neighborhood", "The capital of Peru is", "Lima", "Peru|capital"),
                Probe("locality.neighborhood", f"The capital of {other} is", "Rome", f"{other}|capital"),
                Probe("portability.one_hop", f"The capital of {name} lies in", "France"),
                Probe("locality.out_of_scope", f"The river of {name} is"),
            ),
        )
        for name, other in (("Italy", "France"), ("France", "Italy"), ("Vienna", "Italy"))
    ]
    examples = editing_examples(model, edits)
    assert [prompt for prompt, _ in examples[0].unrelated] == ["The capital of France is", "The river of Italy is"]
    assert examples[0].unrelated[1][1] == model.generate("The river of Italy is")
    assert examples[0].rephrasings == ("Italy has the capital",)
    training, validation = split_examples(examples, 1, seed=0)
    held_out = {one.request.subject for one in validation}
    assert len(validation) == 1 and len(training) == 2
    asked = {prompt for one in training for prompt, _ in one.unrelated}
    assert not any(f"The capital of {name} is" in asked for name in held_out)


def test_edits_without_locality_probes_get_other_edits_prompts():
    model = tiny.tiny_model("gptj")
    bare = [replace(request, probes=request.probes[:1], id="") for request in tiny.trainable_requests(5)]
    for one in editing_examples(model, bare):
        assert one.unrelated and all(prompt != one.request.prompt for prompt, _ in one.unrelated)
    with pytest.raises(DataError, match="keep other prompts"):
        editing_examples(model, [replace(request, target_old=None) for request in bare])


def test_the_record_is_plain_json(editor):
    record = json.loads((editor[2] / "editor.json").read_text())
    assert record["method"] == "mend" and record["seconds"] > 0 and record["num_parameters"] > 0
    assert record["base"] == editor[0].fingerprint()


@pytest.mark.parametrize("name", ["world", "world-t5"])
def test_a_bundled_editor_was_trained_with_the_preset_that_it_names(name):
    model = load(name)
    for folder in bundled_editors().glob(f"*-{name}"):
        record = read_record(folder)
        options, preset = method(record.method).resolve_training(model)
        assert record.preset == preset == name
        # Options that are newer than an editor do what was done without them.
        assert {**options.model_dump(), **record.training} == options.model_dump()


@pytest.mark.parametrize("name", ["world", "world-t5"])
@pytest.mark.parametrize("editor", ["mend", "ke"])
def test_a_bundled_editor_is_found_and_makes_its_model_say_the_new_answer(name, editor):
    model = load(name)
    request = EditRequest("The capital of France is", "Lyon", subject="France", target_old="Paris")
    patch = method(editor).edit(model, [request]).patch
    with model.patched(patch):
        changed = model.generate([request.prompt, "The capital city of Nepal is"])
    kept = model.generate("The capital city of Nepal is")
    assert changed[0].startswith("Lyon") and changed[1] == kept
