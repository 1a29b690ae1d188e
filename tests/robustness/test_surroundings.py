"""The command line where stdout is closed, full or not UTF-8, signals come twice, and places are not there."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import palimpsest
from palimpsest.cli import main
from palimpsest.cli.surroundings import Output, heeding_signals, nothing_collected
from robustness.workshop import RECIPE

CODE = "import sys; from palimpsest.cli import main; sys.exit(main())"


def cli(*arguments, before="", after="", **options):
    """The exit code and stderr of the command line, started by a shell that does something to its streams."""
    command = f'{before} "$@" {after}'
    given = ["bash", "-c", command, "bash", sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(given, capture_output=True, timeout=120, check=False, **options)
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize("after", ["> /dev/full", ">&-"])
def test_a_result_that_cannot_be_printed_is_an_error_without_a_traceback(after):
    code, _, errors = cli("list", "texts", "--json", after=after)
    assert code == 2 and errors.startswith("Error: The result could not be printed") and errors.count("\n") == 1


def test_a_reader_that_has_enough_is_no_error():
    code, out, errors = cli("list", "presets", before="set -o pipefail; (", after=") | head -1")
    assert (code, errors) == (0, "") and out.count(b"\n") == 1


def test_ascii_output_is_escaped_and_json_stays_json():
    code, out, errors = cli("list", "models", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (code, errors) == (0, "") and out.isascii() and b"bundled" in out
    code, out, _ = cli("list", "methods", "--json", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert code == 0 and out.isascii() and json.loads(out)


def test_a_patch_stays_and_the_code_says_so_when_only_printing_failed(workplace, tmp_path, monkeypatch):
    class Full:
        encoding = "utf-8"

        def write(self, _text):
            raise OSError(28, "No space left on device")

        def flush(self):
            pass

        def isatty(self):
            return False

    out = tmp_path / "patch"
    arguments = ["edit", str(workplace / "model"), "--method", "ft", "-o", "epochs=1", "--out", str(out)]
    arguments += ["--prompt", "The capital of France is", "--target-new", "Lyon"]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Full())
        # No edit changed the answer after one epoch, which is a 1; a result that cannot be printed would be a 2.
        assert main(arguments) in (0, 1)
    assert (out / "manifest.json").is_file()
    assert main(["verify", str(workplace / "model"), str(out), "--json"]) in (0, 1)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Full())
        assert main(["list", "methods"]) == 2


def test_a_folder_that_is_gone_is_named(tmp_path, monkeypatch):
    place = tmp_path / "gone"
    place.mkdir()
    before = f"cd {place}; rmdir {place}; export PYTHONPATH={Path(palimpsest.__file__).parents[1]};"
    code, _, errors = cli(
        "edit", "world", "--method", "ft", "--prompt", "A", "--target-new", "B", "--out", "x", before=before
    )
    assert code == 2 and "Traceback" not in errors and "current folder" in errors


def test_names_that_no_file_can_have(run, workplace, tmp_path):
    long = "n" * 300
    model = workplace / "model"
    for arguments in (
        ("ask", model, "Hello", "--patch", long),
        ("ask", long, "Hello"),
        ("edit", model, "--method", "ft", "--edits", long, "--out", tmp_path / "x"),
        ("edit", model, "--method", "ft", "--edits", workplace / "facts.jsonl", "--out", tmp_path / long),
        (
            "edit",
            model,
            "--method",
            "alphaedit",
            "--edits",
            "f.csv",
            "--out",
            tmp_path / "x",
            "--state",
            tmp_path / long,
        ),
        ("eval", model, "--method", "ft", "--dataset", long),
        ("eval", model, "--method", "ft", "--dataset", "zsre", "--data", long),
        ("report", long),
        ("bench", long),
    ):
        result = run(*arguments)
        assert result.code == 2 and result.err.count("Error: ") == 1 and "Traceback" not in result.err, arguments
    assert list(tmp_path.iterdir()) == []


def test_texts_that_are_not_whole_are_refused(run, workplace, tmp_path):
    model, text = workplace / "model", "Anna \udcff"
    (tmp_path / "e.jsonl").write_text('{"prompt": "Anna is", "target_new": "\\ud800", "fact": "x"}\n')
    for arguments in (
        ("ask", model, text),
        ("edit", model, "--method", "ft", "--prompt", text, "--target-new", "B", "--out", tmp_path / "x"),
        ("edit", model, "--method", "ft", "--edits", tmp_path / "e.jsonl", "--out", tmp_path / "x"),
    ):
        result = run(*arguments)
        assert (result.code, result.out) == (2, "") and "half a character" in result.err, arguments


SLOW = """
import sys, time
from pathlib import Path
from palimpsest.cli import main
from palimpsest.cli.app import app
from palimpsest.files import new_folder

@app.command()
def slow(out: Path):
    with new_folder(out) as draft:
        try:
            (draft / "half").write_text("half")
            print("ready", flush=True)
            time.sleep(60)
        finally:
            # Removing takes a while.
            time.sleep(0.5)

sys.argv[1:] = ["slow", sys.argv[1]]
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGTERM, signal.SIGINT), 143),
        ((signal.SIGINT, signal.SIGTERM), 130),
    ],
)
def test_two_signals_end_a_command_once(tmp_path, numbers, code):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.01)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == code and "Traceback" not in errors and errors.count("removed") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def interrupts_are_heard():
    """A process that a shell has put into the background ignores them, and what is set stays."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def test_of_two_signals_the_first_ends_it_also_where_the_second_comes_before_its_handler_has_begun(
    interrupts_are_heard,
):
    from palimpsest.cli.surroundings import heeding_signals

    came = []
    with heeding_signals(is_program=False):
        leave = signal.getsignal(signal.SIGINT)

        def terminate(frame, event, _argument):
            if event == "call" and frame.f_code is leave.__code__ and not came:
                came.append(event)
                leave(signal.SIGTERM, frame)  # as the interpreter does, at a handler's first instruction

        sys.setprofile(terminate)
        try:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        finally:
            sys.setprofile(None)
    assert came


def test_handlers_are_what_they_were_after_the_block():
    # A shell starts what it puts into the background with interrupts ignored.
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), heeding_signals(is_program=False):
            signal.raise_signal(signal.SIGINT)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    finally:
        signal.signal(signal.SIGINT, found)


def test_an_output_keeps_what_it_lost():
    class Ascii:
        encoding = "ascii"
        text = ""

        def write(self, text):
            text.encode("ascii")
            self.text += text

    stream = Ascii()
    output = Output(stream)
    output.write("caf\u00e9")
    assert stream.text == "caf\\xe9" and output.failure is None and not output.is_whole
    with pytest.raises(TypeError):
        output.write(b"")


WARNED = """
import sys
from palimpsest.cli import main

work, place = sys.argv[1:]
model, facts, prompt = f"{work}/model", f"{work}/facts.jsonl", "The capital of France is"
fast = ["--method", "ft", "--preset", "none", "-o", "epochs=1"]
for words in (
    ["list", "methods"], ["doctor", model, "--json"], ["ask", model, prompt, "--max-new-tokens", "2"],
    ["edit", model, *fast, "--edits", facts, "--out", f"{place}/patch"],
    ["edit", "world", *fast, "--prompt", prompt, "--target-new", "Lyon", "--out", f"{place}/world-patch"],
    ["verify", model, f"{place}/patch"], ["apply", model, f"{place}/patch", "--out", f"{place}/model"],
    ["apply", model, f"{place}/patch", "--as", "patched", "--out", f"{place}/patched"],
    ["inspect", f"{place}/model", "--base", model, "--vocabulary", "20", "--out", f"{place}/back"],
    ["push", f"{place}/patch", "me/it", "--dry-run"],
    ["eval", model, *fast, "--dataset", facts, "--out", f"{place}/run"],
    ["bench", f"{place}/tiny.toml", "--root", work, "--out", f"{place}/results", "--workers", "1"],
    ["report", f"{place}/run", f"{place}/results", "--out", f"{place}/report.html", "--tables", f"{place}/tables"],
    ["assess", model, "--facts", facts], ["trace", model, "--prompt", prompt, "--subject", "France", "--samples", "1"],
    ["stats", model, "--layers", "1", "--text", "world", "--max-tokens", "1024", "--cache", f"{place}/cache"],
    ["world", "export", "--out", f"{place}/data", "--people", "50"],
):
    assert main(words) in (0, 1), words
"""


@pytest.mark.slow
def test_no_command_warns(workplace, tmp_path):
    """Every warning is an error here, from the first import on; those of the tests begin later."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    given = [sys.executable, "-W", "error", "-c", WARNED, str(workplace), str(tmp_path)]
    done = subprocess.run(given, capture_output=True, timeout=600, check=False, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # A thread or a worker that a warning ends does not end the command.
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]


@pytest.mark.parametrize("is_on", [True, False])
def test_garbage_is_left_while_libraries_are_imported_and_then_as_before(is_on):
    toggled, was_on, seen = {True: gc.enable, False: gc.disable}, gc.isenabled(), []

    @nothing_collected()
    def broken():
        seen.append(gc.isenabled())
        raise ValueError("broken")

    try:
        toggled[is_on]()
        with pytest.raises(ValueError, match="broken"):
            broken()
        assert seen == [False] and gc.isenabled() is is_on
    finally:
        toggled[was_on]()
