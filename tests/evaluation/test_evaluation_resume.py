"""A run that is killed anywhere goes on where it stopped and ends with the scores of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from evaluation.head_editor import Count, HeadEditor, facts
from palimpsest import Batch, OutputError, RunRecord, Sequential, Single, evaluate
from palimpsest.evaluation import load_run

OPTIONS: dict[str, Any] = {"max_new_tokens": 5}
PROTOCOLS = {"single": Single(), "batch": Batch(2), "sequential": Sequential(checkpoints=(2,))}

SCRIPT = """
import sys
from pathlib import Path
import tiny
from evaluation.head_editor import HeadEditor, facts
from palimpsest import evaluate
from evaluation.test_evaluation_resume import OPTIONS, PROTOCOLS
out, protocol, kill_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
editor = HeadEditor(log=out.with_suffix(".log"), kill_at=kill_at or None)
evaluate(tiny.tiny_model("gptj"), editor, facts(14), protocol=PROTOCOLS[protocol], out=out, resume=True, **OPTIONS)
"""


def comparable(record: RunRecord) -> Any:
    """Everything that may not depend on interruptions: all but times and memory."""
    timed = {"seconds", "seconds_per_edit", "peak_memory_bytes", "specification"}
    return record.model_dump(mode="json", exclude=timed)


@pytest.mark.parametrize("protocol", [pytest.param("single", marks=pytest.mark.slow), "sequential"])
def test_a_killed_process_is_resumed(tmp_path: Path, protocol: str) -> None:
    out = tmp_path / "run"
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(out), protocol, "13"]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    partial = load_run(out)
    assert partial.status == "cancelled"
    assert partial.probes

    model = tiny.tiny_model("gptj")
    editor = HeadEditor()
    resumed = evaluate(model, editor, facts(14), protocol=PROTOCOLS[protocol], out=out, resume=True, **OPTIONS)
    # Single: the edit that was under way. Sequential: saved at 2 and at 12, the thirteenth was under way.
    assert editor.calls == [("e12",), ("e13",)]
    undisturbed = evaluate(model, HeadEditor(), facts(14), protocol=PROTOCOLS[protocol], **OPTIONS)
    assert comparable(resumed) == comparable(undisturbed)
    assert comparable(load_run(out)) == comparable(undisturbed)
    again = HeadEditor()
    repeated = evaluate(model, again, facts(14), protocol=PROTOCOLS[protocol], out=out, resume=True, **OPTIONS)
    assert again.calls == []
    assert comparable(repeated) == comparable(undisturbed)


@pytest.mark.parametrize("protocol", ["single", "batch", "sequential"])
@pytest.mark.parametrize("carries_state", [False, True])
def test_records_cut_at_any_byte_lead_to_the_same_scores(tmp_path: Path, protocol: str, carries_state: bool) -> None:
    model, data = tiny.tiny_model("gptj"), facts(4)
    whole = tmp_path / "whole"
    make = lambda: HeadEditor(carries_state=carries_state)  # noqa: E731
    expected = evaluate(model, make(), data, protocol=PROTOCOLS[protocol], out=whole, **OPTIONS)
    content = (whole / "records.jsonl").read_bytes()
    size = len(content)
    for number, cut in enumerate((0, 5, size // 4, size // 2, 3 * size // 4, size - 2)):
        out = tmp_path / f"cut-{number}"
        out.mkdir()
        for name in ("run.json", "base.json"):
            (out / name).write_bytes((whole / name).read_bytes())
        (out / "records.jsonl").write_bytes(content[:cut])
        # Patches that the cut lines refer to were on the disk before these lines were.
        for line in content[:cut].split(b"\n"):
            if b'"patch":"' in line.replace(b" ", b"") and line.endswith(b"}"):
                remake_patch(model, data, json.loads(line), out)
        editor = make()
        resumed = evaluate(model, editor, data, protocol=PROTOCOLS[protocol], out=out, resume=True, **OPTIONS)
        assert comparable(resumed) == comparable(expected)
        units = [
            json.loads(line)["unit"] for line in (out / "records.jsonl").read_text().splitlines() if '"done"' in line
        ]
        assert len(units) == len(set(units))


def test_damaged_base_answers_are_asked_for_again_and_said_once(tmp_path: Path) -> None:
    model, data, out = tiny.tiny_model("gptj"), facts(4), tmp_path / "run"
    expected = evaluate(model, HeadEditor(), data, protocol=Single(), out=out, **OPTIONS)
    whole = (out / "base.json").read_text()
    (out / "base.json").write_text(whole[: len(whole) // 2])
    (out / "records.jsonl").unlink()
    resumed = evaluate(model, HeadEditor(), data, protocol=Single(), out=out, resume=True, **OPTIONS)
    [note] = [note for note in resumed.notes if "put aside" in note]
    assert str(out / "base.json") in note and (out / "base.json.damaged").exists()
    assert (out / "base.json").read_text() == whole and resumed.scores == expected.scores
    again = evaluate(model, HeadEditor(), data, protocol=Single(), out=out, resume=True, **OPTIONS)
    assert again.notes == expected.notes


def test_a_state_that_can_be_saved_is_given_back_to_a_resumed_run(tmp_path: Path) -> None:
    model, data, out = tiny.tiny_model("gptj"), facts(14), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, HeadEditor(saves_state=True, interrupt_at=13), data, protocol=Sequential(), out=out, **OPTIONS)
    editor = HeadEditor(saves_state=True)
    resumed = evaluate(model, editor, data, protocol=Sequential(), out=out, resume=True, **OPTIONS)
    assert editor.calls == [(f"e{number}",) for number in range(10, 14)]
    assert editor.states == [Count(calls) for calls in range(10, 14)]
    undisturbed = evaluate(model, HeadEditor(saves_state=True), data, protocol=Sequential(), **OPTIONS)
    assert comparable(resumed) == comparable(undisturbed)


def remake_patch(model: Any, data: Any, unit: dict[str, Any], out: Path) -> None:
    """Writes the running patch that an undisturbed run had at that point and has replaced since."""
    from palimpsest.evaluation.running import RunningPatch

    with RunningPatch(model, "head") as running:
        for request in data.requests[: unit["num_edits"]]:
            running.add(HeadEditor().edit(model, [request]).patch)
        patch = running.patch()
        assert patch is not None
        if not (out / unit["patch"]).exists():
            patch.save(out / unit["patch"])


def test_what_is_finished_is_on_disk_after_an_interrupt(tmp_path: Path) -> None:
    model, out = tiny.tiny_model("gptj"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, HeadEditor(interrupt_at=3), facts(4), out=out, **OPTIONS)
    record = load_run(out)
    assert (record.status, record.error) == ("cancelled", "interrupted")
    assert {result.edit_id for result in record.probes} == {"e0", "e1"}
    assert model.weights.labels == []
    editor = HeadEditor()
    assert evaluate(model, editor, facts(4), out=out, resume=True, **OPTIONS).status == "ok"
    assert editor.calls == [("e2",), ("e3",)]
    assert load_run(out).status == "ok"


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    model, out, editor = tiny.tiny_model("gptj"), tmp_path / "run", HeadEditor()
    evaluate(model, HeadEditor(), facts(2), out=out, **OPTIONS)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(OutputError, match="exists already"):
        evaluate(model, editor, facts(2), out=out, **OPTIONS)
    with pytest.raises(OutputError, match="another run") as caught:
        evaluate(model, HeadEditor(steps=41), facts(2), out=out, resume=True, **OPTIONS)
    assert caught.value.found == "config.steps is 41, was 40"
    with pytest.raises(OutputError, match="another run") as caught:
        evaluate(model, editor, facts(3), protocol=Batch(), out=out, resume=True, **OPTIONS)
    for name in ("dataset_fingerprint", "num_edits is 3, was 2", "protocol is 'batch', was 'single'"):
        assert name in (caught.value.found or "")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for place in (tmp_path / "other", tmp_path / "other" / "notes.txt"):
        with pytest.raises(OutputError, match="not the folder of a run"):
            evaluate(model, editor, facts(2), out=place, resume=True, **OPTIONS)
    assert editor.calls == []
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_the_folder_says_everything(tmp_path: Path) -> None:
    model, out = tiny.tiny_model("gptj"), tmp_path / "run"
    record = evaluate(model, HeadEditor(), facts(3), protocol=Sequential(checkpoints=(1,)), out=out, **OPTIONS)
    run = json.loads((out / "run.json").read_text())
    assert run["status"] == "ok"
    assert run["result"] == record.to_json()
    specification = run["specification"]
    assert specification["config"] == {"steps": 40, "rate": 0.5}
    assert specification["protocol_options"] == {"checkpoints": [1], "batch_size": 1}
    assert {"versions", "hardware", "model_fingerprint", "seed", "created"} <= set(specification)
    assert [path.name for path in out.glob("patch-*")] == ["patch-3"]
    loaded = load_run(out)
    assert comparable(loaded) == comparable(record)
    assert loaded.seconds == record.seconds
    with pytest.raises(OutputError, match="not that of a run"):
        load_run(tmp_path)


def test_a_disk_that_refuses_is_one_clear_error_and_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out, writes = tiny.tiny_model("gptj"), tmp_path / "run", []
    original = os.fsync

    def refuse(descriptor: int) -> None:
        records = out / "records.jsonl"
        if records.exists() and os.fstat(descriptor).st_ino == records.stat().st_ino:
            writes.append(descriptor)
            if len(writes) == 3:
                # The system ran out of space after some of the bytes.
                os.truncate(records, records.stat().st_size - 40)
                raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OutputError, match="finished before is kept") as caught:
        evaluate(model, HeadEditor(), facts(4), out=out, **OPTIONS)
    assert caught.value.found == "No space left on device"
    assert load_run(out).status == "failed"
    editor = HeadEditor()
    resumed = evaluate(model, editor, facts(4), out=out, resume=True, **OPTIONS)
    assert editor.calls == [("e1",), ("e2",), ("e3",)]
    assert comparable(resumed) == comparable(evaluate(model, HeadEditor(), facts(4), **OPTIONS))


def test_reading_a_run_does_not_change_it(tmp_path: Path) -> None:
    model, out = tiny.tiny_model("gptj"), tmp_path / "run"
    evaluate(model, HeadEditor(), facts(2), out=out, **OPTIONS)
    with (out / "records.jsonl").open("a") as stream:
        stream.write('{"unit": "edit-9", "edit')
    before = (out / "records.jsonl").read_bytes()
    assert len(load_run(out).probes) == 10
    assert (out / "records.jsonl").read_bytes() == before
