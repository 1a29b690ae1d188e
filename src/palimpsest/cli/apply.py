"""`apply` makes a model folder, an adapter or a folder of patches out of a model and patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.errors import ConfigError

if TYPE_CHECKING:
    from palimpsest.patches import Patch

EXAMPLES = (
    "palimpsest apply world my-patch --out new-model",
    "palimpsest apply world first-patch second-patch --out new-model",
)
PANEL = terminal.EDITING


EXPORTS = ("merged", "peft", "patched")


def apply(
    model: inputs.ModelArgument,
    patches: Annotated[list[Path], typer.Argument(metavar="PATCH...", help="Patch folders.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The model or adapter: a new folder.", show_default=False)],
    form: Annotated[
        str,
        typer.Option(
            "--as",
            help="`merged`: full weights with the patches in them; `peft`: a LoRA adapter; `patched`: the base model's "
            "name and the patches, a folder to load and ask like a model.",
        ),
    ] = "merged",
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Write a model folder with patches merged in, a LoRA adapter, or a folder of patches that loads like a model."""
    from palimpsest.files import require_absent

    if form not in EXPORTS:
        raise ConfigError(
            f"There is no form named {form!r}.",
            expected=f"--as {', '.join(EXPORTS[:-1])} or {EXPORTS[-1]}",
            found=f"--as {form}",
            remedy="use --as merged, or keep the patch and put it on with palimpsest.load_patch",
        )
    require_absent(out)
    read = inputs.read_patches(patches)
    loaded = inputs.load_model(model, inputs.Placement(device, dtype, device_map, trust_remote_code))
    from palimpsest.patches import write_adapter, write_merged, write_patched
    from palimpsest.showing import size

    with terminal.status(f"writing {out}"):
        write = {"merged": write_merged, "peft": write_adapter, "patched": write_patched}[form]
        write(loaded, read, out)
    terminal.wrote(out)
    written = sorted(path for path in out.rglob("*") if path.is_file())
    num_bytes = sum(path.stat().st_size for path in written)
    result = {
        "model": model,
        "patches": [str(folder) for folder in patches],
        "out": str(out),
        "files": [str(path.relative_to(out)) for path in written],
        "bytes": num_bytes,
    }
    if as_json:
        terminal.emit_json(result)
        return
    terminal.say(f"{out}: {model} with {', '.join(map(str, patches))}, {size(num_bytes)}")
    if form == "peft":
        terminal.say(f'next, in Python: peft.PeftModel.from_pretrained(base, "{out}")')
    else:
        terminal.say(f'next: palimpsest ask {out} "{_first_prompt(read)}"')


def _first_prompt(patches: Sequence[Patch]) -> str:
    return next((str(edit["prompt"]) for patch in patches for edit in patch.manifest.edits), "The capital of France is")
