"""Patches that send the prompts in an edit's scope to another model: SERAC's memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter
from torch import Tensor

from palimpsest.errors import DataError, PatchError
from palimpsest.files import FileKind, said
from palimpsest.models import most_similar
from palimpsest.models.routing import Route
from palimpsest.models.scoped import ScopedEditor, ScopedEditorRecord, edited_prompt, require_same_tokenizer
from palimpsest.patches.base import Manifest, Patch
from palimpsest.patches.memory import MemoryEntry, MemoryPatch, read_entries
from palimpsest.provenance import file_digest

if TYPE_CHECKING:
    from palimpsest.models import EditableModel, StackedChange

_EDITOR = "editor/"
_EDITOR_FILE = FileKind(PatchError, "A trained editor cannot be read.", expected="the file that training wrote")
_PROMPTS_AT_ONCE = 64
# What transformers and tokenizers raise for configs and tokenizers that are none.
_NOT_AN_EDITOR = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError)


@dataclass(frozen=True)
class EditorReference:
    """Where the weights of a trained editor are, and which they are.

    Arguments:
        file: a safetensors file.
        sha256: its digest.
    """

    file: str
    sha256: str


@dataclass(frozen=True)
class Routing:
    """How a memory answers; memories that differ in it cannot become one.

    Arguments:
        editor: where the trained editor is.
        record: what it is.
        threshold: a prompt is in scope from this probability on.
        is_soft: every prompt gets a mixture of both answers, in the proportions of the probability, with no threshold.
        reserve: tokens of the counterfactual model's context that are left free for an answer.
        is_self_contained: the patch is saved with the editor's weights, so that it needs no other folder.
    """

    editor: EditorReference
    record: ScopedEditorRecord
    threshold: Annotated[float, Field(gt=0)] = 0.5
    is_soft: bool = False
    reserve: int = 24
    is_self_contained: bool = False


class RouterPatch(MemoryPatch):
    """Prompts in the scope of an entry are answered by the counterfactual model, which reads the entry first.

    Arguments:
        entries: the edits.
        index: (entries, width), what the scope classifier keeps of their prompts.
        manifest: where they came from.
        routing: how they answer.
        editor: the trained editor, where it is at hand; otherwise it is read when the patch is put on a model.
        weights: the editor's weights, of a patch that was saved with them.
    """

    kind = "routers"

    def __init__(
        self,
        entries: Sequence[MemoryEntry],
        index: Tensor,
        manifest: Manifest | None = None,
        *,
        routing: Routing,
        editor: ScopedEditor | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(entries, index, manifest)
        self.routing, self._editor, self._weights = routing, editor, weights

    def holding(self, entries: Sequence[MemoryEntry], index: Tensor, manifest: Manifest) -> RouterPatch:
        """See `MemoryPatch.holding`."""
        return RouterPatch(entries, index, manifest, routing=self.routing, editor=self._editor, weights=self._weights)

    def shared(self) -> dict[str, Any]:
        """See `MemoryPatch.shared`."""
        return {**asdict(self.routing), "record": self.routing.record.model_dump()}

    def tensors(self) -> dict[str, Tensor]:
        """See `Patch.tensors`; with the editor's weights where the patch is to need no other folder."""
        weights: Mapping[str, Tensor] = {}
        if self.entries and self.routing.is_self_contained:
            weights = self._weights or (self._editor.state_dict() if self._editor is not None else self._read())
        return {**super().tensors(), **{_EDITOR + name: tensor for name, tensor in weights.items()}}

    @classmethod
    def from_saved(cls, tensors: Mapping[str, Tensor], manifest: Manifest, parts: Mapping[str, Patch]) -> RouterPatch:
        """See `Patch.from_saved`."""
        payload = manifest.payload
        entries, index = read_entries(tensors, payload)
        routing = TypeAdapter(Routing).validate_python(
            {name: value for name, value in payload.items() if name != "entries"}
        )
        weights = {name.removeprefix(_EDITOR): one for name, one in tensors.items() if name.startswith(_EDITOR)}
        return cls(entries, index, manifest, routing=routing, weights=weights or None)

    def put_on(self, model: EditableModel) -> StackedChange:
        """See `Patch.put_on`. Raises `PatchError` when the editor is not where it was, or is another one."""
        router = None
        if self.entries:
            editor = self.editor_for(model)
            index, edits = self.index.to(model.device), [entry.prompt for entry in self.entries]

            def router(prompts: Sequence[str]) -> list[Route | None]:
                found: list[Route | None] = []
                for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
                    found += self._routes(editor, edits, index, prompts[start : start + _PROMPTS_AT_ONCE])
                return found

        return model.weights.push(self.manifest.label, {}, origin=self, router=router)

    def editor_for(self, model: EditableModel) -> ScopedEditor:
        """The trained editor, read once. Raises as `put_on` does."""
        if self._editor is None:
            weights = self._weights or self._read()
            try:
                self._editor = ScopedEditor.from_record(self.routing.record, weights, model)
            except _NOT_AN_EDITOR as error:
                raise self._missing(f"weights or a record that do not fit: {said(error)}") from error
        require_same_tokenizer(self._editor.reader.tokenizer, model, name="of the patch")
        return self._editor

    def _routes(
        self, editor: ScopedEditor, edits: Sequence[str], index: Tensor, prompts: Sequence[str]
    ) -> list[Route | None]:
        """Where each prompt goes: to the counterfactual model behind the most probable entry, or nowhere else."""
        found: list[Route | None] = []
        for prompt, log_probabilities in zip(prompts, editor.scope.against(edits, index, prompts), strict=True):
            [row] = most_similar(log_probabilities, edits, 1)
            found.append(self._route(editor, self.entries[row], prompt, float(log_probabilities[row])))
        return found

    def _route(self, editor: ScopedEditor, entry: MemoryEntry, prompt: str, log_probability: float) -> Route | None:
        weight = exp(log_probability)
        if weight == 0.0 or (not self.routing.is_soft and log_probability < log(self.routing.threshold)):
            return None
        text = edited_prompt(entry.prompt, entry.answer, prompt)
        if not _fits(editor.reader, text, self.routing.reserve):
            return None
        return Route(text, editor.reader, weight=weight if self.routing.is_soft else 1.0)

    def _read(self) -> dict[str, Tensor]:
        file = Path(self.routing.editor.file)
        if not os.path.isfile(file):
            raise self._missing("nothing of that name")
        if file_digest(file) != self.routing.editor.sha256:
            raise self._missing(f"another editor, SHA-256 {file_digest(file)}")
        return _EDITOR_FILE.tensors(file, integers=True).tensors

    def _missing(self, found: str) -> PatchError:
        return PatchError(
            "The trained editor that the patch refers to is not there.",
            expected=f"SHA-256 {self.routing.editor.sha256}",
            found=found,
            where=self.routing.editor.file,
            remedy="put the editor's folder back; or make the edits again, with the option self_contained, which saves"
            " the editor with the patch",
        )


def _fits(reader: EditableModel, text: str, reserve: int) -> bool:
    try:
        length = len(reader.encode(text))
    except DataError:
        return False
    return reader.room_after(length) >= reserve
