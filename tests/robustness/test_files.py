"""One way to read and to write: whatever is wrong is one error with file and field, and what is there is whole."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from palimpsest.checkpoints.locating import locate
from palimpsest.datasets import load_edits
from palimpsest.errors import DataError, OutputError, PalimpsestError
from palimpsest.files import (
    FileKind,
    append,
    cache_folder,
    expanded,
    hold,
    new_file,
    new_folder,
    parse_json,
    parse_toml,
    require_absent,
    to_json,
    write_json,
)
from robustness.guard import without_rights

KIND = FileKind(DataError, "This is no record.", expected="a record", remedy="write it again")


class Record(BaseModel):
    name: str
    numbers: list[float] = []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"  \n", "nothing but white space"),
        (b"{", "Expecting"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 5_000, "inside each other"),
        (b'{"name": ' + b'{"a": ' * 200 + b"1" + b"}" * 200 + b"}", "inside each other"),
        (b'{"name": "a", "numbers": [' + b"9" * 5_000 + b"]}", "a whole number of 5000 digits"),
        (b'{"name": "a", "numbers": [1e999]}', "beyond all bounds"),
        (b'{"name": "a", "numbers": [NaN]}', "NaN, which is not a number of JSON"),
        (b'{"name": "a", "numbers": [-Infinity]}', "Infinity"),
        (b'{"name": "\\ud800"}', "half a character"),
        (b'{"name": "a", "name": "b"}", "numbers": []}', "twice"),
        (b"null", "Input should be"),
        (b"[]", "Input should be"),
        (b"{}", "field `name`: Field required"),
        (b'{"name": 5}', "field `name`"),
        (b'{"name": "a", "numbers": ["x"]}', "field `numbers.0`"),
    ],
)
def test_a_damaged_file_is_one_error_with_file_and_field(tmp_path, content, words):
    file = tmp_path / "record.json"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        KIND.record(file, Record)
    assert words in caught.value.found and caught.value.where == str(file)
    assert (caught.value.problem, caught.value.remedy) == ("This is no record.", "write it again")


def test_what_is_sound_is_read_as_json_reads_it(tmp_path):
    value = {"a": [1, -2.5, True, None, "é😀"], "b": {"c": {"d": [[]]}}, "e": "\\ud83d is no escape"}
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())
    assert KIND.json(tmp_path / "a.json") == value
    # Brackets in a text are not depth.
    assert parse_json(json.dumps(["[" * 500 + '"' + "{" * 500])) == ["[" * 500 + '"' + "{" * 500]
    assert parse_toml("a.b = 1\nc = [1, 2.5]") == {"a": {"b": 1}, "c": [1, 2.5]}


@pytest.mark.parametrize("text", ["a = " + "[" * 3_000, "a" + ".b" * 3_000 + " = 1", "a = 1" + "0" * 5_000])
def test_toml_has_bounds_too(text):
    with pytest.raises(ValueError, match=r"inside each other|digits"):
        parse_toml(text)


def test_full_stops_are_no_depth(tmp_path):
    """Hundreds of sentences or decimals on one line, as a compact JSON file has them."""
    held = {
        "text": "One sentence. " * 300,
        "numbers": [number / 8 for number in range(300)],
        "a.b": {"c" + ".c" * 300: 1},
    }
    file = tmp_path / "compact.json"
    file.write_text(json.dumps(held))
    assert KIND.json(file) == held
    file.write_text(f"text = {json.dumps(held['text'])}\nnumbers = {json.dumps(held['numbers'])}\n")
    assert KIND.toml(file) == {"text": held["text"], "numbers": held["numbers"]}
    records = [
        {"prompt": "Mr. A. B. Clay lives in", "subject": "Mr. A. B. Clay", "target_new": f"St. Ives No. {number}"}
        for number in range(100)
    ]
    file.write_text(json.dumps(records))
    assert [one.target_new for one in load_edits(file).requests] == [one["target_new"] for one in records]


def test_a_place_that_is_no_file_is_said(tmp_path):
    for place, words in (
        (tmp_path, "directory"),
        (tmp_path / "none", "No such file"),
        (tmp_path / "x" / "y", "No such"),
    ):
        with pytest.raises(DataError) as caught:
            KIND.json(place)
        assert words in caught.value.found
    with pytest.raises(DataError, match="No file can have this name"):
        expanded("a" * 300)
    with pytest.raises(OutputError, match="No file can have this name"):
        require_absent(tmp_path / ("é" * 200))
    assert str(expanded("~nobody-of-that-name/x")) == "~nobody-of-that-name/x"


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.tensor([1.0, float("nan")]), "NaN or infinity"),
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
        (torch.zeros(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.zeros(2, dtype=torch.int64), "int64"),
        (torch.zeros(2, dtype=torch.bool), "bool"),
    ],
)
def test_tensors_are_finite_real_numbers(tmp_path, tensor, words):
    save_file({"a": tensor}, tmp_path / "t.safetensors")
    with pytest.raises(DataError, match="tensor a") as caught:
        KIND.tensors(tmp_path / "t.safetensors")
    assert words in caught.value.found


def test_a_safetensors_file_that_is_none(tmp_path):
    for name, content in (("empty", b""), ("cut", b"\x10"), ("odd", b"\xff" * 64), ("text", b"hello, world, hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError):
            KIND.tensors(tmp_path / name)
    with pytest.raises(DataError, match="folder"):
        KIND.tensors(tmp_path)


def test_json_that_is_written_can_be_read(tmp_path):
    value = {"a": float("nan"), "b": [float("inf"), 1], "c": "bad \udcff name", "d": {"e": (1, 2)}}
    write_json(tmp_path / "a.json", value, indent=1)
    assert KIND.json(tmp_path / "a.json") == {"a": None, "b": [None, 1], "c": "bad ? name", "d": {"e": [1, 2]}}
    assert to_json({"x": 0.1}) == '{"x": 0.1}'


def test_lines_are_numbered_and_the_damaged_ones_are_told(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n\n{"b": \n"\xe2\x80\xa8"\n{"c": 3')
    lines = list(KIND.lines(file))
    assert [(line.number, line.value, line.is_last) for line in lines] == [
        (1, {"a": 1}, False), (3, None, False), (4, "\u2028", False), (5, None, True),
    ]  # fmt: skip
    assert lines[0].end == 9 and "does not end" in lines[-1].damage and lines[1].damage


def test_the_first_error_is_the_one_that_is_told(tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(OutputError, match="Writing failed") as caught, new_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.found == "No space left on device"


def test_a_long_name_can_be_written(tmp_path):
    name = "n" * 250
    with new_file(tmp_path / name) as draft:
        draft.write_text("x")
    with new_folder(tmp_path / ("f" * 250)) as draft:
        (draft / "a").write_text("x")
    assert {path.name for path in tmp_path.iterdir()} == {name, "f" * 250}


def test_what_is_written_is_forced_to_the_disk(tmp_path, monkeypatch):
    forced = []
    real = os.fsync

    def record(descriptor):
        forced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr("os.fsync", record)
    with new_folder(tmp_path / "folder") as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "file").write_text("x")
    assert forced[:2] in (["inner", "file"], ["file", "inner"]) and forced[-1] == tmp_path.name
    forced.clear()
    write_json(tmp_path / "b.json", 1)
    assert len(forced) == 2 and forced[-1] == tmp_path.name
    append(tmp_path / "c.jsonl", "x\n")
    assert forced[-1] == "c.jsonl"


HOLD = """
import sys, time
from pathlib import Path
from palimpsest.files import new_file, hold
with {block}:
    print("ready", flush=True)
    time.sleep(60)
"""


def held(block):
    process = subprocess.Popen([sys.executable, "-c", HOLD.format(block=block)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_a_killed_process_half_wrote_is_removed_by_the_next(tmp_path):
    process = held(f"new_file(Path({str(tmp_path / 'state')!r})) as draft, draft.open('w')")
    process.kill()
    process.communicate()
    assert len(list(tmp_path.iterdir())) == 1
    write_json(tmp_path / "state", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_one_at_a_time_in_a_folder_and_a_kill_lets_go(tmp_path):
    process = held(f"hold(Path({str(tmp_path / '.lock')!r}))")
    with pytest.raises(OutputError, match="Another run is at work"), hold(tmp_path / ".lock"):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with hold(tmp_path / ".lock"):
        pass


def test_without_a_home_there_is_no_cache_folder(monkeypatch):
    for name in ("PALIMPSEST_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _number: (_ for _ in ()).throw(KeyError("no such user")))
    assert cache_folder() is None


@pytest.mark.skipif(os.name != "posix", reason="rights are those of POSIX")
def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path):
    files = {
        "config.json": "{}", "model.safetensors": None, "edits.jsonl": '{"prompt": "A is", "target_new": "B"}\n',
    }  # fmt: skip
    model = tmp_path / "model"
    model.mkdir()
    for name, content in files.items():
        file = (model if name != "edits.jsonl" else tmp_path) / name
        save_file({"weight": torch.ones(2)}, file) if content is None else file.write_text(content)
        # safetensors writes for its owner only.
        file.chmod(0o644)
    asked = {
        model / "config.json": lambda: locate(str(model)),
        model / "model.safetensors": lambda: locate(str(model)),
        tmp_path / "edits.jsonl": lambda: load_edits(tmp_path / "edits.jsonl"),
    }
    for file, read in asked.items():
        read()
        mode = file.stat().st_mode
        file.chmod(0)
        with without_rights(tmp_path), pytest.raises(PalimpsestError) as caught:
            read()
        file.chmod(mode)
        error = caught.value
        assert (error.found, error.where) == ("Permission denied", str(file)) and "chmod" in error.remedy
    file = model / "model.safetensors"
    file.chmod(0)
    with without_rights(tmp_path), pytest.raises(DataError) as caught:
        KIND.tensors(file)
    assert caught.value.found == "Permission denied" and "chmod" in caught.value.remedy
