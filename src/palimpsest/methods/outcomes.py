"""The outcome of an edit: patch, state of a sequential method, diagnostics. Patch and state are saved together.

A patch is a folder and a state is a file, so no single rename puts both in place. The state is first written whole
under a hidden name, with the digest of the manifest that it belongs to; the folder's rename decides; then the state
takes its place. Whoever reads a state finishes what a killed process began, or drops it if there is no such folder.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from palimpsest.errors import DataError, OutputError
from palimpsest.files import FileKind, new_file, new_folder, require_absent, require_apart, short_name, write_tensors
from palimpsest.patches import MANIFEST_FILE, Patch, WeightPatch
from palimpsest.provenance import file_digest
from palimpsest.showing import counted, html_table, named

_STATE = FileKind(
    DataError,
    "A method's state cannot be read.",
    expected="a file that the state's `save` wrote",
    remedy="begin the sequence anew",
)


class MethodState(ABC):
    """The state of a sequential method between calls. It is passed in and returned, never global."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The state whose `tensors` these are."""

    def save(self, path: str | Path) -> None:
        """Writes it to a safetensors file, whole or not at all. Raises `OutputError` where it cannot be written."""
        with new_file(Path(path)) as draft:
            self.write(draft)

    def write(self, draft: Path, **texts: str) -> None:
        """Writes it to a file that is still a draft, with texts to keep beside it."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        write_tensors(tensors, draft, metadata={"state": type(self).__name__, **texts})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote. Raises `DataError` for a file that is damaged or another method's."""
        file = Path(path)
        settle_state(file)
        stored = _STATE.tensors(file, integers=True)
        if stored.texts.get("state") != cls.__name__:
            found = str(stored.texts.get("state"))
            raise DataError("This is another method's state.", expected=cls.__name__, found=found, where=str(path))
        with _STATE.reading(file):
            return cls.from_tensors(stored.tensors)


@dataclass
class Diagnostics:
    """How an edit went.

    Arguments:
        seconds: by stage; `total` is all of them.
        peak_memory_bytes: peak of the process (or of the CUDA device) at the end.
        losses: request id to its loss after each pass.
        facts: other numbers worth keeping: norms, steps, counts.
        notes: sentences a user should read.
        replies: what the model wrote after each request's prompt before the edit and with it, from a method that asks;
            see `models.generation.replies_to`.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    losses: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    replies: tuple[list[str], list[str]] | None = None


@dataclass(frozen=True)
class EditOutcome:
    """The result of `edit`.

    Arguments:
        patch: what would have to change; the model itself has not been changed.
        state: to be passed to the next call of a sequential method; `None` for those that carry nothing.
        diagnostics: how it went.
    """

    patch: Patch
    state: MethodState | None
    diagnostics: Diagnostics

    def __repr__(self) -> str:
        checked = self.diagnostics.facts.get("checked", {})
        holding = f"{checked['hold']} of {counted(checked['edits'], 'edit')} hold" if checked else ""
        seconds = self.diagnostics.seconds.get("total")
        return named(self, repr(self.patch), holding, "" if seconds is None else f"{seconds:.2f} s")

    def _repr_html_(self) -> str:
        """Each edit before and after: what the model wrote, from a method that asks it, else the two answers.

        Beside them the probability of the new answer behind its prompt.
        """
        edits, replies = self.patch.manifest.edits, self.diagnostics.replies
        likely = self.diagnostics.facts.get("checked", {}).get("probability", {})
        before: Sequence[str | None] = [edit.get("target_old") for edit in edits]
        after: Sequence[str | None] = [edit.get("target_new") for edit in edits]
        # Whoever makes an outcome without `Method.edit` may have asked repeated requests once.
        if replies is not None and len(replies[0]) == len(edits):
            before, after = replies
        rows = [
            (edit.get("prompt"), old, new, likely.get(edit.get("id")))
            for edit, old, new in zip(edits, before, after, strict=True)
        ]
        notes = "".join(f"<br>{escape(note)}" for note in self.diagnostics.notes)
        return html_table(repr(self), ("prompt", "before", "after", "probability of the new answer"), rows) + notes

    @property
    def weight_patch(self) -> WeightPatch:
        """The patch of a method whose capabilities say that it changes weights. Raises `TypeError` for another one."""
        if not isinstance(self.patch, WeightPatch):
            name, kind = self.patch.manifest.method, type(self.patch).__name__
            raise TypeError(f"method {name!r} says it gives weight patches and gave a {kind}")
        return self.patch

    def save(self, path: str | Path, *, state: str | Path | None = None) -> None:
        """Writes the patch, and with it the state: both or neither, also where the process is killed between the two.

        Arguments:
            path: a new folder.
            state: a file, instead of the former one; left out, the state is not kept.

        Raises `OutputError` when the folder exists, the two have one place, or the disk refuses.
        """
        if state is None or self.state is None:
            self.patch.save(path)
            return
        folder, file = Path(path), Path(state)
        require_absent(folder)
        require_absent(file, overwrite=True)
        require_apart(folder, file)
        pending = _pending(file)
        try:
            with new_folder(folder) as draft:
                self.patch.write(draft)
                with new_file(pending) as waiting:
                    self.state.write(
                        waiting, patch=os.path.abspath(folder), manifest=file_digest(draft / MANIFEST_FILE)
                    )
            pending.replace(file)
        except OSError as error:
            raise OutputError(
                "The state could not be put in its place.",
                expected=f"{file} to be replaced by {pending.name} beside it",
                found=error.strerror or str(error),
                where=str(file),
                remedy="the patch is written; the next edit with this --state finishes it",
            ) from error
        finally:
            if not os.path.exists(folder):
                with contextlib.suppress(OSError):
                    pending.unlink()


def settle_state(file: Path) -> None:
    """Finishes what a killed process began: a state whose patch is there takes its place, any other is dropped."""
    pending = _pending(file)
    if not os.path.isfile(pending):
        return
    try:
        texts = _STATE.tensors(pending, integers=True).texts
        manifest = Path(texts["patch"]) / MANIFEST_FILE
        is_complete = manifest.is_file() and file_digest(manifest) == texts["manifest"]
    except (DataError, KeyError):
        is_complete = False
    with _STATE.reading(pending):
        if is_complete:
            pending.replace(file)
        else:
            pending.unlink()


def _pending(file: Path) -> Path:
    return file.with_name(f".{short_name(file.name)}.pending")
