"""Model folders that are broken or hostile: one clear error each, no code run, no pickle opened, no question asked."""

import copy
import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import palimpsest as ps
import tiny
from palimpsest.cli import main

BOMB = b"cposix\nsystem\n(S'touch RAN'\ntR."


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return tiny.tiny_folder(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def folder(sound, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    return shutil.copytree(sound, tmp_path / "model")


def refused(folder, *, mentions):
    with pytest.raises(ps.ModelError) as raised:
        ps.load(str(folder))
    text = str(raised.value)
    assert raised.value.found, text
    assert raised.value.where, text
    for one in mentions.split("|"):
        assert one in text, text
    assert not list(folder.parent.rglob("RAN"))
    assert sys.stdin.tell() == 0, "a question was asked"


def change(file, **fields):
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **fields}))


FIELDS = [
    ({"n_layer": "many"}, "config.json|n_layer"),
    ({"n_layer": -1}, "config.json"),
    ({"n_layer": 0}, "config.json"),
    ({"n_layer": 2}, "config.json|2 layers"),
    ({"n_layer": 4}, "nothing for transformer.h.3"),
    ({"n_layer": 10**7}, "config.json|n_layer"),
    ({"n_embd": 256.5}, "config.json|n_embd"),
    ({"n_embd": -32}, "config.json|n_embd"),
    ({"n_embd": 40}, "do not have the shapes"),
    ({"n_embd": 10**9}, "config.json|n_embd"),
    ({"n_embd": {"a": 1}}, "config.json|n_embd"),
    ({"n_head": 0}, "config.json|n_head"),
    ({"n_head": 5}, "config.json|n_head"),
    ({"n_head": [4]}, "config.json|n_head"),
    ({"n_positions": "x"}, "config.json|n_positions"),
    ({"n_positions": 0}, "forward pass"),
    ({"n_positions": 10**8}, "config.json|n_positions = 100000000|tables of positions"),
    ({"rotary_dim": "x"}, "config.json|rotary_dim"),
    ({"vocab_size": 100}, "the config makes it [100, 32]"),
    ({"vocab_size": -5}, "config.json|vocab_size"),
    ({"activation_function": "nope"}, "config.json|activation_function"),
    ({"layer_norm_epsilon": "tiny"}, "config.json|layer_norm_epsilon"),
    ({"tie_word_embeddings": "yes"}, "config.json|tie_word_embeddings"),
    ({"model_type": ["gptj"]}, "config.json|model_type"),
    ({"model_type": None}, "config.json|model_type"),
    ({"model_type": 5}, "config.json|model_type"),
    ({"model_type": "no-such-model"}, "config.json|model_type"),
    ({"dtype": "float99"}, "config.json|dtype"),
    ({"dtype": 5}, "config.json|dtype"),
    ({"quantization_config": 5}, "config.json|quantization_config"),
    ({"quantization_config": {}}, "quant"),
    ({"quantization_config": {"quant_method": "awq"}}, "could not be loaded"),
    ({"is_encoder_decoder": True}, "config.json|is_encoder_decoder"),
    ({"id2label": 5}, "config.json|id2label"),
    ({"bos_token_id": "x"}, "config.json|bos_token_id"),
    ({"eos_token_id": [0, "x"]}, "config.json|eos_token_id"),
    ({"attn_implementation": "nope"}, "config.json|attn_implementation"),
    ({"attn_implementation": "owner/kernel"}, "kernel from the hub|config.json|attn_implementation"),
    ({"text_config": {"_attn_implementation": {"": "owner/kernel@main"}}}, "kernel from the hub|text_config"),
    ({"configuration_files": ["config.4.0.0.json"]}, "config.json|configuration_files"),
    ({"transformers_weights": "evil.bin"}, "not safetensors files|transformers_weights"),
    ({"transformers_weights": "../evil.safetensors"}, "not safetensors files|transformers_weights"),
    ({"auto_map": {"AutoConfig": "evil.C"}}, "code of its own|auto_map|--trust-remote-code"),
    ({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}, "code of its own|auto_map|--trust-remote-code"),
    ({"auto_map": {"AutoConfig": "owner/other--evil.C"}}, "code of its own"),
]


@pytest.mark.parametrize(("fields", "mentions"), FIELDS, ids=lambda value: str(value)[:50])
def test_a_config_s_field(fields, mentions, folder):
    (folder / "evil.py").write_text("open('RAN', 'w')\n")
    (folder / "evil.bin").write_bytes(BOMB)
    change(folder / "config.json", **fields)
    refused(folder, mentions=mentions)


CONTENTS = [
    ("config.json", b"", "config.json|empty"),
    ("config.json", b"[]", "config.json|object"),
    ("config.json", b"5", "config.json|object"),
    ("config.json", b"\x00\xff\xfe\x80", "config.json"),
    ("config.json", b"[" * 100_000, "config.json|Recursion"),
    ("config.json", b'{"n_layer": ' + b"9" * 5000 + b"}", "config.json"),
    ("config.json", b"{}", "config.json|model_type"),
    ("generation_config.json", b"5", "generation_config.json|object"),
    ("generation_config.json", b'{"temperature": "hot", "max_new_tokens": "x"}', "generation_config.json"),
    ("generation_config.json", b'{"max_new_tokens": -4}', "generation_config.json|max_new_tokens"),
    ("generation_config.json", b'{"eos_token_id": "x"}', "generation_config.json|eos_token_id"),
    ("tokenizer_config.json", b"[]", "tokenizer_config.json|object"),
    ("tokenizer_config.json", b'{"tokenizer_class": 5}', "tokenizer_config.json"),
    ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["evil.T", null]}}', "code of its own|tokenizer_config"),
    ("tokenizer.json", b"5", "tokenizer.json"),
    ("tokenizer.json", b'{"model": {"type": "Nope"}}', "tokenizer.json"),
    ("tokenizer.json", b"{", "tokenizer.json"),
    ("model.safetensors", b"", "model.safetensors"),
    ("model.safetensors", BOMB, "model.safetensors"),
    ("model.safetensors", (2**60).to_bytes(8, "little") + b"{}", "model.safetensors"),
    ("model.safetensors.index.json", b"[]", "index.json|object"),
    ("model.safetensors.index.json", b'{"weight_map": 5}', "index.json|weight_map"),
    ("model.safetensors.index.json", b'{"weight_map": {"a": "evil.bin"}}', "evil.bin|never opened"),
    ("model.safetensors.index.json", b'{"weight_map": {"a": "../out.safetensors"}}', "inside the folder"),
    ("model.safetensors.index.json", b'{"weight_map": {"a": "/out.safetensors"}}', "inside the folder"),
    ("model.safetensors.index.json", b'{"weight_map": {"a": "x\\\\..\\\\..\\\\o.safetensors"}}', "inside the folder"),
    ("model.safetensors.index.json", b'{"weight_map": {"a": 5}}', "index.json|tensor a"),
    ("model.safetensors.index.json", b'{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors|missing"),
]


@pytest.mark.parametrize(("name", "contents", "mentions"), CONTENTS, ids=[f"{n}-{c[:24]!r}" for n, c, _ in CONTENTS])
def test_a_file_s_contents(name, contents, mentions, folder):
    (folder / "evil.py").write_text("open('RAN', 'w')\n")
    (folder / "evil.bin").write_bytes(BOMB)
    (folder / name).write_bytes(contents)
    refused(folder, mentions=mentions)


def test_files_that_are_missing(folder):
    for file in folder.glob("token*"):
        file.unlink()
    refused(folder, mentions="no tokenizer")


def test_weights_that_are_no_numbers_or_of_another_shape(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "transformer.h.1.mlp.fc_in.weight"
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, path, {"format": "pt"})
    refused(folder, mentions=f"NaN|{name}")
    save_file({**tensors, name: tensors[name][:5].clone()}, path, {"format": "pt"})
    refused(folder, mentions=f"{name} is [5, 32]")
    save_file({key: value for key, value in tensors.items() if key != name}, path, {"format": "pt"})
    refused(folder, mentions=f"nothing for {name}")


def test_a_tokenizer_of_another_model(folder):
    other = copy.deepcopy(tiny.tokenizer("llama-3"))  # the other tests have the same one
    other.add_tokens([f"<more-{index}>" for index in range(50)])
    other.save_pretrained(folder)
    refused(folder, mentions="does not belong to the model")


def test_trusted_code_runs_and_only_then(folder, capfd):
    (folder / "own.py").write_text(
        "from transformers import GPTJConfig, GPTJForCausalLM\nopen('RAN', 'w').close()\n"
        "class C(GPTJConfig):\n    pass\nclass M(GPTJForCausalLM):\n    config_class = C\n"
    )
    change(folder / "config.json", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    refused(folder, mentions="code of its own")
    assert main(["ask", str(folder), "Anna", "--json"]) == 2
    assert "--trust-remote-code" in capfd.readouterr().err
    assert main(["ask", str(folder), "Anna", "--json", "--trust-remote-code"]) == 0
    assert list(folder.parent.rglob("RAN"))


def test_links_to_blobs_as_the_hub_s_cache_has_them_load(folder, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for index, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(index))
        file.symlink_to(blobs / str(index))
    assert ps.load(folder).generate("Anna", max_new_tokens=2) is not None


def test_folders_of_patches_that_name_themselves(sound, tmp_path):
    patch = ps.method("lora", epochs=1).edit(ps.load(sound), tiny.requests(1)).patch
    patch.save(tmp_path / "patch")
    for name in "abc":
        assert (
            main(["apply", str(sound), str(tmp_path / "patch"), "--as", "patched", "--out", str(tmp_path / name)]) == 0
        )
    for name, base in (("a", "a"), ("a", "b"), ("b", "a")):
        change(tmp_path / name / "palimpsest.json", base=str(tmp_path / base))
    with pytest.raises(ps.ModelError, match="names itself"):
        ps.load(tmp_path / "a")
    assert main(["doctor", str(tmp_path / "b")]) == 2
    # A base that is such a folder, and ends, is loaded with both patches on it.
    change(tmp_path / "b" / "palimpsest.json", base=str(sound))
    with pytest.raises(ps.PatchError, match="on the model already"):
        ps.load(tmp_path / "a")


ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{{ range(99999) | list | length }}{% endfor %}",
    "{{ lipsum(n=900000) }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ 'a' * 10000000000 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
]


@pytest.mark.parametrize("template", ENDLESS)
def test_chat_templates_that_do_not_end(template, folder, monkeypatch):
    monkeypatch.setattr("palimpsest.models.templates.CPU_SECONDS", 0.2)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ps.ModelError, match="chat template cannot be used"):
        ps.load(folder, chat=True)
    assert ps.load(folder).chat is None


@pytest.fixture(scope="module")
def adapter(sound, tmp_path_factory):
    place = tmp_path_factory.mktemp("adapter")
    patch = ps.method("lora", epochs=20).edit(ps.load(sound), tiny.requests(1)).patch
    patch.save(place / "patch")
    assert main(["apply", str(sound), str(place / "patch"), "--as", "peft", "--out", str(place / "adapter")]) == 0
    return place


def test_an_adapter_s_folder_is_its_base_with_the_adapter_in_it(adapter, sound):
    merged, model = ps.load(adapter / "adapter"), ps.load(sound)
    ids = torch.tensor([[5, 80, 300, 7]])
    with torch.no_grad(), model.patched(ps.load_patch(adapter / "patch")):
        expected = model.module(ids).logits
    with torch.no_grad():
        assert torch.allclose(merged.module(ids).logits, expected, atol=1e-4)
        assert not torch.allclose(model.module(ids).logits, expected, atol=1e-2)
    assert type(merged.module).__module__.startswith("transformers.")
    assert merged.name == str(adapter / "adapter")


@pytest.mark.parametrize(
    ("fields", "mentions"),
    [
        ({"base_model_name_or_path": None}, "which model|base_model_name_or_path"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"megatron_config": {}, "megatron_core": "evil"}, "megatron_config"),
        ({"r": "x"}, "adapter"),
        ({"target_modules": ["nothing"]}, "adapter"),
        ({"target_modules": ["transformer.h.2.mlp.fc_in"]}, "nothing for|transformer.h.2.mlp.fc_in"),
        ({"use_dora": True}, "nothing for|lora_magnitude_vector"),
        ({"r": 10**8}, "memory"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_adapters_that_cannot_be_used(fields, mentions, adapter, folder):
    broken = shutil.copytree(adapter / "adapter", folder.parent / "broken")
    change(broken / "adapter_config.json", **fields)
    refused(broken, mentions=mentions)


def test_adapters_without_safetensors_and_adapters_beside_a_model(adapter, folder):
    broken = shutil.copytree(adapter / "adapter", folder.parent / "broken")
    (broken / "adapter_model.safetensors").rename(broken / "adapter_model.bin")
    refused(broken, mentions="no safetensors weights|pickle")
    shutil.copy(adapter / "adapter" / "adapter_config.json", folder)
    refused(folder, mentions="a model and an adapter")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_model_in_memory_with_an_adapter_on_it_is_told_to_merge(adapter, sound):
    import peft

    base = ps.load(sound)
    adapted = peft.PeftModel.from_pretrained(base.module, str(adapter / "adapter"))
    with pytest.raises(ps.ModelError, match="adapter of peft") as raised:
        ps.load(adapted, base.tokenizer)
    assert "merge_and_unload()" in raised.value.remedy
    assert ps.load(adapted.merge_and_unload(), base.tokenizer).num_layers == 3
    embedded = ps.load(sound)
    embedded.module.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ps.ModelError, match="adapter of peft"):
        ps.load(embedded.module, embedded.tokenizer)


def test_rare_numbers_of_a_config_that_is_fine_load(folder):
    change(folder / "config.json", architectures=["Nope"], made_up=np.pi, note="anything/goes here")
    assert ps.load(folder).num_layers == 3
