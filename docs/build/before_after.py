"""The README's picture: a pretrained model before an edit and with it, drawn from what the model really writes.

python docs/build/before_after.py FOLDER        edits, asks, and writes docs/figures/before-after.json and .svg
python docs/build/before_after.py               draws the .svg again from the .json
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parents[1] / "figures"
PROMPT, SUBJECT, OLD, NEW = "The Eiffel Tower is located in the city of", "The Eiffel Tower", "Paris", "Rome"
QUESTIONS = (
    PROMPT,
    "If you want to see the Eiffel Tower, travel to the city of",
    "The Louvre is located in the city of",
    "The Brandenburg Gate is located in the city of",
    "The Eiffel Tower was built in the year",
)
WIDTHS, ROW, TOP = (430, 190, 190), 34, 64


def measured(folder: str, method: str = "auto") -> dict[str, Any]:
    """Answers before and after, with the patch's size and the time it took."""
    import palimpsest as ps

    model = ps.load(folder)
    edit = ps.EditRequest(PROMPT, subject=SUBJECT, target_old=OLD, target_new=NEW)
    before = model.generate(QUESTIONS, max_new_tokens=8)
    outcome = ps.method(method).edit(model, [edit])
    with model.patched(outcome.patch):
        after = model.generate(QUESTIONS, max_new_tokens=8)
    return {
        "model": Path(folder).name,
        "method": method,
        "target_new": NEW,
        "rows": [list(row) for row in zip(QUESTIONS, before, after, strict=True)],
        "undone": model.generate(QUESTIONS, max_new_tokens=8) == before,
        "patch_bytes": outcome.patch.num_bytes,
        "seconds": round(outcome.diagnostics.seconds["total"], 1),
        "notes": outcome.diagnostics.notes,
    }


def drawn(found: dict[str, Any]) -> str:
    """The table as SVG, readable on light and dark pages."""
    width, height = sum(WIDTHS) + 20, TOP + ROW * len(found["rows"]) + 12
    columns = [10, 10 + WIDTHS[0], 10 + WIDTHS[0] + WIDTHS[1]]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img" font-family="system-ui, sans-serif" font-size="14">',
        f"<title>{escape(found['model'])} before an edit and with it</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff" stroke="#d0d7de"/>',
    ]
    heads = ("the model is asked", "before", "with the patch")
    lines += [
        f'<text x="{x}" y="38" fill="#57606a" font-weight="600">{name}</text>'
        for x, name in zip(columns, heads, strict=True)
    ]
    for number, (question, before, after) in enumerate(found["rows"]):
        y = TOP + ROW * number
        lines.append(f'<line x1="10" x2="{width - 10}" y1="{y - 10}" y2="{y - 10}" stroke="#d0d7de"/>')
        for x, text in zip(columns, (question, before, after), strict=True):
            changed = x == columns[2] and before != after
            # What was to change, and what was not.
            colour = "#0a7d33" if after.startswith(found["target_new"]) else "#b35900"
            style = f' fill="{colour}" font-weight="600"' if changed else ' fill="#1f2328"'
            shown = text if x == columns[0] else text[:24]
            lines.append(f'<text x="{x}" y="{y + 13}"{style}>{escape(shown)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Measures where a folder is named, and draws."""
    file = FIGURES / "before-after.json"
    if len(sys.argv) > 1:
        FIGURES.mkdir(exist_ok=True)
        file.write_text(json.dumps(measured(*sys.argv[1:]), indent=1, ensure_ascii=False) + "\n")
    (FIGURES / "before-after.svg").write_text(drawn(json.loads(file.read_text())))


if __name__ == "__main__":
    main()
