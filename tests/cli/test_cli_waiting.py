"""Progress where nobody looks at a terminal: a line now and then on stderr, and nothing else."""

import io
import os
import subprocess
import sys
import time

import pytest

from palimpsest.cli import terminal, waiting
from palimpsest.cli.waiting import Lines, duration


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_line_says_how_far_how_fast_and_how_long():
    clock = Clock()
    lines = Lines("editing with rome", clock)
    assert lines.line() == "editing with rome: at work, 0 s so far"
    lines.whole("statistics", 0, 1000)
    clock.now = 10
    lines.whole("statistics", 200, 1000)
    assert lines.line() == "editing with rome: statistics 200 of 1,000, 20.0 per second, about 40 s left, 10 s so far"
    lines.whole("edits", 1, 4)
    clock.now = 20
    assert lines.line() == "editing with rome: edits 1 of 4, 20 s so far"
    clock.now = 70
    lines.whole("edits", 2, 4)
    assert lines.line() == "editing with rome: edits 2 of 4, 60.0 s each, about 2 min left, 70 s so far"
    lines.whole("edits", 4, 4)
    assert lines.line() == "editing with rome: edits 4 of 4, 20.0 s each, 70 s so far"


def test_a_stage_that_begins_again_is_timed_anew():
    clock = Clock()
    lines = Lines("x", clock)
    lines.whole("edits", 0, 10)
    clock.now = 100
    lines.whole("edits", 10, 10)
    lines.whole("edits", 0, 10)
    clock.now = 101
    lines.whole("edits", 2, 10)
    assert "2.0 per second, about 4 s left" in lines.line()


def test_parts_stand_in_brackets_until_they_end():
    clock = Clock()
    lines = Lines("table", clock)
    lines.part("ft on world", "edits", 1, 4)
    lines.whole("units", 0, 2)
    assert lines.line() == "table: units 0 of 2, 0 s so far (ft on world: edits 1 of 4)"
    lines.end("ft on world")
    lines.end("never told of")
    assert lines.line() == "table: units 0 of 2, 0 s so far"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_redirected_output_has_lines_without_control_characters(monkeypatch, capsys):
    monkeypatch.setattr(waiting, "FIRST_LINE", 0.05)
    monkeypatch.setattr(waiting, "EVERY", 0.05)
    with terminal.progress_bar("verifying") as progress:
        progress("edits", 0, 3)
        time.sleep(0.02)
        progress("edits", 1, 3)
        time.sleep(0.2)
    with terminal.status("loading world"):
        time.sleep(0.12)
    found = capsys.readouterr()
    lines = found.err.splitlines()
    assert found.out == ""
    assert len([line for line in lines if line.startswith("verifying: edits 1 of 3, ")]) >= 2
    assert any(line.startswith("loading world: 0 s so far") for line in lines)
    assert all(line.isprintable() for line in lines) and found.err.endswith("\n")


class Broken(io.StringIO):
    def write(self, _text):
        raise BrokenPipeError


def test_short_work_says_nothing_and_a_broken_pipe_stops_nothing(monkeypatch, capsys):
    with terminal.progress_bar("x") as progress, terminal.status("y"):
        progress("edits", 1, 1)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(waiting, "FIRST_LINE", 0.01)
    monkeypatch.setattr(sys, "stderr", Broken())
    with terminal.status("y"):
        time.sleep(0.05)


def test_a_command_keeps_stdout_for_its_result(run, workplace, monkeypatch):
    monkeypatch.setattr(waiting, "FIRST_LINE", 0.0001)
    monkeypatch.setattr(waiting, "EVERY", 0.0001)
    result = run("verify", workplace / "model", workplace / "patch", "--json")
    assert result.code == 0 and result.json()["passed"]
    assert "verifying: " in result.err and "\r" not in result.err and "\x1b" not in result.err


def test_threads_that_wait_do_not_stay_awake_unless_the_user_says_how_they_wait():
    asked = "import sys; sys.argv = ['palimpsest', '--version']; from palimpsest.cli import main; main();"
    asked += "import os; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    plain = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for given, wanted in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")):
        found = subprocess.run([sys.executable, "-c", asked], env=plain | given, capture_output=True, text=True)
        assert found.stdout.split()[-2:] == ["False", wanted], found
