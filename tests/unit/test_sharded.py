"""Several processes: the patch is that of one process, and an error ends all of them with one message."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny
from palimpsest import load_patch
from palimpsest.training.sharded import twin_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


LOST = ("Connection reset by peer", "Connection closed by peer")


def two_processes(*words, **environment):
    """Runs Python twice, as a launcher would; returns the two (code, stdout, stderr).

    They are run once more where the loopback lost their connection: both fell, and neither of anything else.
    """
    ended = _two_processes(words, environment)
    fallen = [errors for code, _, errors in ended if code > 0]
    is_lost = len(fallen) == 2 and all(any(lost in _last_error(errors) for lost in LOST) for errors in fallen)
    return _two_processes(words, environment) if is_lost else ended


def _last_error(errors):
    """The last line that names an exception."""
    return next((line for line in reversed(errors.splitlines()) if "Error" in line), "")


def _two_processes(words, environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    common = {**os.environ, "PYTHONPATH": paths, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-X", "faulthandler", *words],
            env={**common, **environment, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        texts = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(started, texts, strict=True)]


def test_two_processes_make_the_patch_of_one(tmp_path):
    ended = two_processes(str(HERE / "two_processes.py"), str(tmp_path))
    # Both are shown: where one falls, the other has only lost its connection.
    assert [code for code, _, _ in ended] == [0, 0], "\n".join(errors for _, _, errors in ended)
    specification = importlib.util.spec_from_file_location("two_processes", HERE / "two_processes.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    for case in script.CASES:
        together = load_patch(tmp_path / case)
        alone = script.edit(case)[1].patch
        assert together.touched() == alone.touched() != []
        if case == script.HALF:
            # Gradients are rounded to bfloat16 before they are added up, here of all facts, there of each share.
            assert (together + -alone).norm() < 0.02 * alone.norm()
            continue
        for name, delta in alone.deltas.items():
            assert (together.deltas[name].dense() - delta.dense()).abs().max() < 1e-5, (case, name)
        wanted, found = (patch.manifest.diagnostics["facts"] for patch in (alone, together))
        assert found.get("steps") == wanted.get("steps")
        if case == "forgetting":
            assert together.parts["forget"].norm() == pytest.approx(alone.parts["forget"].norm(), rel=1e-4)
        else:
            assert found["final_loss"] == pytest.approx(wanted["final_loss"], rel=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_twin_computes_the_same_and_shares_every_value(family):
    module = tiny.tiny_module(family)
    own = {id(one): torch.nn.Parameter(one.data, requires_grad=False) for one in module.parameters()}
    twin = twin_of(module, own)
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        wanted = module(ids).logits
        assert torch.equal(twin(ids).logits, wanted)
        twin.register_forward_hook(lambda *_: "replaced")
        for one in twin.parameters():
            one.data = one.data + 1
        assert twin(ids) == "replaced" and torch.equal(module(ids).logits, wanted)
    assert {id(one) for one in twin.modules()}.isdisjoint({id(one) for one in module.modules()})
    assert len(list(twin.parameters())) == len(list(module.parameters()))


@pytest.mark.slow
def test_the_command_line_in_two_processes(tmp_path):
    edit = ["-m", "palimpsest", "edit", str(tiny.tiny_folder(tmp_path / "model", "gpt2")), "--method", "ft"]
    fact = [
        "--prompt",
        "The capital of France is",
        "--target-new",
        "Lyon",
        "-o",
        "epochs=60",
        "-o",
        "parameters=all",
        "-o",
        "spare=false",
        "-o",
        "learning_rate=5e-3",
    ]
    (code, first, errors), (other, second, silence) = two_processes(*edit, *fact, "--out", str(tmp_path / "patch"))
    # Two passes need not make the edit hold; both processes must say the same of it.
    assert code == other and code in (0, 1) and (second, silence) == ("", ""), errors + silence
    assert "Lyon" in first and load_patch(tmp_path / "patch").num_parameters > 0


@pytest.mark.slow
def test_an_error_in_one_process_is_told_once_and_ends_both(tmp_path):
    """The second process cannot read what the first one reads: the first follows it and is silent."""
    model = tiny.tiny_folder(tmp_path / "model", "gpt2")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from palimpsest.cli import main\n"
        f"edits = {str(tmp_path)!r} + '/facts-' + os.environ['RANK'] + '.csv'\n"
        f"words = ['edit', {str(model)!r}, '--method', 'ft', '--out', {str(tmp_path / 'patch')!r}]\n"
        "sys.exit(main([*words, '--edits', edits]))\n"
    )
    (tmp_path / "facts-0.csv").write_text("prompt,subject,target_new\nThe capital of France is,France,Lyon\n")
    (code, out, errors), (other, _, others) = two_processes(str(script))
    assert code != 0 and other == 2
    assert (errors + others).count("Error:") == 1 and "facts-1.csv" in others, (errors, others)
    assert "Traceback" not in errors + others and out == ""
    assert not (tmp_path / "patch").exists()
