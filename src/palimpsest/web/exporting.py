"""Downloads for visitors: the patches with the edits as a file, or a model or an adapter with them in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from palimpsest.errors import DataError, unknown_name
from palimpsest.files import new_folder
from palimpsest.patches import write_adapter, write_merged
from palimpsest.web.workbench import EditingDesk

EDITS_FILE = "edits.jsonl"
FORMS: dict[str, str] = {
    "patches": "the patches, the edits as a file, and the commands that put them on",
    "peft": "a LoRA adapter for peft, transformers and vLLM",
    "merged": "the whole model with the edits in its weights",
    "gguf": "the same as a file for llama.cpp and Ollama, where the model is a GGUF file",
}
"""What can be taken home, by name."""


def export(desk: EditingDesk, form: str, place: Path) -> Path:
    """Writes the patches that are on, in a form, as a zip archive in a folder; returns the archive.

    Raises `ConfigError` for an unknown form, `DataError` where no patch is on, `PatchError` for patches that have no
    such form, `OutputError` where the place cannot be written to.
    """
    if form not in FORMS:
        raise unknown_name("form of download", form, FORMS)
    if not desk.patches:
        raise DataError("There is nothing to download.", expected="an edit that is on", found="none on the stack")
    write: Callable[[EditingDesk, Path], None] = {
        "patches": _patches,
        "peft": _adapter,
        "merged": _merged,
        "gguf": _gguf,
    }[form]
    name = f"palimpsest-{form}"
    try:
        write(desk, place / name)
        return Path(shutil.make_archive(str(place / name), "zip", root_dir=place, base_dir=name))
    finally:
        shutil.rmtree(place / name, ignore_errors=True)


def _adapter(desk: EditingDesk, out: Path) -> None:
    with desk.bench.using(desk.model) as model:
        write_adapter(model, desk.patches, out)


def _merged(desk: EditingDesk, out: Path) -> None:
    with desk.bench.using(desk.model) as model:
        write_merged(model, desk.patches, out)


def _gguf(desk: EditingDesk, out: Path) -> None:
    from palimpsest.patches.gguf import write_gguf

    out.mkdir()
    with desk.using() as model:
        write_gguf(model, desk.patches, out / "edited.gguf")


def _patches(desk: EditingDesk, out: Path) -> None:
    entries = [entry for entry in desk.stack if entry.is_on]
    with new_folder(out) as draft:
        names = []
        for number, entry in enumerate(entries, 1):
            names.append(f"patch-{number}")
            entry.patch.write(draft / names[-1])
        lines = [json.dumps(entry.request.to_dict(), ensure_ascii=False) for entry in entries]
        (draft / EDITS_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (draft / "README.md").write_text(_commands(desk, entries[0].request.prompt, names), encoding="utf-8")


def _commands(desk: EditingDesk, prompt: str, names: list[str]) -> str:
    """How to use and to repeat what was done."""
    from shlex import quote

    model, first = quote(desk.model), quote(prompt)
    chat = "" if not desk.is_chat else " --chat --thinking" if desk.thinks else " --chat"
    on = " ".join(f"--patch {name}" for name in names)
    lines = [
        "# Edits made on the page",
        "",
        "Ask the model with them, verify the last one, or put them into the weights:",
        "",
        f"    palimpsest ask {model} {first} {on}{chat}",
        *(f"    palimpsest verify {model} {name}" for name in names if len(names) == 1),
        f"    palimpsest apply {model} {' '.join(names)} --out edited-model",
        "",
        "Make them again, all at once:",
        "",
        f"    palimpsest edit {model} --edits {EDITS_FILE} --out again{chat}",
        "",
    ]
    return "\n".join(lines)
