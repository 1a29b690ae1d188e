"""What a program that is ended from outside leaves behind; what files are known by."""

import os
import signal
import subprocess
import sys

import pytest

from palimpsest import provenance
from palimpsest.files import new_folder
from palimpsest.provenance import content_digest

SCRIPT = """
import signal, sys, time
from pathlib import Path
from palimpsest.cli import main
from palimpsest.cli.app import app
from palimpsest.files import new_folder

# A shell that shields what it starts from hanging up would shield this too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

@app.command()
def hold(out: Path):
    with new_folder(out) as draft:
        (draft / "half").write_text("half")
        print("ready", flush=True)
        time.sleep(60)

sys.exit(main(["hold", sys.argv[1]]))
"""


def ended_by(number, out):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, number)
    return process.communicate(timeout=30)[1], process.returncode


@pytest.mark.parametrize(("number", "word"), [(signal.SIGTERM, "Terminated"), (signal.SIGHUP, "Hung up")])
def test_a_terminated_command_leaves_nothing(number, word, tmp_path):
    errors, code = ended_by(number, tmp_path / "patch")
    assert code == 128 + number and word in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_command_left_is_removed_by_the_next(tmp_path):
    _, code = ended_by(signal.SIGKILL, tmp_path / "patch")
    (left,) = tmp_path.iterdir()
    assert code == -signal.SIGKILL and (left / "half").exists()
    with new_folder(tmp_path / "other"):
        assert left.exists()
    with new_folder(tmp_path / "patch") as mine:
        assert not left.exists()
        with new_folder(tmp_path / "patch" / "inner"), new_folder(tmp_path / "elsewhere"):
            assert mine.exists()
        (tmp_path / "patch" / "inner").rmdir()
        (tmp_path / "patch").rmdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "other", "patch"]


def test_the_draft_of_a_living_process_is_left_alone(tmp_path):
    with new_folder(tmp_path / "patch") as first:
        with new_folder(tmp_path / "patch") as second:
            assert first.exists() and second.exists() and first != second
        (tmp_path / "patch").rmdir()
        assert first.exists()


def test_a_large_file_is_known_by_samples_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_WHOLE", 1000)
    monkeypatch.setattr(provenance, "_SAMPLE", 16)

    def known(content):
        file = tmp_path / str(len(list(tmp_path.iterdir())))
        file.write_bytes(content)
        return content_digest(file)

    content = bytes(range(250)) * 20
    assert known(content) == known(content)
    others = [content[:-1] + b"x", b"x" + content[1:], content + b"x", bytes(reversed(content))]
    assert len({known(content), *(known(one) for one in others)}) == 5


def test_a_file_that_has_changed_is_read_again(tmp_path):
    file = tmp_path / "file"
    file.write_text("one")
    first = content_digest(file)
    file.write_text("two")
    os.utime(file, ns=(0, 1))
    assert content_digest(file) != first
    assert content_digest(tmp_path) != first
