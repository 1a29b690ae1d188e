"""SERAC's memory as a patch: who answers what, entries that come and go, and the editor it refers to."""

import pytest
import torch
from safetensors.torch import save_file

import tiny
from palimpsest import ConfigError, ModelError, PatchError, load, load_patch
from palimpsest.models.scoped.counterfactual import edited_prompt, new_module, require_same_tokenizer, smaller_config
from palimpsest.models.scoped.scope import scope_classifier, small_encoder
from palimpsest.models.scoped.scoped_editor import ScopedEditor, ScopedEditorRecord, tokenizer_from, tokenizer_record
from palimpsest.patches.base import Manifest
from palimpsest.patches.memory import MemoryEntry
from palimpsest.patches.routers import EditorReference, RouterPatch, Routing
from palimpsest.provenance import file_digest

ENTRIES = [MemoryEntry(f"fact-{row}", prompt, new) for row, (prompt, _, _, new) in enumerate(tiny.FACTS)]
ASKED = [prompt for prompt, *_ in tiny.FACTS] + ["Rome was built long ago by"]
TARGETS = ["Lyon"] * len(ASKED)


def editor_of(model, form="embedding", **sizes):
    torch.manual_seed(1)
    encoder = small_encoder(len(model.tokenizer), width=16, layers=1, heads=2)
    for parameter in encoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    # Far apart, so that a text is in its own scope alone.
    torch.nn.init.constant_(encoder.encoder.layer[-1].output.LayerNorm.weight, 10.0)
    config = smaller_config(model.module.config, **{"width": 16, "layers": 1, "heads": 2, **sizes})
    counterfactual = new_module(config)
    record = ScopedEditorRecord(
        form=form,
        pooling="mean",
        encoder=encoder.config.to_dict(),
        encoder_tokenizer=None,
        counterfactual=config.to_dict(),
    )
    scope = scope_classifier(form, encoder, model.tokenizer, "mean")
    return ScopedEditor(scope, counterfactual, model.tokenizer, record).eval()


def memory(model, entries=ENTRIES, *, editor=None, reference=None, **routing):
    editor = editor or editor_of(model)
    chosen = Routing(reference or EditorReference("", ""), editor.record, **routing)
    index = editor.scope.index([entry.prompt for entry in entries])
    return RouterPatch(entries, index, Manifest(label="memory"), routing=chosen, editor=editor)


def scores(model):
    """One by one: what else is in a batch moves the last bits."""
    return model.score(ASKED, TARGETS, forward_batch_size=1)


def test_an_empty_memory_and_one_whose_scope_is_empty_are_the_base_bit_for_bit():
    model = tiny.tiny_model()
    base = scores(model), model.generate(ASKED)
    editor = editor_of(model)
    editor.scope.against = lambda edits, index, prompts: torch.full((len(prompts), len(edits)), -float("inf"))
    for patch in (memory(model, []), memory(model, editor=editor), memory(model, editor=editor, is_soft=True)):
        with model.patched(patch):
            assert (scores(model), model.generate(ASKED)) == base


@pytest.mark.parametrize("family", ["gptj", "t5"])
@pytest.mark.parametrize("form", ["embedding", "cross-attention"])
def test_what_is_always_in_scope_is_answered_by_the_counterfactual_model(family, form):
    model = tiny.tiny_model(family)
    editor = editor_of(model, form)
    editor.scope.against = lambda edits, index, prompts: torch.zeros(len(prompts), len(edits))
    reader = load(editor.counterfactual, model.tokenizer)
    texts = [edited_prompt(ENTRIES[0].prompt, ENTRIES[0].answer, prompt) for prompt in ASKED]
    expected = reader.score(texts, TARGETS, forward_batch_size=1), reader.generate(texts)
    for is_soft in (False, True):  # a weight of one is no mixture
        with model.patched(memory(model, ENTRIES[:1], editor=editor, is_soft=is_soft)):
            assert (scores(model), model.generate(ASKED)) == expected


def test_each_edit_is_found_by_its_own_prompt_and_nothing_else_changes():
    model = tiny.tiny_model()
    base = scores(model)
    patch = memory(model)
    with model.patched(patch):
        edited = scores(model)
    reader = patch.editor_for(model).reader
    texts = [edited_prompt(entry.prompt, entry.answer, entry.prompt) for entry in ENTRIES]
    assert edited[:4] == reader.score(texts, TARGETS[:4], forward_batch_size=1)
    assert edited[4] == base[4]
    # One more edit, of something else, changes no answer outside its own scope; and the order decides nothing.
    with model.patched(memory(model, ENTRIES[:3], editor=patch.editor_for(model))):
        assert scores(model)[:3] == edited[:3]
        assert scores(model)[3] == base[3]
    with model.patched(memory(model, ENTRIES[::-1], editor=patch.editor_for(model))):
        assert scores(model) == edited


def holds_the_same(one, other):
    """The same entries; a text read in another batch is the same but for the rounding of its sums."""
    return one.entries == other.entries and torch.allclose(one.index, other.index, rtol=1e-5, atol=1e-6)


def test_an_entry_that_is_deleted_leaves_the_former_answers(tmp_path):
    model = tiny.tiny_model()
    three, four = memory(model, ENTRIES[:3]), memory(model)
    with model.patched(three):
        before = scores(model), model.generate(ASKED)
    left = four.without("fact-3")
    assert [entry.id for entry in left.entries] == ["fact-0", "fact-1", "fact-2"]
    with model.patched(left):
        assert (scores(model), model.generate(ASKED)) == before
    assert holds_the_same(left, three) and not four.is_same(three)
    assert four.without(*(entry.id for entry in ENTRIES)).is_empty()
    with pytest.raises(ConfigError, match="fact-2"):
        four.without("fact-22")


def test_memories_that_answer_alike_become_one_and_a_later_edit_replaces_an_earlier_one():
    model = tiny.tiny_model()
    editor = editor_of(model)
    first, second = memory(model, ENTRIES[:2], editor=editor), memory(model, ENTRIES[2:], editor=editor)
    assert holds_the_same(first.followed_by(second), memory(model, editor=editor))
    again = MemoryEntry("newer", ENTRIES[0].prompt.upper(), "Nice")
    both = first.followed_by(memory(model, [again], editor=editor))
    assert [(entry.id, entry.answer) for entry in both.entries] == [("fact-1", "Milan"), ("newer", "Nice")]
    assert len(both.index) == 2
    assert first.followed_by(memory(model, ENTRIES[2:], editor=editor, threshold=0.9)) is None


@pytest.mark.parametrize("self_contained", [False, True])
def test_a_saved_memory_answers_alike_and_refers_to_its_editor_or_brings_it(self_contained, tmp_path):
    model = tiny.tiny_model()
    editor = editor_of(model)
    file = tmp_path / "editor.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in editor.state_dict().items()}, file)
    reference = EditorReference(str(file), file_digest(file))
    patch = memory(model, editor=editor, reference=reference, is_self_contained=self_contained)
    with model.patched(patch):
        expected = scores(model)
    patch.save(tmp_path / "patch")
    fresh = tiny.tiny_model()
    with fresh.patched(load_patch(tmp_path / "patch")):
        assert scores(fresh) == expected
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    for found in ("another editor", "nothing"):
        if self_contained:
            with fresh.patched(load_patch(tmp_path / "patch")):
                assert scores(fresh) == expected
        else:
            with pytest.raises(PatchError, match=found) as failure:
                load_patch(tmp_path / "patch").apply(fresh)
            assert "self_contained" in str(failure.value) and fresh.weights.depth == 0
        file.unlink(missing_ok=True)


def test_a_damaged_memory_is_refused(tmp_path):
    model = tiny.tiny_model()
    memory(model, is_self_contained=True).save(tmp_path / "patch")
    manifest = tmp_path / "patch" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"id": "fact-0"', '"name": "fact-0"', 1))
    with pytest.raises(PatchError):
        load_patch(tmp_path / "patch")


def test_an_edit_that_leaves_no_room_in_the_counterfactual_models_context_is_left_to_the_model():
    model = tiny.tiny_model()
    long = MemoryEntry("long", " ".join(["Rome"] * 100), "Lyon")
    base = model.score([long.prompt], ["Lyon"])
    with model.patched(memory(model, [long])):
        assert model.score([long.prompt], ["Lyon"]) == base


def test_a_counterfactual_model_with_another_tokenizer_is_refused():
    model = tiny.tiny_model()
    with pytest.raises(ModelError, match="another tokenizer") as failure:
        require_same_tokenizer(tiny.closing_tokenizer(), model, name="t5-small")
    assert "t5-small" in str(failure.value)
    with pytest.raises(ModelError, match="another tokenizer"):
        memory(model).apply(tiny.tiny_model("t5"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart", "bloom", "opt", "mpt", "gemma2"])
def test_a_smaller_model_of_the_family_reads_the_same_tokens(family):
    model = tiny.tiny_model(family)
    small = load(new_module(smaller_config(model.module.config, width=16, layers=2, heads=2)), model.tokenizer)
    assert small.num_layers == 2
    assert small.module.get_input_embeddings().weight.shape == (model.module.config.vocab_size, 16)
    assert model.module.config.vocab_size == small.module.config.vocab_size
    assert small.score(ASKED[:1], TARGETS[:1])[0].log_prob < 0
    with pytest.raises(ConfigError, match="heads"):
        smaller_config(model.module.config, width=15, layers=2, heads=2)


def test_a_tokenizer_survives_as_plain_data():
    again = tokenizer_from(tokenizer_record(tiny.closing_tokenizer()))
    text = "The capital of France is Lyon."
    assert again(text)["input_ids"] == tiny.closing_tokenizer()(text)["input_ids"]
    assert (again.pad_token_id, again.eos_token) == (tiny.closing_tokenizer().pad_token_id, "</s>")
