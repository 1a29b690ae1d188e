"""Units are done once, by whichever worker, whatever is killed; what fails is recorded and stops nothing else."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark.workplace import QUICK, build, plan, results
from palimpsest import ConfigError, DataError, OutputError, PalimpsestError
from palimpsest.benchmark import run
from palimpsest.benchmark.estimate import estimates, time_to_go
from palimpsest.benchmark.folder import ResultsFolder, unit_counts

SCRIPT = """
import sys
from pathlib import Path
from benchmark.workplace import plan
from palimpsest.benchmark import run
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run(plan(folder, seeds=[0, 1, 2]), folder / "out", resume=True, workers=2)
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return build(tmp_path_factory.mktemp("bench"))


def test_two_workers_do_what_one_does_and_failures_stop_nothing(workplace):
    rows = [
        {"name": "ft", "options": QUICK, "preset": "none"},
        {"name": "kn", "label": "impossible", "options": {"layers": [99]}, "preset": "none"},
        {"name": "memit", "label": "no text", "options": {"text": "none.txt"}, "preset": "none"},
    ]
    made, told = plan(workplace, methods=rows, num_edits=2), []
    first = run(made, workplace / "two", workers=2, on_unit=lambda unit, what, *_: told.append((unit.address, what)))
    assert first.counts == {"ok": 1, "failed": 2, "refused": 0, "begun": 0, "left": 0}
    assert {unit.labels()["method"] for unit, _ in first.failures} == {"impossible", "no text"}
    assert "99" in dict((unit.labels()["method"], error) for unit, error in first.failures)["impossible"]
    assert len(told) == 3
    again = run(made, workplace / "two", workers=1, resume=True, on_unit=lambda *_: told.append("again"))
    assert again == first
    assert len(told) == 3, "what is done, failures included, is not done again"
    one = plan(workplace, methods=rows[:1], num_edits=2)
    run(one, workplace / "one", workers=1)
    assert results(workplace / "one", one) == results(workplace / "two", one)
    # The second folder knows how long its one unit took; the plan with another seed is told from it.
    longer = ResultsFolder(workplace / "one", plan(workplace, methods=rows[:1], num_edits=2, seeds=[0, 1]))
    known, new = estimates(longer)
    assert known.seconds == new.seconds == time_to_go(longer)
    assert known.checkpoint_bytes == (workplace / "model" / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_a_killed_worker_costs_a_second_try_and_two_cost_the_unit(workplace):
    made, deaths = plan(workplace, methods=[{"name": "ft", "options": QUICK, "preset": "none"}]), []

    def kill(times):
        def on_stage(*_):
            if len(deaths) < times:
                deaths.append("killed")
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGKILL)

        return on_stage

    outcome = run(made, workplace / "killed", workers=1, on_stage=kill(2))
    assert outcome.counts["failed"] == 1
    assert "died 2 times" in outcome.failures[0][1]
    assert multiprocessing.active_children() == []
    outcome = run(made, workplace / "killed", workers=1, resume=True, retry_failed=True, on_stage=kill(3))
    assert outcome.counts["ok"] == 1
    assert len(deaths) == 3


def test_folders_that_cannot_be_used(workplace, tmp_path):
    made, out = plan(workplace), tmp_path / "out"
    folder = ResultsFolder(out, made)
    folder.prepare(resume=False)
    assert unit_counts(folder)["left"] == 2
    assert time_to_go(folder) is None
    with pytest.raises(OutputError, match="results in this folder already"):
        run(made, out)
    with pytest.raises(OutputError, match="another recipe"):
        run(plan(workplace, name="other"), out, resume=True)
    with folder.locked(), pytest.raises(OutputError, match="Another run is at work"):
        run(made, out, resume=True)
    record = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps({**record, "palimpsest": "0.0.1"}))
    with pytest.raises(OutputError, match="another version"):
        run(made, out, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    with pytest.raises(OutputError, match="something else"):
        run(made, tmp_path / "other", resume=True)
    nowhere = [{"name": "jsonl", "path": "none.jsonl", "label": "facts"}]
    with pytest.raises(DataError, match=r"none\.jsonl"):
        run(plan(workplace, datasets=nowhere), tmp_path / "none")
    with pytest.raises(PalimpsestError, match="split"):
        run(plan(workplace, datasets=[{"name": "world-zsre", "split": "tset"}]), tmp_path / "none")
    (workplace / "bad.jsonl").write_text('{"prompt": 3}\n{"promt": "x"}\n')
    with pytest.raises(DataError):
        run(plan(workplace, datasets=[{"name": "jsonl", "path": "bad.jsonl"}]), tmp_path / "none")
    with pytest.raises(ConfigError, match="worker is needed"):
        run(made, tmp_path / "none", workers=0)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(workplace):
    made, room = plan(workplace, methods=[{"name": "ft", "options": QUICK, "preset": "none"}]), resource.RLIMIT_FSIZE
    before = resource.getrlimit(room)
    # Workers inherit the limit; a unit's records are longer, the plan is not.
    resource.setrlimit(room, (4096, before[1]))
    try:
        with pytest.raises(OutputError) as caught:
            run(made, workplace / "full", workers=1)
    finally:
        resource.setrlimit(room, before)
    assert "units" in str(caught.value)
    assert multiprocessing.active_children() == []
    assert run(made, workplace / "full", workers=1, resume=True).counts["ok"] == 1


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_with_the_records_of_an_undisturbed_one(tmp_path):
    folder, moments = build(tmp_path), random.Random(0)
    made = plan(folder, seeds=[0, 1, 2])
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path]), "OMP_NUM_THREADS": "1"}
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(folder)]
    killed = 0
    for _ in range(10):
        process = subprocess.Popen(command, env=environment)
        try:
            process.wait(timeout=moments.uniform(0.5, 12))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.wait()
        time.sleep(moments.uniform(0, 1))
    assert killed
    assert subprocess.run(command, env=environment).returncode == 0
    run(made, folder / "undisturbed", workers=1)
    assert results(folder / "out", made) == results(folder / "undisturbed", made)
