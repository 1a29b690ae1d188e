"""GGUF files as models: exact weights, patches that know their file, and refusals within a second."""

import contextlib
import json
import shutil

import gguf
import numpy as np
import pytest
import torch

import palimpsest as ps
import tiny
import tiny_gguf
from palimpsest.checkpoints import gguf_files
from palimpsest.checkpoints.gguf_header import read_header
from palimpsest.cli import main
from palimpsest.provenance import file_digest

Q8, Q4 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_gguf.write_gguf(path, kinds={"attn_q": Q8, "attn_v": Q4, "ffn_gate": Q8})
    return path


@pytest.fixture(scope="module")
def whole(file):
    return file.read_bytes()


def test_weights_are_the_file_s_exactly_and_texts_become_the_same_ids(file):
    model = ps.load(file)
    assert model.module.dtype == torch.float32
    state = model.module.state_dict()
    original = tiny.tiny_module("llama")
    assert state.keys() == original.state_dict().keys()
    for tensor in gguf.GGUFReader(str(file)).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        (name,) = (one for one in state if tiny_gguf.gguf_name(one) == tensor.name)
        found = state[name].numpy()
        if "attn_q" in tensor.name or "attn_k" in tensor.name:
            found = tiny_gguf.permuted(found, 4 if "attn_q" in tensor.name else 2)
        assert np.array_equal(found, values), tensor.name
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            assert torch.equal(state[name], original.state_dict()[name])
    for prompt, *_ in tiny.FACTS:
        assert model.tokenizer(prompt)["input_ids"] == tiny.tokenizer()(prompt)["input_ids"]


def test_the_file_s_logits_are_the_written_model_s(tmp_path):
    written = tiny_gguf.write_gguf(tmp_path / "float.gguf")
    model = ps.load(tmp_path / "float.gguf")
    ids = torch.tensor([[5, 80, 300, 7]])
    with torch.no_grad():
        assert torch.equal(model.module(ids).logits, written(ids).logits)


def test_a_patch_belongs_to_its_file(file, whole, tmp_path):
    model = ps.load(file)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    patch = ps.method("lora", epochs=2, sites="auto", layers="all").edit(model, tiny.requests(1)).patch
    patch.save(tmp_path / "patch")
    read = ps.load_patch(tmp_path / "patch")
    again = ps.load(file)
    with again.patched(read):
        assert not torch.equal(
            again.module.state_dict()["model.layers.0.self_attn.q_proj.weight"],
            before["model.layers.0.self_attn.q_proj.weight"],
        )
    assert all(torch.equal(value, before[name]) for name, value in again.module.state_dict().items())
    # Another name in the metadata: no weight differs, the file does.
    other = tmp_path / "other.gguf"
    other.write_bytes(whole.replace(b"tiny", b"tony", 1))
    with pytest.raises(ps.PatchError, match="made for another model") as raised:
        ps.load(other).patched(read).__enter__()
    assert "GGUF file has other contents" in raised.value.found
    # A folder made of the file has the same weights.
    folder = tmp_path / "folder"
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    with ps.load(folder).patched(read):
        pass


def test_commands_take_a_gguf_file_and_apply_writes_a_folder(file, tmp_path, capfd):
    edits = tmp_path / "facts.jsonl"
    edits.write_text(json.dumps({"prompt": "The capital of France is", "subject": "France", "target_new": "Lyon"}))
    patch, out = tmp_path / "patch", tmp_path / "merged"
    assert main(
        ["edit", str(file), "--method", "lora", "-o", "epochs=30", "--edits", str(edits), "--out", str(patch)]
    ) in (0, 1)
    assert main(["verify", str(file), str(patch), "--json"]) in (0, 1)
    assert main(["apply", str(file), str(patch), "--out", str(out)]) == 0
    capfd.readouterr()
    assert main(["ask", str(file), "The capital of France is", "--patch", str(patch), "--json"]) == 0
    answers = json.loads(capfd.readouterr().out)
    merged, model = ps.load(out), ps.load(file)
    with model.patched(ps.load_patch(patch)):
        ids = torch.tensor([[5, 80, 300, 7]])
        with torch.no_grad():
            assert torch.equal(model.module(ids).logits, merged.module(ids).logits)
    assert "Lyon" in json.dumps(answers)
    assert sorted(path.name for path in out.glob("*.safetensors")) == ["model.safetensors"]


def test_the_one_gguf_file_of_a_folder_is_taken_and_of_several_the_choice_is_told(file, tmp_path):
    shutil.copy(file, tmp_path / "model-Q8_0.gguf")
    assert ps.load(tmp_path).file_digest == file_digest(file)
    shutil.copy(file, tmp_path / "model-Q4_0.gguf")
    with pytest.raises(ps.ModelError, match="several GGUF files") as raised:
        ps.load(tmp_path)
    assert "model-Q4_0.gguf, model-Q8_0.gguf" in raised.value.found
    with pytest.raises(ps.ModelError, match="no such model file") as raised:
        ps.load(tmp_path / "model-Q8-0.gguf")
    assert "model-Q8_0.gguf" in raised.value.remedy


def refusal(path):
    with pytest.raises(ps.ModelError) as raised:
        ps.load(path)
    assert raised.value.found
    assert raised.value.where
    return raised.value


def test_a_file_cut_anywhere_is_refused(whole, tmp_path):
    path = tmp_path / "cut.gguf"
    cuts = [0, 3, 4, 8, 23, 24, 30, 100, 1000, len(whole) // 2, len(whole) - 1]
    for cut in [*cuts, *range(200, 20_000, 911)]:
        path.write_bytes(whole[:cut])
        error = refusal(path)
        assert "damaged or cut short" in error.problem or "not a GGUF file" in error.problem, cut


def test_bytes_changed_anywhere_in_the_header_never_give_a_traceback(file, whole, tmp_path):
    end = read_header(file).tensors[0].start
    path = tmp_path / "odd.gguf"
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for place in generator.integers(4, end, 3):
            data[place] = generator.integers(256)
        path.write_bytes(data)
        with contextlib.suppress(ps.ModelError):
            gguf_files.check_gguf(path)
            continue
        refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "clip"}, "not a whole language model"),
        ({"more": {"general.type": "adapter"}}, "not a whole language model"),
        ({"more": {"split.count": 3}}, "one part of several"),
        ({"without": ("tokenizer",)}, "has no tokenizer"),
        ({"without": ("blk.1.ffn_up.weight",)}, "do not have the same weights"),
        ({"tensors": {"blk.3.ffn_up.weight": np.zeros((48, 32), np.float32)}}, "do not have the same weights"),
        ({"tensors": {"blk.0.ids.weight": np.zeros((1, 8), np.int32)}}, "of a type that cannot be read"),
        ({"architecture": "rwkv7"}, "could not be loaded"),
        ({"more": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4}}, "scales its rotary embedding"),
        ({"tensors": {"rope_freqs.weight": np.full(4, 3.0, np.float32)}}, "scales its rotary embedding"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_no_model_is_said(change, said, tmp_path):
    tiny_gguf.write_gguf(tmp_path / "odd.gguf", **change)
    assert said in refusal(tmp_path / "odd.gguf").problem


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"", "not a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a GGUF file"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(100), "version of the GGUF format"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(100), "version of the GGUF format"),
        (b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2, "damaged or cut short"),
    ],
)
def test_what_is_no_gguf_file_is_said(contents, said, tmp_path):
    (tmp_path / "odd.gguf").write_bytes(contents)
    assert said in refusal(tmp_path / "odd.gguf").problem


def test_a_part_is_known_by_its_name_and_the_package_is_asked_for(file, tmp_path, monkeypatch):
    part = tmp_path / "model-00001-of-00003.gguf"
    shutil.copy(file, part)
    assert "one part of 3" in refusal(part).found
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal(file).remedy == "pip install 'palimpsest-lm[gguf]'"


def test_llama_3_s_scaling_comes_out_of_its_factors(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }
    scaled = tiny.tiny_module("llama", rope_parameters=scaling)
    plain = 1.0 / 500000.0 ** (np.arange(4) / 4)
    factors = (plain / scaled.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    assert factors.max() > 7.9
    path = tmp_path / "llama3.gguf"
    tiny_gguf.write_gguf(path, rope_theta=500000.0, tensors={"rope_freqs.weight": factors})
    model = ps.load(path)
    assert model.module.config.rope_parameters["rope_type"] == "llama3"
    assert torch.allclose(model.module.model.rotary_emb.inv_freq, scaled.model.rotary_emb.inv_freq)
