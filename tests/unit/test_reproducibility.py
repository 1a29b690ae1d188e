"""What docs/reproducibility.md promises: the same bits on one setting, the same but for rounding on another."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import processors
import tiny
from palimpsest import load_patch, method
from palimpsest.provenance import hardware

SCRIPT = Path(__file__).parent / "one_edit.py"
# The norm of the difference over the norm of the change.
PROMISED = {"logits": 1e-5, "rome": 1e-4, "lora": 1e-3, "ft-l": 1e-3}


def edited(folder, name):
    paths = os.pathsep.join([str(processors.ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env={**processors.environment(name), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    return done.stdout.split(), load_file(folder / "found.safetensors")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the settings limit x86-64 instruction sets")
def test_bits_on_one_setting_and_rounding_between_two(tmp_path):
    (best, _), found = edited(tmp_path / "one", "best-1")
    _, again = edited(tmp_path / "two", "best-1")
    assert found.keys() == again.keys() and all(torch.equal(one, again[name]) for name, one in found.items())
    (lowest, _), other = edited(tmp_path / "three", "lowest")
    assert lowest == "DEFAULT" or lowest == best
    # The same parameters are touched.
    assert found.keys() == other.keys()
    for name, bound in PROMISED.items():
        keys = [key for key in found if key.split()[0] == name]
        assert keys
        apart = sum(float((found[key] - other[key]).square().sum()) for key in keys) ** 0.5
        assert apart <= bound * sum(float(found[key].square().sum()) for key in keys) ** 0.5, name


def test_records_name_the_processor(tmp_path, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    patch = method("ft-l", preset="none", radius=0.05, epochs=1).edit(tiny.tiny_model(), tiny.requests(1)).patch
    patch.save(tmp_path / "patch")
    found = load_patch(tmp_path / "patch").manifest.hardware
    assert found == hardware() and found["mkl_cbwr"] == "AUTO"
    assert found["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert found["threads"] == torch.get_num_threads()
    if Path("/proc/cpuinfo").exists() and "model name" in Path("/proc/cpuinfo").read_text():
        assert found["processor"] and found["processor"] in Path("/proc/cpuinfo").read_text()


def test_settings_are_chosen_by_name(capsys):
    assert processors.chosen([]) == list(processors.LIMITS) and len(processors.LIMITS) == 12
    assert processors.chosen(["lowest", "avx2-2"]) == ["lowest", "avx2-2"]
    assert processors.main(["lowst"]) == 2
    assert "lowest" in capsys.readouterr().err
    assert processors.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert "default-4" in listed and "ONEDNN_MAX_CPU_ISA=SSE41" in listed
    assert processors.environment("best-2")["OMP_NUM_THREADS"] == "2"
    assert not processors.environment("best-2").keys() & processors.LOW.keys()


def test_counts_are_pytest_s_last_line():
    output = (
        "....\n1 failed in the text\n== 3 failed, 4,086 passed ==\n3 failed, 4086 passed, 12 skipped in 291.20s\n\n"
    )
    assert processors.counts(output) == {"failed": 3, "passed": 4086, "skipped": 12}
    assert processors.counts("no tests ran") == {}


def test_a_failing_test_makes_the_code_one(tmp_path, capsys, monkeypatch):
    (tmp_path / "test_it.py").write_text("def test_right():\n    pass\n\n\ndef test_wrong():\n    assert not 1\n")
    monkeypatch.setattr(processors, "FAST", ("-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts="))
    assert processors.main(["best-1", "--", str(tmp_path), "-k", "right"]) == 0
    assert "1 passed" in capsys.readouterr().out
    assert processors.main(["best-1", "--", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "1 failed, 1 passed" in shown and "1 failed (best-1)" in shown and "test_wrong" in shown
