"""What stands instead of a file, and folders that have a name with a meaning of its own."""

import json
import os
import shutil

import pytest

import palimpsest as ps
import tiny
from palimpsest.cli import main
from palimpsest.datasets import load_edits
from palimpsest.errors import DataError, ModelError, PatchError, some_of
from palimpsest.files import FileKind, read_texts
from palimpsest.patches.export import base_of
from palimpsest.provenance import file_digest

KIND = FileKind(DataError, "This is no record.", expected="a record")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return tiny.tiny_folder(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def pipe(tmp_path):
    """A named pipe that nobody writes to: who opens it to read waits for ever."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    return tmp_path / "pipe.jsonl"


@pytest.mark.parametrize("read", ["text", "json", "toml", "tensors"])
def test_a_pipe_or_a_device_is_not_waited_for(pipe, read):
    for place, words in ((pipe, "a named pipe"), (pipe.with_name("endless"), "a device")):
        if not place.exists():
            place.symlink_to("/dev/zero")
        with pytest.raises(DataError) as caught:
            getattr(KIND, read)(place)
        assert words in caught.value.found and caught.value.where == str(place)


def test_neither_by_lines_nor_by_its_digest_nor_as_edits(pipe):
    with pytest.raises(DataError, match="This is no record"):
        list(KIND.lines(pipe))
    for reader in (file_digest, read_texts):
        with pytest.raises(ValueError, match="a named pipe instead of a file"):
            reader(pipe)
    with pytest.raises(DataError) as caught:
        load_edits(pipe)
    assert caught.value.found == "a named pipe instead of a file"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "generation_config.json", "chat_template.jinja"]
)
def test_a_pipe_in_a_model_s_folder_is_named(sound, tmp_path, name):
    folder = shutil.copytree(sound, tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelError) as caught:
        ps.load(folder)
    assert caught.value.where == str(folder / name) and "a named pipe" in caught.value.found


def test_a_pipe_in_a_patch_is_named(sound, tmp_path):
    ps.method("lora", epochs=1).edit(ps.load(sound), tiny.requests(1)).patch.save(tmp_path / "patch")
    for name in ("patch.safetensors", "manifest.json"):
        folder = shutil.copytree(tmp_path / "patch", tmp_path / name)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(PatchError, match=name):
            ps.load_patch(folder)


def test_a_folder_named_as_a_bundled_model_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world").mkdir()
    assert base_of("world") == "world"
    (tmp_path / "other").mkdir()
    assert base_of("other") == str(tmp_path / "other")
    # A folder of patches of that name in the working folder is no reason to load another model either.
    (tmp_path / "world" / "patches").mkdir()
    (tmp_path / "world" / "palimpsest.json").write_text("{")
    assert ps.load("world").name == "world"


@pytest.mark.parametrize("longest", ["a text", [5], None, True])
def test_a_tokenizer_s_longest_text_is_a_number(sound, tmp_path, longest):
    folder = shutil.copytree(sound, tmp_path / "model")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": longest}))
    if longest is None:
        assert ps.load(folder).tokenizer.model_max_length > 10**9
        return
    with pytest.raises(ModelError, match="tokenizer_config"):
        ps.load(folder)


@pytest.mark.parametrize(
    "words",
    [
        ("edit", "nowhere", "--prompt", "A is", "--target-new", "b", "--out", "OUT", "--state", "OUT/state"),
        ("assess", "nowhere", "--facts", "world-zsre", "--out", "OUT", "--wrong", "OUT"),
        ("report", "nowhere", "--out", "OUT", "--tables", "OUT/../OUT"),
    ],
)
def test_two_outputs_in_one_place_are_refused_before_anything_is_read(tmp_path, capsys, words):
    assert main([one.replace("OUT", f"{tmp_path}/out", 1).replace("OUT", "out") for one in words]) == 2
    assert "Two outputs have the same place" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_some_of_many_names():
    assert some_of([]) == "" and some_of(["a"]) == "a" and some_of("abc") == "a, b, c"
    assert some_of("abcdef", most=2, between="; ") == "a; b and 4 more"
