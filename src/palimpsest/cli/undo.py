"""`undo` makes the original file of an edited GGUF file again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.files import expanded

EXAMPLES = ("palimpsest undo edited.gguf --out original.gguf",)
PANEL = terminal.EDITING


def undo(
    edited: Annotated[
        Path,
        typer.Argument(metavar="EDITED", help="A file that `apply --as gguf` wrote.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", help="The original: a new file.", show_default=False)],
    kept: Annotated[
        Path | None,
        typer.Option("--from", help="The .undo file; the one beside the edited file if left out."),
    ] = None,
    as_json: inputs.JsonOption = False,
) -> None:
    """Make the original GGUF file of an edited one again, byte for byte, by the .undo file that lies beside it.

    A patch itself needs no undoing: the base model's files are never changed by it.
    """
    with terminal.status("reading"):
        from palimpsest.patches.gguf import undo_gguf

    with terminal.status(f"writing {out}"):
        digest = undo_gguf(edited, out, kept=kept)
    terminal.wrote(out)
    if as_json:
        size = expanded(out).stat().st_size
        terminal.emit_json({"edited": str(edited), "out": str(out), "sha256": digest, "bytes": size})
        return
    terminal.say(f"{out}: the original file, SHA-256 {digest}")
