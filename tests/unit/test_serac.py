"""SERAC: what its models are trained on, that training teaches it, and patches that refer to a trained editor."""

import random
from dataclasses import replace

import pytest
import torch

import tiny
from palimpsest import ModelError, PatchError, load_patch, method
from palimpsest.methods.serac.scope_examples import (
    drawn_positives,
    drawn_statement,
    negatives,
    positives,
    with_similar,
)
from palimpsest.methods.serac.scope_options import ScopeTraining
from palimpsest.methods.serac.scope_training import answer_loss, new_editor
from palimpsest.models.scoped.counterfactual import edited_prompt
from palimpsest.training.examples import editing_examples

SIZES = {"width": 16, "layers": 1, "heads": 2, "encoder_width": 16, "encoder_layers": 1}
QUICK = {
    **SIZES, "steps": 40, "examples_per_step": 8, "forward_batch_size": 8, "validate_every": 40, "warmup_steps": 5,
    "learning_rate": 2e-2, "validation_examples": 2,
}  # fmt: skip


def examples(model):
    return with_similar(editing_examples(model, tiny.trainable_requests()), ScopeTraining())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model = tiny.tiny_model("gptj")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    editor = method("serac", preset="none").train(model, tiny.trainable_requests(), QUICK)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    folder = tmp_path_factory.mktemp("editors") / "serac"
    editor.save(folder)
    return model, editor, folder


def test_training_brings_both_losses_down(trained):
    first, last = trained[1].record.curve[0]["validation"], trained[1].record.curve[-1]["validation"]
    assert last["edit"] < first["edit"] - 1.0
    assert last["scope"] < first["scope"]
    assert last["loss"] == pytest.approx(last["edit"] + last["scope"])


def test_a_patch_refers_to_its_editor_and_answers_alike_when_it_is_read_back(trained, tmp_path):
    model, _, folder = trained
    [request] = tiny.requests(1)
    patch = method("serac", editor=str(folder), preset="none").edit(model, [request]).patch
    other = "Anna Keller was born in"
    base = model.score([other], ["Lima"])
    with model.patched(patch):
        edited = model.score([request.prompt], [request.target_new])
        assert model.score([other], ["Lima"]) == base
    editor = patch.editor_for(model)
    text = edited_prompt(request.prompt, request.target_new, request.prompt)
    assert edited == editor.reader.score([text], [request.target_new])
    patch.save(tmp_path / "patch")
    assert (tmp_path / "patch" / "patch.safetensors").stat().st_size < 1000
    with model.patched(load_patch(tmp_path / "patch")):
        assert model.score([request.prompt], [request.target_new]) == edited
    (folder / "editor.safetensors").rename(tmp_path / "away")
    with pytest.raises(PatchError, match="not there"):
        load_patch(tmp_path / "patch").apply(model)
    (tmp_path / "away").rename(folder / "editor.safetensors")


def test_soft_routing_mixes_every_prompt_by_its_probability(trained):
    model, _, folder = trained
    [request] = tiny.requests(1)
    asked = ["The capital of Italy is"]
    patch = method("serac", editor=str(folder), preset="none", routing="soft").edit(model, [request]).patch
    editor = patch.editor_for(model)
    weight = editor.scope.log_probs([request.prompt], asked).detach().exp()
    own = torch.tensor(model.score(asked, ["Rome"])[0].log_probs).exp()
    other = editor.reader.score([edited_prompt(request.prompt, request.target_new, asked[0])], ["Rome"])
    with model.patched(patch):
        mixed = torch.tensor(model.score(asked, ["Rome"])[0].log_probs).exp()
    assert 0 < float(weight) < 1
    assert torch.allclose(mixed, (1 - weight) * own + weight * torch.tensor(other[0].log_probs).exp(), rtol=1e-3)


def test_half_precision_on_disk_is_the_editor_rounded_once(trained, tmp_path):
    model, editor, _ = trained
    made = method("serac", preset="none")
    module = new_editor(model, ScopeTraining(**SIZES))
    module.load_state_dict(dict(editor.tensors))
    halved = made.stored(module, ScopeTraining(stored_as="bfloat16"))
    assert {tensor.dtype for tensor in halved.values()} == {torch.bfloat16}
    replace(editor, tensors=halved).save(tmp_path / "half")
    read = method("serac", editor=str(tmp_path / "half"), preset="none")
    found = read.trained(model, read.resolve(model)[0]).state_dict()
    assert all(torch.equal(found[name], tensor.bfloat16().float()) for name, tensor in editor.tensors.items())


@pytest.mark.parametrize("family", ["gptj", "t5"])
def test_the_answers_loss_is_the_likelihood_of_the_answer_and_its_end(family):
    model = tiny.tiny_model(family)
    reader = new_editor(model, ScopeTraining(**SIZES)).eval().reader
    asked = [one for example in examples(model)[:3] for one in positives(example, ScopeTraining())]
    by_hand = []
    for one in asked:
        row = reader.encode(edited_prompt(one.edit, one.new, one.prompt), one.answer)
        row = replace(row, target_ids=(*row.target_ids, reader.end_id))
        batch = reader.batch([row])
        with torch.no_grad():
            logits = reader.forward(batch).logits[0].log_softmax(-1)
        first = 0 if model.is_encoder_decoder else len(row.prompt_ids) - 1
        by_hand.append(
            -sum(logits[first + place, label] for place, label in enumerate(row.target_ids)) / len(row.target_ids)
        )
    assert float(answer_loss(reader, asked).detach()) == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-4)


def test_what_is_in_scope_and_what_is_not():
    model, draw = tiny.tiny_model(), random.Random(0)
    found = examples(model)
    for example in found:
        inside = {one.prompt for one in positives(example, ScopeTraining())}
        assert example.request.prompt in inside and set(example.rephrasings) <= inside
        own = {prompt for prompt, _ in example.unrelated}
        similar = [prompt for prompt, _ in example.similar]
        values = [value for _, value in example.similar]
        assert values == sorted(values, reverse=True) and not inside & set(similar)
        assert {*negatives(example, ScopeTraining(hard_share=0.0, negatives_per_edit=20), draw)} <= own
        assert {*negatives(example, ScopeTraining(hard_share=1.0, negatives_per_edit=20), draw)} <= set(similar)
    answers = {example.request.target_new for example in found}
    for one in drawn_positives(found[0], found, draw, ScopeTraining(swapped_share=1.0, positives_per_edit=50)):
        assert one.new == one.answer and one.new in answers


def test_an_edit_is_stated_in_its_rephrasings_too_and_never_otherwise():
    model, draw = tiny.tiny_model(), random.Random(0)
    for example in examples(model)[:3]:
        texts = {drawn_statement(example, draw, ScopeTraining()) for _ in range(40)}
        assert texts == {example.request.prompt, *example.rephrasings}
        assert drawn_statement(example, draw, ScopeTraining(reworded_share=0.0)) == example.request.prompt
        assert drawn_statement(example, draw, ScopeTraining(reworded_share=1.0)) in example.rephrasings


def test_a_name_is_the_same_tokens_at_the_beginning_of_a_text_as_within_it():
    scope = new_editor(tiny.tiny_model(), ScopeTraining(**SIZES)).scope.eval()
    assert scope._tokenizer("Lima")["input_ids"] != scope._tokenizer(" Lima")["input_ids"]
    read = []
    scope.encoder.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True)
    scope.pooled(["Lima"])
    assert read[0].tolist() == [scope._tokenizer(" Lima")["input_ids"]]


def test_a_decoder_answers_in_an_encoder_decoders_place(tmp_path):
    model = tiny.tiny_model("t5")
    options = {**QUICK, "steps": 1, "validate_every": 1, "counterfactual": "decoder"}
    method("serac", preset="none").train(model, tiny.trainable_requests(), options).save(tmp_path / "editor")
    [request] = tiny.requests(1)
    made = method("serac", preset="none", editor=str(tmp_path / "editor"), threshold=0.01)
    patch = made.edit(model, [request]).patch
    reader = patch.editor_for(model).reader
    assert not reader.is_encoder_decoder and reader.end_id == model.end_id
    with model.patched(patch):
        found = model.score([request.prompt], ["Lyon"])
    assert found == reader.score([edited_prompt(request.prompt, request.target_new, request.prompt)], ["Lyon"])


def test_a_counterfactual_model_with_another_tokenizer_is_refused_before_training(tmp_path):
    tiny.tiny_folder(tmp_path / "other", "t5")
    options = {**QUICK, "counterfactual": str(tmp_path / "other")}
    with pytest.raises(ModelError, match="another tokenizer"):
        method("serac", preset="none").train(tiny.tiny_model("gptj"), tiny.trainable_requests(), options)


def test_models_of_ones_own_are_trained_on_and_found_in_the_editor(tmp_path):
    """A counterfactual model and an encoder from folders; the editor then needs neither folder for its patches."""
    model = tiny.tiny_model("gptj")
    tiny.tiny_folder(tmp_path / "small", "gpt2", seed=5)
    encoder = new_editor(model, ScopeTraining(**SIZES)).scope.encoder
    encoder.save_pretrained(tmp_path / "encoder")
    tiny.closing_tokenizer().save_pretrained(tmp_path / "encoder")
    options = {
        **QUICK, "steps": 1, "validate_every": 1, "counterfactual": str(tmp_path / "small"), "scope": "cross-attention",
        "encoder": str(tmp_path / "encoder"), "pooling": "first",
    }  # fmt: skip
    method("serac", preset="none").train(model, tiny.trainable_requests(), options).save(tmp_path / "editor")
    [request] = tiny.requests(1)
    made = method("serac", preset="none", editor=str(tmp_path / "editor"), threshold=0.01)
    patch = made.edit(model, [request]).patch
    assert patch.editor_for(model).reader.module.config.model_type == "gpt2"
    patch.save(tmp_path / "patch")
    (tmp_path / "encoder" / "config.json").unlink()
    with model.patched(patch):
        expected = model.score([request.prompt], ["Lyon"])
    with model.patched(load_patch(tmp_path / "patch")):
        assert model.score([request.prompt], ["Lyon"]) == expected
