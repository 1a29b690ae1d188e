"""`palimpsest train`, and editing with what it made."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from safetensors import safe_open

import tiny
from palimpsest import TrainedEditor
from palimpsest.cli import terminal

QUICK = (
    "-o", "steps=4", "-o", "examples_per_step=4", "-o", "validate_every=2", "-o", "layers=[1]", "-o", "rank=4",
    "-o", "learning_rate=1e-2", "-o", "step_size=0.01",
)  # fmt: skip


SLOW_STEPS = ("-o", "steps=60", "-o", "examples_per_step=4", "-o", "forward_batch_size=4", "-o", "validate_every=4",
              "-o", "patience=100")  # fmt: skip
SMALL = {
    "mend": ("-o", "rank=4", "-o", "learning_rate=1e-2"),
    "ke": ("-o", "lstm_width=8", "-o", "condition_width=8", "-o", "hidden_width=8"),
    "serac": ("-o", "width=16", "-o", "layers=1", "-o", "heads=2", "-o", "encoder_width=16", "-o", "encoder_layers=1"),
}


def step_on_disk(checkpoint):
    """The step that a checkpoint, which is replaced as a whole, was written at; -1 while there is none."""
    if not checkpoint.exists():
        return -1
    with safe_open(checkpoint, framework="pt") as stored:
        return json.loads(stored.metadata()["checkpoint"])["course"]["step"]


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "facts.jsonl"
    file.write_text("\n".join(json.dumps(one.to_dict()) for one in tiny.trainable_requests()), encoding="utf-8")
    return file


def test_train_then_edit_and_evaluate_with_the_editor(run, workplace, facts, tmp_path):
    result = run("train", "mend", workplace / "model", "--data", facts, "--out", tmp_path / "e", "--json", *QUICK)
    assert result.code == 0, result.err
    found = result.json()
    assert found["steps"] == 4 and found["data"]["edits"] == 18 and found["training"]["rank"] == 4
    assert sorted(file.name for file in (tmp_path / "e").iterdir()) == [
        "curve.svg",
        "editor.json",
        "editor.safetensors",
    ]
    assert (tmp_path / "e" / "curve.svg").read_text().count("<svg") == 1
    assert not (tmp_path / "e.checkpoint").exists()
    words = ("-m", "mend", "--editor", tmp_path / "e")
    edits = ("--prompt", "The capital of France is", "--target-new", "Lyon")
    result = run("edit", workplace / "model", *words, *edits, "--out", tmp_path / "p", "--json")
    # An editor of a few steps need not make the edit hold.
    assert result.code in (0, 1) and result.json()["touched"] == [
        "transformer.h.1.mlp.fc_in.weight",
        "transformer.h.1.mlp.fc_out.weight",
    ]
    result = run("eval", workplace / "model", "-d", facts, "-n", "2", *words, "--json")
    assert result.code == 0 and result.json()["status"] == "ok"
    for model, reason in (("other", "trained for another model"), ("model", "does not take --editor")):
        method = words if model == "other" else ("-m", "ft", *words[2:])
        result = run("edit", workplace / model, *method, *edits, "--out", tmp_path / "q")
        assert result.code == 2 and reason in result.err and not (tmp_path / "q").exists()


def test_an_interrupted_training_says_how_to_go_on_and_does(run, workplace, facts, tmp_path, monkeypatch):
    words = ("train", "mend", workplace / "model", "--data", facts, "--out", tmp_path / "e", *QUICK)
    real = terminal.progress_bar

    class Interrupting:
        def __init__(self, title):
            pass

        def __enter__(self):
            def stop(_stage, done, _total):
                if done == 3:
                    raise KeyboardInterrupt

            return stop

        def __exit__(self, *failure):
            return None

    monkeypatch.setattr(terminal, "progress_bar", Interrupting)
    result = run(*words)
    assert result.code == 130 and "--resume" in result.err and (tmp_path / "e.checkpoint").exists()
    assert not (tmp_path / "e").exists()
    monkeypatch.setattr(terminal, "progress_bar", real)
    assert run(*words).code == 2
    result = run(*words, "--resume")
    assert result.code == 0 and "next: palimpsest edit" in result.out and "step" in result.out
    assert not (tmp_path / "e.checkpoint").exists()
    assert TrainedEditor.load(tmp_path / "e").record.curve[-1]["step"] == 4


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("ft", "FACTS"), "not trained beforehand"),
        (("mend", "PLAIN"), "rephrasings"),
        (("mend", "FACTS", "-o", "layer=[1]"), "did you mean 'layers'"),
        (("mend", "FACTS", "-o", "layers=[9]"), "layers cannot be used"),
        (("mend", "nowhere.jsonl"), "nowhere.jsonl"),
        (("mend", "TESTED"), "no such split"),
        (("serac", "FACTS", "-o", 'counterfactual="OTHER"', *SMALL["serac"]), "another tokenizer"),
    ],
)
def test_bad_input_costs_nothing(run, workplace, facts, tmp_path_factory, tmp_path, words, reason):
    place = tmp_path_factory.mktemp("bad")
    tested = [{**json.loads(line), "split": "test"} for line in facts.read_text(encoding="utf-8").splitlines()]
    (place / "tested.jsonl").write_text("\n".join(map(json.dumps, tested)), encoding="utf-8")
    if any("OTHER" in word for word in words):
        tiny.tiny_folder(place / "other", "t5")
    method, data, *more = (word.replace("OTHER", str(place / "other")) for word in words)
    source = {"FACTS": facts, "PLAIN": workplace / "facts.jsonl", "TESTED": place / "tested.jsonl"}.get(data, data)
    result = run("train", method, workplace / "model", "--data", source, "--out", tmp_path / "e", *more)
    assert result.code == 2 and reason in result.err, result.err
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_says_where_and_leaves_its_last_good_checkpoint(run, workplace, facts, tmp_path):
    wild = ("-o", "learning_rate=1e30", "-o", "step_rate=1e30", "-o", "validate_every=2", "-o", "rank=4")
    result = run("train", "mend", workplace / "model", "--data", facts, "--out", tmp_path / "e", *wild)
    assert result.code == 2 and "diverged at step" in result.err and "infinity in" in result.err
    assert not (tmp_path / "e").exists() and step_on_disk(tmp_path / "e.checkpoint") in (0, 2)
    with safe_open(tmp_path / "e.checkpoint", framework="pt") as stored:
        names = [name for name in stored.keys() if name.startswith("present/")]  # noqa: SIM118 - no mapping
        assert names and all(stored.get_tensor(name).isfinite().all() for name in names)


def test_edits_that_cannot_be_used_are_left_out_on_request(run, workplace, facts, tmp_path):
    words = ("train", "mend", workplace / "model", "--data", facts, "--data", workplace / "facts.jsonl", "--skip-bad")
    result = run(*words, "--limit", "15", "--out", tmp_path / "e", "--json", *QUICK)
    assert result.code == 0
    assert result.json()["notes"] == ["4 edit(s) without a rephrasing were passed over."]
    assert result.json()["data"]["edits"] + result.json()["data"]["validation_edits"] == 15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mend", "ke", "serac"])
def test_a_training_killed_at_any_moment_goes_on_with_the_same_bits(name, workplace, facts, tmp_path):
    def command(out, *more):
        words = ["train", name, workplace / "model", "--data", facts, "--out", out, *SLOW_STEPS, *SMALL[name], *more]
        return [sys.executable, "-m", "palimpsest", *map(str, words)]

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command(tmp_path / "whole"), check=True, **quiet)
    out, least = tmp_path / "killed", random.randrange(0, 40)
    with subprocess.Popen(command(out), **quiet) as process:
        while process.poll() is None and step_on_disk(tmp_path / "killed.checkpoint") < least:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
    assert process.returncode == -signal.SIGKILL and not out.exists()
    assert least <= step_on_disk(tmp_path / "killed.checkpoint") < 60
    subprocess.run(command(out, "--resume"), check=True, **quiet)
    assert (out / "editor.safetensors").read_bytes() == (tmp_path / "whole" / "editor.safetensors").read_bytes()
    curves = [TrainedEditor.load(folder).record.curve for folder in (tmp_path / "whole", out)]
    losses = [[{key: point[key] for key in ("step", "training", "validation")} for point in one] for one in curves]
    assert losses[0] == losses[1] and [point["step"] for point in losses[0]] == list(range(0, 61, 4))
