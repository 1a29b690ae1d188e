"""GGUF out: edited files whose other bytes are the original's, read back, measured, and undone to the same file."""

import errno
import json
import os
import shutil

import gguf
import numpy as np
import pytest
import torch

import palimpsest as ps
import tiny
import tiny_gguf
from palimpsest.checkpoints.gguf_header import read_header
from palimpsest.cli import main
from palimpsest.patches.base import Manifest
from palimpsest.patches.gguf import undo_gguf, write_gguf, write_gguf_adapter
from palimpsest.patches.gguf.precision import Change, chosen, kept_type
from palimpsest.patches.weights import Dense, LowRank, WeightPatch
from palimpsest.provenance import file_digest

TYPES = gguf.GGMLQuantizationType
KINDS = {"attn_q": TYPES.Q8_0, "attn_k": TYPES.Q8_0, "attn_v": TYPES.Q4_0, "ffn_gate": TYPES.Q4_1, "ffn_up": TYPES.F16}
LAYER = "model.layers.1"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_gguf.write_gguf(path, kinds=KINDS)
    return path


@pytest.fixture
def model(file):
    return ps.load(file)


def patch_of(model, *names, size=0.2, seed=0, rank=None):
    """A change by hand of some parameters, `size` of each one's norm."""
    torch.manual_seed(seed)
    deltas = {}
    for name in names:
        value = model.weights.base(name)
        if rank:
            delta = LowRank(torch.randn(value.shape[0], rank), torch.randn(rank, value.shape[1]))
            deltas[name] = delta.scaled(size * float(value.norm()) / float(delta.dense().norm()))
        else:
            delta = torch.randn(value.shape)
            deltas[name] = Dense(delta * size * value.norm() / delta.norm())
    return WeightPatch(deltas, Manifest(label="by hand", base=model.fingerprint(names)))


def raw(path):
    return {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in gguf.GGUFReader(str(path)).tensors}


def loaded_state(path):
    return {name: value.clone() for name, value in ps.load(path).module.state_dict().items()}


def test_other_bytes_are_the_original_s_and_edited_ones_carry_the_edit(file, model, tmp_path):
    names = [
        f"{LAYER}.self_attn.q_proj.weight",
        f"{LAYER}.self_attn.k_proj.weight",
        f"{LAYER}.self_attn.v_proj.weight",
        f"{LAYER}.mlp.gate_proj.weight",
        f"{LAYER}.mlp.up_proj.weight",
        f"{LAYER}.mlp.down_proj.weight",
        "model.norm.weight",
    ]
    patch = patch_of(model, *names)
    with model.patched(patch):
        wanted = {name: value.clone() for name, value in model.module.state_dict().items()}
    before = file.read_bytes()
    edited = write_gguf(model, [patch], tmp_path / "edited.gguf")
    assert file.read_bytes() == before and model.weights.labels == []
    old, new = raw(file), raw(tmp_path / "edited.gguf")
    changed = {tiny_gguf.gguf_name(name) for name in names}
    assert list(old) == list(new) and {one.name for one in edited.tensors} == changed
    assert all(old[name] == new[name] for name in old.keys() - changed)
    assert {one.name.split(".")[-2]: one.new_type for one in edited.tensors} == {
        "attn_q": "F16",
        "attn_k": "F16",
        "attn_v": "Q8_0",
        "ffn_gate": "Q8_0",
        "ffn_up": "F16",
        "ffn_down": "F32",
        "output_norm": "F32",
    }
    # Read back by transformers: permuted rows are where they belong, and each type's rounding is all that is missing.
    found = loaded_state(tmp_path / "edited.gguf")
    for name in names:
        bound = 2e-2 if name.endswith(("v_proj.weight", "gate_proj.weight")) else 1e-3
        delta = patch.deltas[name].dense()
        assert torch.linalg.norm(found[name] - wanted[name]) < 3 * bound * torch.linalg.norm(delta) + 1e-6, name
    assert all(torch.equal(found[name], wanted[name]) for name in found.keys() - set(names))
    assert torch.equal(found[f"{LAYER}.mlp.down_proj.weight"], wanted[f"{LAYER}.mlp.down_proj.weight"])


def test_undo_gives_the_same_file_and_a_second_edit_can_be_undone_to_the_first(file, model, tmp_path):
    first = patch_of(model, f"{LAYER}.self_attn.q_proj.weight")
    write_gguf(model, [first], tmp_path / "one.gguf")
    again = ps.load(tmp_path / "one.gguf")
    second = patch_of(again, f"{LAYER}.mlp.gate_proj.weight", seed=1)
    write_gguf(again, [second], tmp_path / "two.gguf")
    assert undo_gguf(tmp_path / "two.gguf", tmp_path / "one-again.gguf") == file_digest(tmp_path / "one.gguf")
    assert undo_gguf(tmp_path / "one.gguf", tmp_path / "again.gguf") == file_digest(file)
    assert (tmp_path / "again.gguf").read_bytes() == file.read_bytes()
    metadata = read_header(tmp_path / "two.gguf").metadata
    assert len(json.loads(metadata["palimpsest.patches"])) == 2
    assert metadata["palimpsest.base.sha256"] == file_digest(tmp_path / "one.gguf")
    assert json.loads(metadata["palimpsest.tensors"]) == {"blk.1.ffn_gate.weight": ["Q4_1", "Q8_0"]}


def test_what_cannot_be_undone_says_what_was_expected_and_what_to_do(file, model, tmp_path):
    patch_of(model, f"{LAYER}.mlp.gate_proj.weight").save(tmp_path / "patch")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "edited.gguf").write_bytes(b"GGUF")
    (tmp_path / "text.gguf").write_text("what?")
    (tmp_path / "empty.gguf").touch()
    cases = {
        "nothere.gguf": ("nothing of that name", "check the path"),
        "tex.gguf": ("nothing of that name", "did you mean 'text.gguf'?"),
        "nowhere/edited.gguf": ("no folder", "check the path"),
        "folder": ("a folder", "edited.gguf"),
        "patch": ("the folder of a patch", "its files are what they were"),
        "text.gguf": ("other contents", "download or copy"),
        "empty.gguf": ("an empty file", "download or copy"),
    }
    for name, (found, remedy) in cases.items():
        with pytest.raises(ps.PalimpsestError) as raised:
            undo_gguf(tmp_path / name, tmp_path / "out.gguf")
        said = raised.value
        assert said.expected and found in said.found and remedy in said.remedy and str(tmp_path / name) in said.where
    with pytest.raises(ps.PatchError) as raised:
        undo_gguf(file, tmp_path / "out.gguf")
    assert "the original" in raised.value.remedy
    assert not (tmp_path / "out.gguf").exists()


def test_an_undo_that_does_not_belong_to_the_file_leaves_nothing(file, model, tmp_path):
    write_gguf(model, [patch_of(model, f"{LAYER}.mlp.gate_proj.weight")], tmp_path / "one.gguf")
    write_gguf(model, [patch_of(model, f"{LAYER}.mlp.up_proj.weight")], tmp_path / "two.gguf")
    out = tmp_path / "out.gguf"
    for edited, kept, words in (
        ("one.gguf", "two.undo", "do not make the original"),
        ("one.gguf", "none.undo", "not a readable way back"),
        ("one.gguf", "one.gguf", "not a readable way back"),
    ):
        with pytest.raises(ps.PatchError, match=words):
            undo_gguf(tmp_path / edited, out, kept=tmp_path / kept)
    with pytest.raises(ps.PatchError, match="not edited by Palimpsest"):
        undo_gguf(file, out)
    (tmp_path / "one.gguf").write_bytes((tmp_path / "one.gguf").read_bytes()[:-5000])
    with pytest.raises(ps.PatchError, match="do not make the original"):
        undo_gguf(tmp_path / "one.gguf", out)
    assert not out.exists()
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


def test_the_edit_s_answer_is_asked_of_the_written_file(file, model, tmp_path, capfd):
    edits = tmp_path / "facts.jsonl"
    edits.write_text(json.dumps({"prompt": "The capital of France is", "subject": "France", "target_new": "Lyon"}))
    patch, out = tmp_path / "patch", tmp_path / "edited.gguf"
    command = ["edit", str(file), "--method", "lora", "-o", "epochs=30", "--edits", str(edits), "--out", str(patch)]
    assert main(command) in (0, 1)
    capfd.readouterr()
    assert main(["apply", str(file), str(patch), "--as", "gguf", "--out", str(out), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["held"] == 1 and found["answers"]["The capital of France is"].startswith(" Lyon")
    assert ps.load(out).generate("The capital of France is").startswith("Lyon")
    assert (tmp_path / "edited.Modelfile").read_text().splitlines()[1] == "FROM ./edited.gguf"
    edit = json.loads(read_header(out).metadata["palimpsest.edits"])[0]
    assert (edit["prompt"], edit["target_new"]) == ("The capital of France is", "Lyon")
    assert main(["undo", str(out), "--out", str(tmp_path / "original.gguf"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["sha256"] == file_digest(file)
    # An adapter: what the base adds to it is the patch.
    adapter = tmp_path / "adapter.gguf"
    assert main(["apply", str(file), str(patch), "--as", "gguf-adapter", "--out", str(adapter)]) == 0
    assert "--lora" in capfd.readouterr().out


def test_an_adapter_holds_the_change_in_one_rank(file, model, tmp_path):
    names = [f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.self_attn.v_proj.weight"]
    patches = [patch_of(model, names[0], rank=2), patch_of(model, *names, rank=3, seed=1)]
    written = write_gguf_adapter(model, patches, tmp_path / "adapter.gguf")
    reader = gguf.GGUFReader(str(tmp_path / "adapter.gguf"))
    read = {tensor.name: tensor.data for tensor in reader.tensors}
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == "llama" and fields["adapter.lora.alpha"] == written.rank == 5
    assert {data.shape[0] for name, data in read.items() if name.endswith("lora_a")} == {5}
    for name, part in zip(names, ("attn_q", "attn_v"), strict=True):
        product = read[f"blk.1.{part}.weight.lora_b"] @ read[f"blk.1.{part}.weight.lora_a"]
        wanted = sum(patch.deltas[name].dense() for patch in patches if name in patch.deltas).numpy()
        wanted = tiny_gguf.permuted(wanted, 4) if part == "attn_q" else wanted
        assert np.allclose(product, wanted, atol=1e-6), part


def test_a_hugging_face_model_goes_into_a_file_of_the_same_model(file, tmp_path):
    folder = tmp_path / "folder"
    tiny.tiny_module("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    model = ps.load(folder)
    names = [f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.mlp.gate_proj.weight"]
    patch = patch_of(model, *names, size=0.2)
    with model.patched(patch):
        wanted = {name: model.weights.current(name).clone() for name in names}
    edited = write_gguf(model, [patch], tmp_path / "edited.gguf", template=file)
    found = loaded_state(tmp_path / "edited.gguf")
    for name in names:
        assert torch.linalg.norm(found[name] - wanted[name]) < 0.02 * torch.linalg.norm(wanted[name])
    # Weights of a float checkpoint do not lie on the file's grid: what has eight bits may keep them.
    assert {one.new_type for one in edited.tensors} == {"Q8_0"}
    with pytest.raises(ps.ConfigError, match="nothing here turns one into GGUF") as raised:
        write_gguf(model, [patch], tmp_path / "other.gguf")
    assert "--gguf FILE" in raised.value.remedy
    other = tmp_path / "other-model.gguf"
    tiny_gguf.write_gguf(other, seed=7, kinds=KINDS)
    with pytest.raises(ps.ModelError, match="does not have the model's weights"):
        write_gguf(model, [patch], tmp_path / "other.gguf", template=other)
    assert not (tmp_path / "other.gguf").exists()


def test_a_hugging_face_model_is_converted_by_llama_cpp_s_converter(file, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    tiny.tiny_module("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    model = ps.load(folder)
    patch = patch_of(model, f"{LAYER}.mlp.down_proj.weight", rank=2)
    # In its place a script that takes the same arguments: a folder with weights, and where the file is to go.
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text(
        "import pathlib, shutil, sys\n"
        "base, _, kind, _, out = sys.argv[1:]\n"
        "assert pathlib.Path(base, 'model.safetensors').exists() and kind == 'f16'\n"
        f"shutil.copy({str(file)!r}, out)\n"
    )
    monkeypatch.setenv("PALIMPSEST_GGUF_CONVERTER", str(converter))
    edited = write_gguf(model, [patch], tmp_path / "edited.gguf")
    assert [(one.name, one.old_type) for one in edited.tensors] == [("blk.1.ffn_down.weight", "F32")]
    written = write_gguf_adapter(model, [patch], tmp_path / "adapter.gguf")
    assert written.tensors == ("blk.1.ffn_down.weight",)
    converter.write_text("import sys; sys.exit('Model FooBar is not supported')")
    with pytest.raises(ps.ModelError, match="converter failed") as raised:
        write_gguf(model, [patch], tmp_path / "other.gguf")
    assert "FooBar" in raised.value.found and "--gguf FILE" in raised.value.remedy


def test_bad_input_is_refused_and_leaves_nothing(file, model, tmp_path):
    out, names = tmp_path / "edited.gguf", [f"{LAYER}.mlp.gate_proj.weight"]
    patch = patch_of(model, *names)
    memory = ps.method("grace").edit(model, tiny.requests(1)).patch
    with pytest.raises(ps.ConfigError, match="no form in GGUF") as raised:
        write_gguf(model, [memory], out)
    assert "palimpsest serve" in raised.value.remedy
    other = tmp_path / "other.gguf"
    tiny_gguf.write_gguf(other, seed=7, kinds=KINDS)
    with pytest.raises(ps.PatchError, match="another model"):
        write_gguf(ps.load(other), [patch], out)
    with pytest.raises(ps.ConfigError, match="change nothing"):
        write_gguf(model, [0 * patch], out)
    with pytest.raises(ps.ConfigError, match="A GGUF file is named so"):
        write_gguf(model, [patch], tmp_path / "edited")
    with pytest.raises(ps.ConfigError, match="is a GGUF file itself"):
        write_gguf(model, [patch], out, template=file)
    with pytest.raises(ps.ConfigError, match="as a LoRA adapter") as raised:
        write_gguf_adapter(model, [patch], out)
    assert "--as gguf" in raised.value.remedy
    (tmp_path / "edited.Modelfile").write_text("mine")
    with pytest.raises(ps.OutputError, match="exists already"):
        write_gguf(model, [patch], out)
    (tmp_path / "edited.Modelfile").unlink()
    changed = tmp_path / "changed.gguf"
    shutil.copy(file, changed)
    its = ps.load(changed)
    with changed.open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(ps.ModelError, match="has changed since"):
        write_gguf(its, [patch_of(its, *names)], out)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["changed.gguf", "other.gguf"]


def test_a_full_disk_leaves_nothing_and_a_pipe_is_not_waited_for(file, model, tmp_path, monkeypatch):
    patch, out = patch_of(model, f"{LAYER}.mlp.gate_proj.weight", rank=2), tmp_path / "edited.gguf"

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("palimpsest.patches.gguf.editing.write_way_back", full)
        with pytest.raises(ps.OutputError, match="nothing was left behind"):
            write_gguf(model, [patch], out)
        patched.setattr("gguf.GGUFWriter.write_tensors_to_file", full)
        with pytest.raises(ps.OutputError, match="nothing was left behind"):
            write_gguf_adapter(model, [patch], out)
    assert list(tmp_path.iterdir()) == [] and model.weights.labels == []
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ps.ModelError, match="cannot be read") as raised:
        undo_gguf(tmp_path / "pipe.gguf", out)
    assert "a named pipe" in raised.value.found


def test_a_file_that_does_not_carry_the_edit_is_not_left_behind(file, model, tmp_path):
    # Far below half a step of Q4_1: the type keeps nothing of it, and feeding errors back needs keys.
    patch = patch_of(model, f"{LAYER}.mlp.gate_proj.weight", size=1e-3)
    with pytest.raises(ps.ModelError, match="Q4_1 does not carry the edit") as raised:
        write_gguf(model, [patch], tmp_path / "edited.gguf", keep_type=True)
    assert "--keep-type" in raised.value.remedy
    assert list(tmp_path.iterdir()) == []
    assert write_gguf(model, [patch], tmp_path / "edited.gguf").tensors[0].error < 0.1


def on_grid(kind, rows=64, columns=256, seed=0):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(rows, columns)).astype(np.float32)
    return gguf.dequantize(gguf.quantize(values, kind), kind).astype(np.float32)


@pytest.mark.parametrize(("size", "lost"), [(0.02, 0.3), (0.05, 0.05)])
def test_the_same_type_loses_the_edit_and_feeding_errors_back_keeps_it(size, lost):
    generator = np.random.default_rng(1)
    base = on_grid(TYPES.Q4_1)
    keys = generator.normal(size=(3, 256)).astype(np.float32)
    delta = generator.normal(size=(64, 1)).astype(np.float32) @ keys[:1]
    delta *= size * np.linalg.norm(base) / np.linalg.norm(delta)
    change = Change("w", int(TYPES.Q4_1), base, base + delta, keys[:1], is_on_grid=True)
    plain = gguf.dequantize(gguf.quantize(change.wanted, TYPES.Q4_1), TYPES.Q4_1)
    # By hand: what arrives of what the change adds at its key.
    action, arrived = delta @ keys[0], (plain - base) @ keys[0]
    assert change.survival(plain).kept == pytest.approx(float(action @ arrived / (action @ action)), abs=1e-4)
    assert change.survival(plain).kept < 1 - lost
    tensor, survival = kept_type(change)
    assert tensor.kind == TYPES.Q4_1 and survival.kept > 0.95
    tensor, survival = chosen(change)
    assert tensor.kind == TYPES.Q8_0 and survival.error < 0.1


def test_types_are_chosen_by_what_they_carry():
    generator = np.random.default_rng(1)
    for kind, size, wanted in (
        (TYPES.Q5_0, 0.1, TYPES.Q8_0),
        (TYPES.Q5_0, 1e-2, TYPES.F16),
        (TYPES.Q8_0, 0.05, TYPES.F16),
        (TYPES.Q8_0, 1e-4, TYPES.F32),
    ):
        base = on_grid(kind)
        delta = generator.normal(size=base.shape).astype(np.float32) * np.float32(size)
        assert chosen(Change("w", int(kind), base, base + delta, None, is_on_grid=True))[0].kind == wanted, (kind, size)


def test_a_type_that_cannot_be_written_is_said(monkeypatch):
    base = np.zeros((2, 256), np.float32)
    change = Change("w", int(TYPES.IQ2_XXS), base, base + 1, None, is_on_grid=True)
    with pytest.raises(ps.ModelError, match="type IQ2_XXS cannot be written") as raised:
        kept_type(change)
    assert "--keep-type" in raised.value.remedy
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ps.ModelError, match="type Q4_K cannot be written") as raised:
        kept_type(Change("w", int(TYPES.Q4_K), base, base + 1, None, is_on_grid=True))
    assert "libgguf" in raised.value.found
