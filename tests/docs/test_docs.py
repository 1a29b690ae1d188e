"""Docs cannot rot: their Python runs, their commands exist, their generated blocks are what would be generated."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
CODE = re.compile(r"`([\w/]+/\w+\.(?:py|toml|sh))`")
PACKAGE = ROOT / "src" / "palimpsest"
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


WITH_PYTHON = [page for page in PAGES if PYTHON.search(page.read_text())]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=names(WITH_PYTHON))
def test_python_in_the_docs_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {"__name__": "docs"}
    for block in PYTHON.findall(page.read_text()):
        exec(compile(block, str(page), "exec", dont_inherit=True), scope)


@pytest.fixture(scope="module")
def shown_methods():
    """What the page on adding a method defines, run as it stands there."""
    scope: dict = {"__name__": "docs"}
    for block in PYTHON.findall((ROOT / "docs" / "adding-a-method.md").read_text()):
        exec(compile(block, "adding-a-method.md", "exec", dont_inherit=True), scope)
    return scope


def test_the_example_of_a_method_of_memit_s_kind_is_short_and_is_ridge_regression(shown_methods):
    import torch

    block = PYTHON.findall((ROOT / "docs" / "adding-a-method.md").read_text())[0]
    assert "class RidgeEdit" in block and len(block.splitlines()) < 50, "imports included"
    assert shown_methods["answers"] == ["Oslo.", "Vienna.", "Kathmandu."]
    torch.manual_seed(0)
    keys, residuals = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    solution = shown_methods["Ridge"](0.7)(0, keys, residuals, torch.ones(3, dtype=torch.float64))
    strength = 0.7 * float(keys.square().sum(1).mean())
    direct = residuals.T @ keys @ torch.linalg.inv(strength * torch.eye(8, dtype=torch.float64) + keys.T @ keys)
    assert torch.allclose(solution.left @ solution.right, direct, atol=1e-10)


def test_the_example_of_a_method_edits_and_keeps_its_own_identity(shown_methods):
    """Run as the page shows it: the new answer comes, in other words too, a neighbour stays, and W k = v."""
    import torch

    scope = shown_methods
    model, patch, questions = scope["model"], scope["outcome"].patch, scope["questions"]
    assert scope["plain_answers"] == ["Oslo.", "Oslo.", "Kathmandu."]
    assert model.generate(questions) == ["Tokyo.", "Tokyo.", "Kathmandu."]
    assert patch.num_parameters == 1280
    [delta] = patch.deltas.values()
    rows = scope["subject_rows"](model, [scope["edit"]])
    points = [scope["Point"]("mlp.down", 2, "input"), scope["Point"]("mlp.down", 2)]
    before = scope["subject_vectors"](model, rows, points)
    with model.patched(patch):
        after = scope["subject_vectors"](model, rows, points)
    key, change = before[points[0]][0, 0], (after[points[1]] - before[points[1]])[0, 0]
    assert torch.allclose(delta.dense() @ key, change, atol=1e-4)
    # The smallest of all changes with this effect is of rank one, along the key.
    assert torch.allclose(delta.dense(), torch.outer(change, key) / key.square().sum(), atol=1e-4)


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
def test_the_command_is_on_the_path_before_it_is_used(name):
    """What `make` leaves behind is activated before the first command, and has the command in it."""
    import tomllib

    text = (ROOT / name).read_text()
    activation = "source .venv/bin/activate"
    assert activation in text
    first = min(text.index(command) for command in ("$ palimpsest", "`palimpsest --version`") if command in text)
    assert text.index(activation) < first
    assert re.search(r"^VENV +\?= \.venv$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "palimpsest" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.skipif(not (Path(sys.prefix) / "bin" / "activate").exists(), reason="the tests run outside an environment")
def test_activation_finds_the_command():
    done = subprocess.run(
        ["bash", "-c", f"source '{sys.prefix}/bin/activate' && command -v palimpsest"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.strip() == f"{sys.prefix}/bin/palimpsest", done.stderr


def test_commands_of_the_readme_do_what_it_says(tmp_path, monkeypatch, capfd):
    from palimpsest.cli import main

    monkeypatch.chdir(tmp_path)
    outputs = []
    for block in CONSOLE.findall((ROOT / "README.md").read_text()):
        for command in re.findall(r"^\$ (.*(?:\n    .*)*)", block.replace("\\\n", "\n"), re.MULTILINE):
            words = shlex.split(command.replace("\n", " "), comments=True)
            if words[0] == "palimpsest":
                assert main(words[1:]) == 0, words
                outputs.append(capfd.readouterr().out)
    assert len(outputs) == 5
    assert "Tokyo" in outputs[0] and "Oslo" not in outputs[0]
    assert "Oslo" in outputs[2]
    assert (tmp_path / "edited-model" / "model.safetensors").exists()
    assert sum(file.stat().st_size for file in (tmp_path / "my-patch").iterdir()) < 200_000


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_code_that_a_page_names_is_there(page):
    for path in CODE.findall(page.read_text().replace("src/palimpsest/methods/yours.py", "")):
        assert any((folder / path).exists() for folder in (ROOT, PACKAGE)), f"{page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_generated_blocks_are_up_to_date(page):
    specification = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "build" / "pages.py")
    pages = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(pages)
    text = page.read_text()
    assert pages.fill(text) == text, "run: python docs/build/pages.py"


def test_every_method_has_a_page():
    from palimpsest.methods.catalogue import METHODS

    written = {page.stem for page in (ROOT / "docs" / "methods").glob("*.md")}
    assert all(name in written or name.startswith("f-learning") for name in METHODS)


def test_the_readme_s_picture_and_example_are_what_the_model_wrote():
    import json

    file = ROOT / "docs" / "build" / "before_after.py"
    specification = importlib.util.spec_from_file_location("before_after", file)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    found = json.loads((script.FIGURES / "before-after.json").read_text())
    assert (script.FIGURES / "before-after.svg").read_text() == script.drawn(found)
    assert [question for question, _, _ in found["rows"]] == list(script.QUESTIONS)
    [example] = re.findall(r"```pycon\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shown = [line for line in example.splitlines() if line.startswith("(")]
    assert shown == [repr((before, after)) for _, before, after in found["rows"]]
    assert found["undone"] and f'ps.method("{found["method"]}")' in example
