"""Every bad input: one block on stderr, nothing on stdout, exit code 2, and nothing written."""

import errno
import json
import os
import shutil

import pytest
from safetensors import SafetensorError

import tiny

GOOD = {"prompt": "The capital of France is", "subject": "France", "target_new": "Lyon", "target_old": "Paris"}


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


def lines(*records):
    return "\n".join(map(json.dumps, records))


FILES = {
    "empty": ("e.jsonl", ""),
    "no prompt": ("e.jsonl", lines(without("prompt"))),
    "no target": ("e.jsonl", lines(without("target_new"))),
    "subject not in the prompt": ("e.jsonl", lines({**GOOD, "subject": "Spain"})),
    "blank target": ("e.jsonl", lines({**GOOD, "target_new": " "})),
    "equal targets": ("e.jsonl", lines({**GOOD, "target_new": "Paris"})),
    "contradiction": ("e.jsonl", lines(GOOD, {**GOOD, "target_new": "Nice"})),
    "broken line": ("e.jsonl", lines(GOOD) + "\n{not json"),
    "wrong header": ("e.csv", "question,answer\nWhere?,There\n"),
    "not a list": ("e.json", '"text"'),
}


def check(result, place, *words):
    assert (result.code, result.out) == (2, "")
    assert result.err.count("Error: ") == 1
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err
    left = [path.name for path in place.iterdir() if path.name == "out" or path.name.startswith(".")]
    assert left == []


@pytest.mark.parametrize(("name", "text"), FILES.values(), ids=FILES)
def test_a_file_of_edits_that_is_none(run, workplace, tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    result = run("edit", workplace / "model", "--method", "ft", "--edits", tmp_path / name, "--out", tmp_path / "out")
    check(result, tmp_path)


def test_a_broken_line_is_named(run, workplace, tmp_path):
    (tmp_path / "e.jsonl").write_text(lines(GOOD) + "\n{not json", encoding="utf-8")
    result = run(
        "edit", workplace / "model", "--method", "ft", "--edits", tmp_path / "e.jsonl", "--out", tmp_path / "out"
    )
    check(result, tmp_path, "e.jsonl:2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("no edits", "--edits")),
        (("--edits", "nowhere.jsonl"), ("nowhere.jsonl",)),
        (("--edits", "FACTS", "--prompt", "p"), ("not complete",)),
        (("--prompt", "The capital of France is"), ("--target-new",)),
        (("--edits", "FACTS", "--prompt", "A", "--target-new", "B"), ("twice",)),
        (("--edits", "FACTS", "--method", "fft"), ("did you mean 'ft'",)),
        (("--edits", "FACTS", "-o", "epoch=3"), ("did you mean 'epochs'",)),
        (("--edits", "FACTS", "-o", "epochs"), ("key=value",)),
        (("--edits", "FACTS", "-o", "epochs=3", "-o", "epochs=4"), ("twice",)),
        (("--edits", "FACTS", "-o", "epochs=many"), ("epochs",)),
        (("--edits", "FACTS", "--preset", "gtp2"), ("preset",)),
        (("--edits", "FACTS", "--seed", "1", "-o", "seed=2"), ("Two seeds",)),
    ],
)
def test_edit_refuses(run, workplace, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    facts = str(workplace / "facts.jsonl")
    given = [facts if one == "FACTS" else one for one in arguments]
    method = () if "--method" in given else ("--method", "ft")
    check(run("edit", workplace / "model", *method, *given, "--out", "out"), tmp_path, *words)


def test_a_method_that_forgets_needs_old_answers(run, workplace, tmp_path):
    (tmp_path / "e.jsonl").write_text(lines(without("target_old")), encoding="utf-8")
    result = run(
        "edit", workplace / "model", "--method", "f-learning-ft", "--edits", tmp_path / "e.jsonl",
        "--out", tmp_path / "out",
    )  # fmt: skip
    check(result, tmp_path, "target_old")


@pytest.mark.parametrize(
    "command",
    [
        ("edit", "nowhere/at/all", "--method", "ft", "--edits", "nothing.jsonl"),
        ("apply", "nowhere/at/all", "no-patch"),
        ("eval", "nowhere/at/all", "--dataset", "world-zsre", "--method", "ft"),
        ("world", "train"),
        ("world", "export"),
        ("demo",),
        ("report", "no-run"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_output_that_exists_is_found_before_anything_else(run, tmp_path, command):
    (tmp_path / "taken").mkdir()
    result = run(*command, "--out", tmp_path / "taken")
    assert (result.code, result.out) == (2, "")
    assert "exists already" in result.err
    assert list((tmp_path / "taken").iterdir()) == []


def test_a_patch_that_was_altered_or_cut_off(run, workplace, tmp_path):
    for name, change in (
        ("altered", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("cut", lambda data: data[: len(data) // 2]),
    ):
        shutil.copytree(workplace / "patch", tmp_path / name)
        file = tmp_path / name / "patch.safetensors"
        file.write_bytes(change(file.read_bytes()))
        for command in (("ask", workplace / "model", "Hello", "--patch"), ("verify", workplace / "model")):
            check(run(*command, tmp_path / name), tmp_path, "SHA-256")


def test_a_patch_for_another_model(run, workplace, tmp_path):
    other, patch = workplace / "other", workplace / "patch"
    check(run("ask", other, "Hello", "--patch", patch), tmp_path, "another model")
    check(run("verify", other, patch), tmp_path, "another model")
    check(run("apply", other, patch, "--out", tmp_path / "out"), tmp_path, "another model")


def test_no_patch_no_model_no_run(run, workplace, tmp_path):
    check(run("ask", workplace / "model", "Hello", "--patch", tmp_path / "none"), tmp_path, "not a readable patch")
    check(run("doctor", tmp_path / "none"), tmp_path, "no such model folder")
    check(run("report", tmp_path / "none", "--out", tmp_path / "out"), tmp_path, "no run here")
    check(run("ask", workplace / "model", "  "), tmp_path, "blank")


def test_a_folder_of_pickles_is_not_opened(run, tmp_path):
    folder = tiny.tiny_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    check(run("doctor", folder), tmp_path, "pytorch_model.bin", "safetensors")


def test_forms_that_are_not_there(run, workplace, tmp_path):
    arguments = ("apply", workplace / "model", workplace / "patch", "--out", tmp_path / "out", "--as")
    check(run(*arguments, "peft"), tmp_path, "dense change", "--as merged")
    check(run(*arguments, "zip"), tmp_path, "no form")


def test_a_full_disk_leaves_nothing(run, workplace, tmp_path, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    facts = workplace / "facts.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", full)
        result = run("edit", workplace / "model", "--method", "lora", "--edits", facts, "--out", tmp_path / "out")
        check(result, tmp_path, "No space left", "nothing was left behind")
    with monkeypatch.context() as patched:
        patched.setattr("palimpsest.patches.export.card", full)
        result = run("apply", workplace / "model", workplace / "patch", "--out", tmp_path / "out")
        check(result, tmp_path, "No space left")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--protocol", "single", "--batch-size", "3"),
        ("--protocol", "batch", "--checkpoints", "1,2"),
        ("--protocol", "sequential", "--checkpoints", "1,x"),
        ("--num-edits", "100"),
        ("--resume",),
        ("--data", "facts.jsonl", "--dataset", "world-zsre"),
    ],
    ids=" ".join,
)
def test_eval_refuses(run, workplace, tmp_path, arguments):
    dataset = () if "--dataset" in arguments else ("--dataset", workplace / "facts.jsonl")
    check(run("eval", workplace / "model", "--method", "ft", *dataset, *arguments), tmp_path)


def test_overwriting_takes_only_what_a_demo_wrote(run, tmp_path, monkeypatch):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    monkeypatch.chdir(tmp_path / "thesis")
    for out, words in (
        (tmp_path / "thesis" / "..", "current folder"),
        (".", "current folder"),
        ("/", "current folder"),
        (tmp_path / "thesis" / "chapter.tex", "not made by this command"),
    ):
        check(run("demo", "--overwrite", "--model", "nowhere/at/all", "--out", out), tmp_path, words)
    monkeypatch.chdir(tmp_path)
    result = run("demo", "--overwrite", "--model", "nowhere/at/all", "--out", "thesis")
    check(result, tmp_path, "not made by this command", "chapter.tex")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_a_place_that_cannot_be_written_to_is_found_before_anything_else(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    commands = (
        ("edit", "nowhere/at/all", "--method", "ft", "--edits", "nothing.jsonl"),
        ("apply", "nowhere/at/all", "no-patch"),
    )
    for command in commands:
        check(run(*command, "--out", tmp_path / "file" / "out"), tmp_path, "choose a folder you may write to")
    monkeypatch.setattr("os.access", lambda *_: False)
    for command in commands:
        result = run(*command, "--out", tmp_path / "new" / "out")
        check(result, tmp_path, "without that permission", "choose a folder you may write to")


def test_a_full_disk_names_the_users_path(run, workplace, tmp_path, monkeypatch):
    text = "I/O error: No space left on device (os error 28)"

    def full(error):
        def save(*_arguments, **_options):
            raise error(text)

        return save

    facts, out = workplace / "facts.jsonl", tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", full(SafetensorError))
        result = run("edit", workplace / "model", "--method", "lora", "--edits", facts, "--out", out)
        check(result, tmp_path, "No space left", f"where:    {out}\n")
    with monkeypatch.context() as patched:
        patched.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full(Exception))
        result = run("apply", workplace / "model", workplace / "patch", "--out", out)
        check(result, tmp_path, "No space left", f"where:    {out}\n")


def test_files_have_the_permissions_of_the_umask(run, workplace, tmp_path):
    umask = os.umask(0o022)
    try:
        assert run("apply", workplace / "model", workplace / "patch", "--out", tmp_path / "out").code == 0
    finally:
        os.umask(umask)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o644}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("dataset", "words"),
    [("zsre", "--data FILE"), ("nosuch.csv", "There is no such file"), ("no/such", "There is no such file")],
)
def test_a_data_set_without_its_file(run, workplace, tmp_path, dataset, words):
    check(run("eval", workplace / "model", "--dataset", dataset, "--method", "ft"), tmp_path, words)


def test_a_forget_patch_is_for_methods_that_forget(run, workplace, tmp_path):
    result = run(
        "edit", workplace / "model", "--method", "ft", "--edits", workplace / "facts.jsonl", "--out", tmp_path / "out",
        "--forget-patch", workplace / "patch",
    )  # fmt: skip
    check(result, tmp_path, "does not take --forget-patch")


def test_utf_16_without_its_mark(run, workplace, tmp_path):
    (tmp_path / "e.jsonl").write_bytes(lines(GOOD).encode("utf-16-le"))
    result = run(
        "edit", workplace / "model", "--method", "ft", "--edits", tmp_path / "e.jsonl", "--out", tmp_path / "out"
    )
    check(result, tmp_path, "UTF-8", "NUL")


def test_bad_records_are_refused_or_counted(run, workplace, tmp_path):
    facts = tmp_path / "facts.csv"
    facts.write_text(
        "prompt,subject,target_new\nThe capital of Italy is,Italy,Milan\nThe capital of Cuba is,Haiti,Lyon\n"
    )
    arguments = ["edit", workplace / "model", "--method", "ft", "--edits", facts, "-o", "epochs=1", "--json"]
    refused = run(*arguments, "--out", tmp_path / "refused")
    assert refused.code == 2 and f"{facts}:3" in refused.err and not (tmp_path / "refused").exists()
    done = run(*arguments, "--out", tmp_path / "patch", "--skip-bad")
    # One pass over one fact does not make it hold, which is exit code 1; nothing is refused.
    assert done.code == 1 and len(done.json()["edits"]) == 1
    assert any(f"1 record(s) were passed over: {facts}:3" in note for note in done.json()["notes"])


def test_one_patch_given_twice(run, workplace, tmp_path):
    for command in (
        ["ask", workplace / "model", "Anna", "--patch", workplace / "patch", "--patch", workplace / "patch"],
        ["apply", workplace / "model", workplace / "patch", workplace / "patch", "--out", tmp_path / "out"],
    ):
        done = run(*command)
        assert done.code == 2 and "on the model already" in done.err and done.out == ""
    assert not (tmp_path / "out").exists()
