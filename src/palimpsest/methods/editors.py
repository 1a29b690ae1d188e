"""Trained editors: a folder of tensors and a record, bound to one model, and where such folders are looked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from palimpsest.errors import ConfigError, DataError, ModelError
from palimpsest.files import FileKind, cache_folder, expanded, new_folder, write_json, write_tensors
from palimpsest.models import ChatRecord, EditableModel, fingerprint_differences
from palimpsest.patches import checked_base, checked_chat
from palimpsest.provenance import file_digest, now, versions
from palimpsest.world import bundled_editors

FORMAT_VERSION = 1
TENSORS, RECORD = "editor.safetensors", "editor.json"
EDITOR = FileKind(
    DataError,
    "This is not a readable editor.",
    expected=f"a folder with {RECORD} and {TENSORS}",
    remedy="point to a folder that `palimpsest train --out` wrote",
)


class EditorRecord(BaseModel):
    """The description of an editor. Written beside its tensors as `editor.json`."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    method: str
    preset: str | None = None
    training: dict[str, Any]
    """Every option of the training with its value, defaults included."""
    seed: int
    model: str
    base: Annotated[dict[str, Any], AfterValidator(checked_base)]
    """Fingerprint of the model it was trained for."""
    tokenizer: str
    chat: Annotated[ChatRecord | None, AfterValidator(checked_chat)] = None
    data: dict[str, Any]
    """What it was trained on: numbers of edits and a fingerprint."""
    curve: list[dict[str, Any]]
    """One entry a validation; see `training.metatraining.Course`."""
    best_step: int
    seconds: float
    peak_memory_bytes: int
    num_parameters: int
    versions: dict[str, str] = Field(default_factory=versions)
    created: str = Field(default_factory=now)
    tensors_sha256: str | None = None


@dataclass(frozen=True)
class TrainedEditor:
    """A trained editor: tensors by name, and their origin."""

    tensors: Mapping[str, Tensor]
    record: EditorRecord

    def save(self, path: str | Path, *, also: Callable[[Path], None] = lambda _draft: None) -> None:
        """Writes a new folder that appears complete or not at all. Raises `OutputError` when it exists.

        Arguments:
            path: its name.
            also: puts further files into the folder before it appears.
        """
        with new_folder(Path(path)) as draft:
            stored = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
            write_tensors(stored, draft / TENSORS)
            record = self.record.model_copy(update={"tensors_sha256": file_digest(draft / TENSORS)})
            write_json(draft / RECORD, record.model_dump(), indent=1)
            also(draft)

    @classmethod
    def load(cls, path: str | Path) -> TrainedEditor:
        """Reads what `save` wrote. Raises `DataError` for a folder that is invalid, truncated or altered."""
        folder = expanded(path)
        record = read_record(folder)
        with EDITOR.reading(folder / TENSORS):
            if file_digest(folder / TENSORS) != record.tensors_sha256:
                found = f"{TENSORS} with another SHA-256 than was saved: truncated or altered"
                raise EDITOR.refused(folder, found)
        return cls(EDITOR.tensors(folder / TENSORS, integers=True).tensors, record)


def read_record(folder: Path) -> EditorRecord:
    """Reads and checks only an editor's record. Raises `DataError` as `TrainedEditor.load` does."""
    file = folder / RECORD
    if not file.is_file():
        raise EDITOR.refused(folder, "nothing of that name" if not folder.exists() else f"no {RECORD}")
    return EDITOR.record(file, EditorRecord, known_format=FORMAT_VERSION, what="editor")


def require_method(record: EditorRecord, method: str) -> None:
    """Raises `ConfigError` for another method's editor."""
    if record.method != method:
        raise ConfigError(
            f"The editor was trained for the method {record.method!r}.",
            expected=f"an editor for {method!r}",
            found=f"one for {record.method!r}",
            where="option editor",
            remedy=f"take --method {record.method}, or another editor",
        )


def require_model(record: EditorRecord, model: EditableModel) -> None:
    """Raises `ModelError`, which says what differs, for another model's editor."""
    lines = disagreements(record, model)
    if lines:
        raise ModelError(
            "The editor was trained for another model.",
            expected=f"the model it was trained for ({record.model})",
            found="; ".join(lines[:6]),
            where=f"model {model.name!r}",
            remedy=f"load that model, or train one for this: palimpsest train {record.method} {model.name} ...",
        )


def disagreements(record: EditorRecord, model: EditableModel) -> list[str]:
    """Lists differences between the model and the one that an editor was trained for; empty if they are the same."""
    lines = fingerprint_differences(record.base, model.fingerprint(), owner="the editor")
    if record.tokenizer != model.tokenizer_digest:
        lines.append("the tokenizer is another one")
    if record.chat != (model.chat.at_once().to_dict() if model.chat is not None else None):
        lines.append("one is asked in a chat, the other with plain prompts, or the chats differ")
    return lines


def find_editor(method: str, model: EditableModel) -> Path:
    """The editor for a method and model among the bundled and cached ones. Raises `ConfigError` if there is none."""
    damaged = []
    for folder in _known_editors():
        try:
            record = read_record(folder)
        except DataError:
            # One that is damaged is no reason to do without the others.
            damaged.append(folder.name)
            continue
        if record.method == method and not disagreements(record, model):
            return folder
    raise ConfigError(
        f"The method {method!r} needs an editor trained for this model, and there is none.",
        expected=f"an editor for {model.name!r}, bundled, in {_cached()}, or given",
        found=f"none, and unreadable ones: {', '.join(damaged)}" if damaged else "none",
        where="option editor",
        remedy=f"palimpsest train {method} {model.name} --data FILE --out my-{method}, then --editor my-{method}",
    )


def _known_editors() -> Iterator[Path]:
    for place in filter(None, (bundled_editors(), _cached())):
        yield from sorted(file.parent for file in place.glob(f"*/{RECORD}"))


def _cached() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "editors"
