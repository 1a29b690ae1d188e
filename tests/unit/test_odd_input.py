"""Tokenizers, scripts, answers, presets and patches that are not what one expects: said, refused, or simply right."""

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

import tiny
from palimpsest import ConfigError, DataError, EditRequest, ModelError, PatchError, load, load_patch, method
from palimpsest.cli.doctor import examine
from palimpsest.models import tokens
from palimpsest.patches.export import write_merged
from unit.subject_tokens import require_subject_s_tokens

PROMPTS = ["The capital of France is", "Anna"]
TARGETS = ["Lyon", "Keller was born in Lima"]
QUICK = {"learning_rate": 1e-2, "epochs": 3, "look_again": False}
TRAINED = {"parameters": "all", "spare": False, "learning_rate": 1e-2, "stop_loss": 0.02}


def words(*vocabulary, **special):
    """A tokenizer of whole words in lower case."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(("[UNK]", *vocabulary))}, unk_token="[UNK]"))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", **special)


def test_a_tokenizer_without_offsets_edits_but_does_not_locate():
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    model = load(tiny.tiny_module("llama"), tokenizer)
    alone = [model.score([p], [t])[0].log_prob for p, t in zip(PROMPTS, TARGETS, strict=True)]
    assert [s.log_prob for s in model.score(PROMPTS, TARGETS, side="left")] == pytest.approx(alone, abs=1e-4)
    request = tiny.requests(1)[0]
    assert not method("ft", preset="none", **QUICK).edit(model, [request]).patch.is_empty()
    with pytest.raises(ModelError, match=r"which characters a token covers(.|\n)*ByT5Tokenizer"):
        tokens.subject_last_token(tokenizer, request, chat=None)
    found = examine(model)
    assert not found["tokenizer"]["gives_offsets"] and any("slow tokenizer" in line for line in found["special"])


def test_a_tokenizer_without_pad_and_end_tokens_pads_all_the_same():
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    assert bare.pad_token_id is None and bare.eos_token_id is None
    model, usual = load(tiny.tiny_module("gpt2"), bare), tiny.tiny_model("gpt2")
    for side in ("left", "right"):
        together = [s.log_prob for s in model.score(PROMPTS, TARGETS, side=side)]
        assert together == pytest.approx([s.log_prob for s in usual.score(PROMPTS, TARGETS)], abs=1e-4)
    assert model.generate(PROMPTS, max_new_tokens=4) == [model.generate(p, max_new_tokens=4) for p in PROMPTS]
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        method("locft", preset="none", **QUICK).edit(model, tiny.requests(1))


def test_tokenizers_of_other_vocabularies():
    gaps = words("a", "b")
    gaps.add_tokens(["c"])
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 500}, unk_token="[UNK]"))
    with pytest.raises(ModelError, match=r"at most 384 tokens(.|\n)*ids up to 500"):
        load(tiny.tiny_module("llama"), PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]"))
    found = examine(load(tiny.tiny_module("llama"), gaps))
    assert any("another model's" in line for line in found["special"])
    assert not any("another model's" in line for line in examine(tiny.tiny_model("llama"))["special"])


@pytest.mark.parametrize(
    ("prompt", "subject", "target", "between"),
    [
        ("เมืองหลวงของประเทศไทยคือ", "ประเทศไทย", "กรุงเทพ", ""),
        ("日本の首都は", "日本", "東京", ""),
        ("「吾輩は猫である」の著者は", "吾輩は猫である", "「夏目漱石」", ""),
        ("法国的首都是", "法国", "里昂", ""),
        ("عاصمة فرنسا هي", "فرنسا", "ليون", " "),
        ("대한민국의 수도는", "대한민국", "부산", " "),
        ("The flag of 🇫🇷 shows", "🇫🇷", "🔵⚪🔴", " "),
        ("👩‍🚀 works in", "👩‍🚀", "space", " "),
        ("Zoë's home — in “Çelik” — is", "Zoë", "Île", " "),
    ],
)
def test_scripts(prompt, subject, target, between):
    """Byte-level tokens split letters, and several of them cover one character."""
    tokenizer = tiny.tokenizer()
    request = EditRequest(prompt, target, subject=subject)
    require_subject_s_tokens(tokenizer, request)
    assert tokens.separator(prompt, target) == between
    encoded = tokens.encode(tokenizer, prompt, target)
    assert tokenizer.decode(encoded.ids) == prompt + between + target
    model = load(tiny.tiny_module("gptj"), tokenizer)
    patch = method("ft", preset="none", epochs=80, append_eos=True, **TRAINED)
    with model.patched(patch.edit(model, [request]).patch):
        assert model.generate(prompt, max_new_tokens=60) == target


def test_answers_that_are_one_to_the_tokenizer_are_refused():
    model = load(tiny.tiny_module("gptj"), words("the", "name", "is", "1", "cafe"))
    editor = method("ft", preset="none", **QUICK)
    for old, new in (("①", "1"), ("Berlin", "Rome")):
        request = EditRequest("The name is", new, target_old=old)
        with pytest.raises(DataError) as caught:
            editor.edit(model, [request])
        assert all(text in str(caught.value) for text in ("to edit", repr(old), repr(new), "both ["))
    notes = editor.edit(model, [EditRequest("The name is", "Rome", target_old="cafe")]).diagnostics.notes
    assert any("no tokens for all of 1 new answer(s)" in note and "'Rome'" in note for note in notes)
    assert editor.edit(model, [EditRequest("The name is", "cafe")]).diagnostics.notes == []


def test_a_patch_is_not_put_on_twice(tmp_path):
    model = tiny.tiny_model("llama")
    patch = method("ft-l", preset="none", radius=0.05, **QUICK).edit(model, tiny.requests(1)).patch
    patch.save(tmp_path / "patch")
    again = load_patch(tmp_path / "patch")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with model.patched(patch):
        for same in (patch, again):
            with pytest.raises(PatchError, match=r"on the model already(.|\n)*2 \* patch"), model.patched(same):
                pass
        other = method("ft-l", preset="none", radius=0.05, **QUICK).edit(model, tiny.requests(1)).patch
        with model.patched(other):
            assert model.weights.labels == ["ft-l", "ft-l"]
        assert model.weights.labels == ["ft-l"]
    with pytest.raises(PatchError, match="on the model already"):
        write_merged(model, [patch, again], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    name = patch.touched()[0]
    with model.patched(2 * patch):
        assert torch.allclose(model.weights.current(name), before[name] + 2 * patch.deltas[name].dense())
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_a_preset_of_another_model_is_used_with_a_note():
    model = tiny.tiny_model("llama")
    outcome = method("ft-l", preset="gpt2-xl", epochs=1, look_again=False).edit(model, tiny.requests(1))
    [note] = outcome.diagnostics.notes
    assert "'gpt2-xl' was made for a model with model_type gpt2" in note and "model_type llama" in note
    assert outcome.patch.manifest.preset == "gpt2-xl" and outcome.patch.manifest.diagnostics["notes"] == [note]
    for preset in ("none", "f-learning-paper"):
        quiet = method("ft", preset=preset, epochs=1, look_again=False).edit(model, tiny.requests(1))
        assert quiet.diagnostics.notes == []
