"""Notebooks out of their sources, executed: pages of the site, and files to take along.

A source is a script of docs/notebooks whose cells are marked as jupytext and editors know them (`# %%`). As a hook of
mkdocs this makes each a page, with what its cells gave, and `NAME.ipynb` beside it. `python docs/build/notebooks.py`
only executes them. A cell that fails ends either.
"""

from __future__ import annotations

import base64
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "docs" / "notebooks"
_TIMEOUT = 600  # seconds a cell


def names() -> list[str]:
    return sorted(source.stem for source in SOURCES.glob("*.py"))


def executed(name: str) -> Any:
    """A notebook with what its cells gave, run in a folder of its own; raises `CellExecutionError` where one fails."""
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(SOURCES / f"{name}.py")
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    # The package that stands beside the documentation, whether it is installed or not.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=_TIMEOUT, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Progress bars and warnings are no result.
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return notebook


def page(notebook: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and the pictures that it shows, by their names."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{name}-{len(pictures) + 1}.png"
                pictures[picture] = base64.b64decode(data["image/png"])
                parts.append(f"![What the cell above draws]({picture})")
            elif "text/html" in data:
                parts.append(f'<div class="output">{"".join(data["text/html"])}</div>')
            elif text := output.get("text") or data.get("text/plain"):
                parts.append(f"```text\n{text.rstrip()}\n```")
    parts.append(f"[Take this notebook along]({name}.ipynb): it runs in Jupyter, and in Colab by *Upload notebook*.")
    return "\n\n".join(parts) + "\n", pictures


def on_files(files: Any, *, config: Any) -> Any:
    """Adds what is made of the sources to what mkdocs publishes."""
    import nbformat
    from mkdocs.structure.files import File

    for name in names():
        notebook = executed(name)
        text, pictures = page(notebook, name)
        made: dict[str, str | bytes] = {f"{name}.md": text, f"{name}.ipynb": nbformat.writes(notebook), **pictures}
        for file, content in made.items():
            files.append(File.generated(config, f"notebooks/{file}", content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Leads from the list of the sources to the pages that are made of them."""
    if page.file.src_uri == "notebooks.md":
        for name in names():
            markdown = markdown.replace(f"(notebooks/{name}.py)", f"(notebooks/{name}.md)")
    return markdown


if __name__ == "__main__":
    for one in sys.argv[1:] or names():
        executed(one)
        print(f"{one}: every cell ran")
