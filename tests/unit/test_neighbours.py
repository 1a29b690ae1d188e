"""An edited model in the hands of others: transformers' pipeline, and lm-evaluation-harness by its registry."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import palimpsest as ps
from palimpsest import ConfigError, PatchError, harness
from palimpsest.evaluation.other_tasks import run_tasks
from palimpsest.patches import write_merged
from palimpsest.world import build
from palimpsest.world.tasks import write_tasks

EDIT = ps.EditRequest("The capital city of Japan is", subject="Japan", target_old="Tokyo", target_new="Oslo")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """The bundled model, and the folder of a patch for it."""
    model = ps.load("world")
    folder = tmp_path_factory.mktemp("edited") / "oslo"
    ps.method("ft").edit(model, [EDIT]).patch.save(folder)
    return model, folder


def said(pipe):
    [found] = pipe(EDIT.prompt, max_new_tokens=2, do_sample=False, return_full_text=False)
    return found["generated_text"].strip()


@pytest.mark.filterwarnings("ignore")
def test_transformers_pipeline_says_what_the_patched_model_says(edited, tmp_path):
    from transformers import pipeline

    model, folder = edited
    patch = ps.load_patch(folder)
    with model.patched(patch):
        pipe = pipeline("text-generation", model=model.module, tokenizer=model.tokenizer, device="cpu")
        assert said(pipe).startswith("Oslo")
    # The pipeline holds the module itself: off means off there too.
    assert said(pipe).startswith("Tokyo")
    write_merged(model, [patch], tmp_path / "merged")
    assert said(pipeline("text-generation", model=str(tmp_path / "merged"), device="cpu")).startswith("Oslo")


def test_what_the_harness_is_told_is_checked(edited, monkeypatch):
    _, folder = edited
    with pytest.raises(ConfigError, match="not told which model"):
        harness.answering(patch=str(folder))
    with pytest.raises(ConfigError, match="pretrained") as found:
        harness.answering(pretraind="world")
    assert "did you mean 'pretrained'" in str(found.value)
    with pytest.raises(ConfigError, match="no batch size"):
        harness.answering("world", batch_size="many")
    with pytest.raises(PatchError):
        harness.answering("world", patch=str(folder / "nowhere"))
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    with pytest.raises(ConfigError, match="needs that package"):
        harness.register()


def test_the_harness_s_model_has_its_patches_on(edited):
    _, folder = edited
    # What the harness asks for unless it is told otherwise, on every machine.
    assert (
        harness.answering("world", device="cuda:0")
        .answers([(EDIT.prompt, {"max_gen_toks": 2})])[0]
        .strip()
        .startswith("Tokyo")
    )
    for patch in (str(folder), [str(folder)], os.pathsep + str(folder)):
        asked = harness.answering("world", patch, batch_size="auto")
        assert asked.answers([(EDIT.prompt, {"max_gen_toks": 2})])[0].strip().startswith("Oslo")


@pytest.mark.slow
def test_the_harness_s_own_command_line_knows_the_model(edited, tmp_path):
    pytest.importorskip("lm_eval", reason="the package lm-eval is not installed")
    model, folder = edited
    names = list(write_tasks(build(), tmp_path, num_questions=12))
    with model.patched(ps.load_patch(folder)):
        wanted = run_tasks(model, names, include=tmp_path)
    done = subprocess.run(
        [
            sys.executable, "-m", "palimpsest.harness", "run", "--model", "palimpsest", "--model_args",
            f"pretrained=world,patch={folder}", "--tasks", ",".join(names), "--include_path", str(tmp_path),
            "--output_path", str(tmp_path / "out"),
        ],
        capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [written] = (tmp_path / "out").rglob("results*.json")
    found = json.loads(written.read_text())["results"]
    for task, metrics in wanted.items():
        for metric, value in metrics.items():
            given = {name.removesuffix(",none"): number for name, number in found[task].items()}
            assert given[metric] == pytest.approx(value)
