"""Notebooks cannot rot: every cell runs, what they show is what they say, and each is a page of the site."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "docs" / "notebooks").glob("*.py"))
# What the outputs of each say, however else they look.
SHOWN = {
    "f-learning": ("f-learning-ft", "Oslo."),
    "own-benchmark": ("report.html", "reliability"),
    "quick-start": ("Tokyo.       -> Oslo.", "Kathmandu.   -> Kathmandu."),
    "rome-and-tracing": ("' Tokyo': 1.00", "-> Oslo."),
}

PICTURES = {"f-learning": 2, "own-benchmark": 1, "quick-start": 1, "rome-and-tracing": 2}


@pytest.fixture(scope="module")
def notebooks():
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "build" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_each_can_be_read_installs_first_and_is_a_page(source):
    text = source.read_text()
    compile(text, str(source), "exec")
    cells = text.split("# %%")[1:]
    assert cells[0].startswith(" [markdown]\n# # ")
    assert cells[1].startswith(' tags=["install"]') and "pip" in cells[1]
    assert f"notebooks/{source.stem}.md" in (ROOT / "mkdocs.yml").read_text()
    assert f"(notebooks/{source.stem}.py)" in (ROOT / "docs" / "notebooks.md").read_text()
    assert source.stem in SHOWN


def test_a_page_has_the_cells_with_what_they_gave(notebooks):
    code = SimpleNamespace(
        cell_type="code",
        source="1 + 1",
        outputs=[
            {"data": {"text/plain": "2"}},
            {"data": {"text/plain": "a table", "text/html": "<table></table>"}},
            {"data": {"image/png": "UE5H", "text/plain": "<Figure>"}},
            {"name": "stdout", "text": "said\n"},
        ],
    )
    notebook = SimpleNamespace(cells=[SimpleNamespace(cell_type="markdown", source="# Title"), code])
    text, pictures = notebooks.page(notebook, "one")
    assert pictures == {"one-1.png": b"PNG"}
    parts = text.split("\n\n")
    assert parts[:5] == [
        "# Title",
        "```python\n1 + 1\n```",
        "```text\n2\n```",
        '<div class="output"><table></table></div>',
        "![What the cell above draws](one-1.png)",
    ]
    assert parts[5] == "```text\nsaid\n```" and "(one.ipynb)" in parts[6]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_every_cell_runs_and_shows_what_it_says(notebooks, name):
    for needed in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(needed, reason="the extra `notebooks` is not installed")
    text, pictures = notebooks.page(notebooks.executed(name), name)
    for words in SHOWN[name]:
        assert words in text
    assert len(pictures) == PICTURES[name] and all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    assert '<div class="output">' in text
