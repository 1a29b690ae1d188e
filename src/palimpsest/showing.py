"""How things show themselves: one line at a prompt, a small escaped table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

LONGEST = 80
"""Characters of a text that a table shows."""
MOST_ROWS = 10

_CELL = 'style="text-align: left; vertical-align: top; white-space: pre-wrap"'


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table for a notebook's `_repr_html_`, every text in it escaped, with the first rows and a count of the others.

    Arguments:
        caption: a line above the table.
        head: the columns' names.
        rows: their cells; `None` is an empty cell, a number is written with four digits.
    """
    shown = [[_cell(value) for value in row] for row in rows]
    lines = ["".join(f"<td {_CELL}>{cell}</td>" for cell in row) for row in shown[:MOST_ROWS]]
    if len(shown) > MOST_ROWS:
        lines.append(f'<td colspan="{len(head)}" {_CELL}>and {len(shown) - MOST_ROWS} more</td>')
    heads = "".join(f"<th {_CELL}>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<table><caption style="text-align: left">{escape(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    )


def named(kind: object, *parts: str) -> str:
    """`Kind(part, part)`: what `repr` says of an object that is too large to be written out."""
    return f"{type(kind).__name__}({', '.join(part for part in parts if part)})"


def counted(number: int, what: str) -> str:
    """`1 edit`, `3 edits`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def size(num_bytes: float | None) -> str:
    """A number of bytes for people."""
    if num_bytes is None:
        return "–"
    value = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.2g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return escape(text if len(text) <= LONGEST else text[: LONGEST - 3] + "...")
