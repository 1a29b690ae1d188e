"""Docs cannot rot: their Python runs, their commands exist, their generated blocks are what would be generated."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


WITH_PYTHON = [page for page in PAGES if PYTHON.search(page.read_text())]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=names(WITH_PYTHON))
def test_python_in_the_docs_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {"__name__": "docs"}
    for block in PYTHON.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), scope)


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


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_generated_blocks_are_up_to_date(page):
    specification = importlib.util.spec_from_file_location("pages", ROOT / "bench" / "pages.py")
    pages = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(pages)
    text = page.read_text()
    assert pages.fill(text) == text, "run: python bench/pages.py"


def test_every_method_has_a_page():
    from palimpsest.methods.catalogue import METHODS

    written = {page.stem for page in (ROOT / "docs" / "methods").glob("*.md")}
    assert all(name in written or name.startswith("f-learning") for name in METHODS)
