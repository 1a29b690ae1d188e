"""`memory`: the entries of a patch that keeps its edits as such, and what takes some of them out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.errors import ConfigError

if TYPE_CHECKING:
    from palimpsest.patches import MemoryPatch

memory = typer.Typer(
    help="The edits in a patch of ike or serac, one by one: list them, take some out.",
    epilog=terminal.examples(
        "palimpsest memory list my-patch", "palimpsest memory delete my-patch 3fa9c0 --out new-patch"
    ),
    no_args_is_help=True,
)

PatchArgument = Annotated[Path, typer.Argument(metavar="PATCH", help="A patch folder.", show_default=False)]


@memory.command(
    "list",
    epilog=terminal.examples("palimpsest memory list my-patch", "palimpsest memory list my-patch --json"),
    no_args_is_help=True,
)
def list_(patch: PatchArgument, as_json: inputs.JsonOption = False) -> None:
    """Show the entries of a patch's memory."""
    read = _read(patch)
    entries = [{"id": one.id, "prompt": one.prompt, "answer": one.answer} for one in read.entries]
    if as_json:
        terminal.emit_json({"patch": str(patch), "kind": read.kind, "entries": entries})
        return
    terminal.print_table(["id", "prompt", "answer"], [list(one.values()) for one in entries], title=str(patch))


@memory.command(
    "delete",
    epilog=terminal.examples(
        "palimpsest memory delete my-patch 3fa9c0 --out new-patch",
        "palimpsest memory delete my-patch 3fa9c0 81be22 --out new-patch --json",
    ),
    no_args_is_help=True,
)
def delete(
    patch: PatchArgument,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Entries to remove.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the patch without them.", show_default=False)],
    as_json: inputs.JsonOption = False,
) -> None:
    """Write a patch without some of its entries: it answers as if they had never been there."""
    from palimpsest.files import require_absent

    require_absent(out)
    left = _read(patch).without(*ids)
    left.save(out)
    terminal.wrote(out)
    result = {"patch": str(patch), "out": str(out), "deleted": ids, "left": len(left.entries)}
    if as_json:
        terminal.emit_json(result)
    else:
        terminal.say(f"{out}: {terminal.count(len(left.entries), 'edit')} left, without {', '.join(ids)}")


def _read(folder: Path) -> MemoryPatch:
    from palimpsest.patches import MemoryPatch

    [read] = inputs.read_patches([folder])
    if not isinstance(read, MemoryPatch):
        raise ConfigError(
            "The patch has no memory.",
            expected="a patch of ike or serac, which keeps its edits as entries",
            found=f"a patch of kind {read.kind!r} ({read.manifest.label})",
            where=str(folder),
        )
    return read
