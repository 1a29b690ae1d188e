import os
import subprocess
import sys

import pytest

from palimpsest.cli.app import app

COMMANDS = [(command.name,) for command in app.registered_commands if command.name] + [
    ("world",),
    ("world", "train"),
    ("world", "audit"),
    ("world", "export"),
    ("memory",),
    ("memory", "list"),
    ("memory", "delete"),
]

HEAVY = ("torch", "transformers", "matplotlib", "polars", "numpy", "peft")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_has_examples(run, command):
    result = run(*command, "--help")
    assert result.code == 0
    assert "Examples" in result.out
    assert f"palimpsest {command[0]}" in result.out


def test_all_commands_of_the_design_are_there():
    names = {command[0] for command in COMMANDS}
    assert names >= {"edit", "ask", "apply", "verify", "eval", "list", "doctor", "world", "demo", "report"}


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom palimpsest.cli import main\ncode = main(['--help'])\nmain(['edit', '--help'])\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ed"], ["edit"]),
        (["edit", "world", "--method", "rom"], ["rome"]),
        (["edit", "world", "-m", "f-learning-lora"], ["f-learning-lora", "f-learning-lora-ft"]),
        (["ask", "wor"], ["world", "world-t5"]),
        (["eval", "world", "--dataset", "world-z"], ["world-zsre"]),
        (["eval", "world", "--protocol", "s"], ["sequential", "single"]),
        (["list", "pre"], ["presets"]),
        (["edit", "world", "--target-o"], ["--target-old"]),
        (["edit", "./my-"], []),
    ],
    ids=" ".join,
)
def test_a_shell_completes_commands_options_and_names(run, monkeypatch, words, offered):
    monkeypatch.setenv("_PALIMPSEST_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(["palimpsest", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    result = run()
    assert result.code == 0
    assert sorted(result.out.split()) == offered


def test_completion_can_be_installed_and_imports_nothing_heavy(tmp_path):
    script = (
        "import sys\nfrom palimpsest.cli import main\ncode = main(sys.argv[1:])\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\nsys.exit(code)"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, "--install-completion", "bash"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "bash completion installed" in done.stdout
    [written] = tmp_path.glob(".bash_completions/palimpsest*")
    assert "_PALIMPSEST_COMPLETE=complete_bash" in written.read_text()
    asked = {"COMP_WORDS": "palimpsest edit x -m rom", "COMP_CWORD": "4"}
    environment |= {"_PALIMPSEST_COMPLETE": "complete_bash", **asked}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["rome"]


def test_version(run):
    result = run("--version")
    assert result.code == 0
    assert result.out.strip()[0].isdigit()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("edti",), "edit"),
        (("edit", "--metod", "ft"), "--method"),
        (("list", "metods"), "methods"),
        (("eval", "x", "--dataset", "world-zsr", "--method", "ft"), "world-zsre"),
        (("eval", "x", "--dataset", "d", "--method", "ft", "--protocol", "sequental"), "sequential"),
    ],
)
def test_a_misspelt_word_exits_2_with_a_near_match(run, arguments, hint):
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert hint in result.err


def test_the_error_is_a_block_and_debug_adds_the_traceback(run):
    plain = run("list", "nothing")
    assert plain.err.startswith("Error: There is no topic named 'nothing'.\n  expected: ")
    assert "Traceback" not in plain.err
    for arguments in (("--debug", "list", "nothing"), ("list", "nothing", "--debug")):
        result = run(*arguments)
        assert result.code == 2
        assert "Traceback" in result.err
        assert result.err.count("There is no topic") == 1


def test_an_early_interrupt_is_one_line(run, monkeypatch):
    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("palimpsest.cli.app.main", interrupted)
    result = run("list", "methods")
    assert (result.code, result.out, result.err.count("\n")) == (130, "", 1)


def test_an_interrupt_exits_130(run, monkeypatch):
    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("palimpsest.cli.list._methods", interrupted)
    assert run("list", "methods").code == 130


def test_a_mistake_of_ours_shows_its_traceback(run, monkeypatch):
    def broken():
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("palimpsest.cli.list._methods", broken)
    result = run("list", "methods")
    assert (result.code, result.out) == (2, "")
    assert "Traceback" in result.err
    assert "ZeroDivisionError: oh" in result.err
