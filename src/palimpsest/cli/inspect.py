"""`inspect` says what an edited model's weights, or a patch, give away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.errors import ConfigError
from palimpsest.files import FileKind, expanded, require_absent

if TYPE_CHECKING:
    from palimpsest.inspecting import Inspection

EXAMPLES = (
    "palimpsest inspect edited-model --base world",
    "palimpsest inspect my-patch --base world --json",
    "palimpsest inspect edited-model --base world --out back",
)
PANEL = terminal.LOOKING

_SHOWN = 12


def inspect(
    model: Annotated[
        str,
        typer.Argument(metavar="EDITED", help="An edited model, or a patch folder.", show_default=False),
    ],
    base: Annotated[str, typer.Option("--base", help="The model that it was made from.", show_default=False)],
    candidates: Annotated[
        Path | None,
        typer.Option("--candidates", help="A text file of names that the edits may be about, one per line."),
    ] = None,
    vocabulary: Annotated[
        int, typer.Option("--vocabulary", min=0, help="How many words of the vocabulary are tried as subjects.")
    ] = 10_000,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="A new folder for the patch that leads back to the base model.")
    ] = None,
    as_json: inputs.JsonOption = False,
) -> None:
    """Say what an edited model's weights give away, beside the model it was made from.

    Which tensors changed, by how much and of which rank; the words that the changes write most for, which are the
    likely subjects; what is answered otherwise about them; and the way back.
    """
    is_patch = _is_patch(model)
    if out is not None:
        if is_patch:
            raise ConfigError(
                "A patch needs no way back: the base model's files were never changed.",
                expected="no --out for a patch folder",
                found=f"--out {out}",
                remedy="leave --out out, or name an edited model",
            )
        require_absent(out)
    names = _names(candidates)
    placement = inputs.Placement(device, dtype, device_map, trust_remote_code)
    patches = inputs.read_patches([Path(model)]) if is_patch else []
    loaded = inputs.load_model(base, placement)
    from palimpsest.inspecting import inspect_model, inspect_patch

    if is_patch:
        with terminal.status("inspecting"):
            found = inspect_patch(loaded, patches[0], candidates=names, vocabulary=vocabulary)
    else:
        edited = inputs.load_model(model, placement)
        with terminal.progress_bar("inspecting") as progress:
            found = inspect_model(loaded, edited, candidates=names, vocabulary=vocabulary, progress=progress)
    if out is not None and found.reversal is not None:
        found.reversal.patch.save(out)
        terminal.wrote(out)
    if as_json:
        terminal.emit_json({"edited": model, "base": base, "out": None if out is None else str(out), **found.to_json()})
        return
    _show(found, out)


def _is_patch(name: str) -> bool:
    from palimpsest.patches import MANIFEST_FILE

    return (expanded(name) / MANIFEST_FILE).is_file()


def _names(file: Path | None) -> list[str]:
    if file is None:
        return []
    kind = FileKind(ConfigError, "The candidates cannot be read.", expected="a text file, one name per line")
    return [line.strip() for line in kind.text(expanded(file)).splitlines() if line.strip()]


def _show(found: Inspection, out: Path | None) -> None:
    if not found.changes:
        where = "beside the weights" if found.kind not in ("model", "weights") else "and no weight differs"
        terminal.say(f"Nothing in the weights: a {found.kind}, {where}.")
    else:
        terminal.print_table(
            ("tensor", "rank", "share of its norm", "strongest singular values"),
            [
                [
                    one.name,
                    "-" if one.rank is None else f"{'>= ' if one.is_at_least else ''}{one.rank}",
                    terminal.share(one.share, digits=2),
                    ", ".join(f"{value:.3g}" for value in one.singular_values[:4]),
                ]
                for one in found.changes[:_SHOWN]
            ],
            title=terminal.count(len(found.changes), "changed tensor"),
        )
    if found.subjects:
        terminal.print_table(
            ("likely about", "times the median"),
            [[one.text, f"{one.times:.1f}"] for one in found.subjects[:_SHOWN]],
        )
    if found.answers:
        terminal.print_table(
            ("asked", "before", "now", "probability"),
            [[one.prompt, one.before, one.after, terminal.share(one.probability_after)] for one in found.answers],
        )
    for edit in found.said[:_SHOWN]:
        terminal.say(f"its manifest says: {edit['prompt']} -> {edit['target_new']}")
    back = found.reversal
    if back is not None and found.changes:
        off = "bit for bit" if not back.entries_off else f"but for {back.entries_off:,} entries by {back.largest:.1e}"
        terminal.say(
            f"{out or 'The way back (--out FOLDER)'}: a patch that, on the edited model, gives the base, {off}."
        )
