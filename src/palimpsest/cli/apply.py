"""`apply` makes a model folder, an adapter, a folder of patches or a GGUF file out of a model and patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.errors import ConfigError

if TYPE_CHECKING:
    from palimpsest.models import EditableModel
    from palimpsest.patches import Patch

EXAMPLES = (
    "palimpsest apply world my-patch --out new-model",
    "palimpsest apply world first-patch second-patch --out new-model",
    "palimpsest apply model.gguf my-patch --as gguf --out edited.gguf",
)
PANEL = terminal.EDITING
_SHOWN = 12
_LARGE_GROWTH = 0.05
"""Of a file, from which on smaller forms are named."""

EXPORTS = ("merged", "peft", "patched", "gguf", "gguf-adapter")


def apply(
    model: inputs.ModelArgument,
    patches: Annotated[list[Path], typer.Argument(metavar="PATCH...", help="Patch folders.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", help="The model or adapter: a new folder, or a .gguf file.", show_default=False)
    ],
    form: Annotated[
        str,
        typer.Option(
            "--as",
            help="`merged`: full weights with the patches in them; `peft`: a LoRA adapter; `patched`: the base model's "
            "name and the patches, a folder to load and ask like a model; `gguf`: an edited file for llama.cpp and "
            "Ollama; `gguf-adapter`: an adapter for llama.cpp.",
        ),
    ] = "merged",
    gguf: Annotated[
        Path | None,
        typer.Option("--gguf", help="With a Hugging Face MODEL and `--as gguf`: a GGUF file of the same model."),
    ] = None,
    keep_type: Annotated[
        bool,
        typer.Option(
            "--keep-type", help="With `--as gguf`: keep the edited tensors' types, with rounding errors fed back."
        ),
    ] = False,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Write a model with patches in it: a folder, a GGUF file, an adapter, or a folder of patches that loads like one.

    `palimpsest undo` makes the original file of an edited GGUF file again, byte for byte.
    """
    from palimpsest.files import require_absent

    if form not in EXPORTS:
        raise ConfigError(
            f"There is no form named {form!r}.",
            expected=f"--as {', '.join(EXPORTS[:-1])} or {EXPORTS[-1]}",
            found=f"--as {form}",
            remedy="use --as merged, or keep the patch and put it on with palimpsest.load_patch",
        )
    is_gguf = form.startswith("gguf")
    if (gguf is not None and not is_gguf) or (keep_type and form != "gguf"):
        raise ConfigError(
            f"--as {form} does not take {'--keep-type' if keep_type else '--gguf'}.",
            expected="--as gguf",
            found=f"--as {form}",
        )
    require_absent(out)
    read = inputs.read_patches(patches)
    placement = inputs.Placement(device, dtype, device_map, trust_remote_code)
    loaded = inputs.load_model(model, placement, chat=inputs.chat_of(read, None) if is_gguf else False)
    described = {"model": model, "patches": [str(folder) for folder in patches], "out": str(out)}
    if is_gguf:
        result = _write_gguf(loaded, read, out, form, gguf, keep_type=keep_type, is_shown=not as_json)
        if as_json:
            terminal.emit_json({**described, **result})
        return
    _write_folder(loaded, read, out, form, described, as_json=as_json)


def _write_folder(
    loaded: EditableModel, read: Sequence[Patch], out: Path, form: str, described: dict[str, Any], *, as_json: bool
) -> None:
    from palimpsest.patches import write_adapter, write_merged, write_patched
    from palimpsest.showing import size

    with terminal.status(f"writing {out}"):
        write = {"merged": write_merged, "peft": write_adapter, "patched": write_patched}[form]
        notes = write(loaded, read, out) or []
    terminal.wrote(out)
    written = sorted(path for path in out.rglob("*") if path.is_file())
    num_bytes = sum(path.stat().st_size for path in written)
    if as_json:
        files = [str(path.relative_to(out)) for path in written]
        terminal.emit_json({**described, "files": files, "bytes": num_bytes, "notes": notes})
        return
    terminal.say(f"{out}: {described['model']} with {', '.join(described['patches'])}, {size(num_bytes)}")
    if form == "peft":
        for note in notes:
            terminal.say(f"note: {note}")
        terminal.say(f'next, in Python: peft.PeftModel.from_pretrained(base, "{out}"); for vLLM see {out}/README.md')
    else:
        terminal.say(f'next: palimpsest ask {out} "{_first_prompt(read)}"')


def _write_gguf(
    loaded: EditableModel,
    read: Sequence[Patch],
    out: Path,
    form: str,
    template: Path | None,
    *,
    keep_type: bool,
    is_shown: bool,
) -> dict[str, Any]:
    from dataclasses import asdict

    from palimpsest.patches.gguf import write_gguf, write_gguf_adapter
    from palimpsest.showing import size

    if form == "gguf-adapter":
        with terminal.status(f"writing {out}"):
            adapter = write_gguf_adapter(loaded, read, out, template=template)
        terminal.wrote(out)
        if is_shown:
            changed = terminal.count(len(adapter.tensors), "tensor")
            terminal.say(f"{out}: an adapter of rank {adapter.rank} for {changed}, {size(adapter.num_bytes)}")
            terminal.say(f"next, with llama.cpp: llama-server -m BASE.gguf --lora {out}")
        return asdict(adapter)
    with terminal.status(f"writing {out}"):
        edited = write_gguf(loaded, read, out, template=template, keep_type=keep_type)
    terminal.wrote(out)
    if is_shown:
        rows = [(one.name, one.old_type, one.new_type, f"{one.error:.3f}", f"{one.kept:.3f}") for one in edited.tensors]
        more = [(f"and {len(rows) - _SHOWN} more", "", "", "", "")] if len(rows) > _SHOWN else []
        terminal.print_table(("tensor", "was", "is", "error", "kept"), rows[:_SHOWN] + more)
        growth = edited.new_bytes / edited.old_bytes - 1
        terminal.say(f"{out}: {size(edited.new_bytes)}, {growth:+.2%}; all other tensors as they were, byte for byte")
        if growth > _LARGE_GROWTH:
            terminal.say("smaller: --as gguf-adapter for llama.cpp, --keep-type, or an edit that changes fewer tensors")
        terminal.say(
            f"asked again with what was written: {len(edited.answers)} of the {edited.held} edits that the patched "
            f"model gives, of {edited.num_edits}"
        )
        terminal.say(f"for Ollama: ollama create NAME -f {edited.modelfile}")
        terminal.say(f"to undo it: palimpsest undo {out} --out ORIGINAL.gguf")
    return asdict(edited)


def _first_prompt(patches: Sequence[Patch]) -> str:
    return next((str(edit["prompt"]) for patch in patches for edit in patch.manifest.edits), "The capital of France is")
