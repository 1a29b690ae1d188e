"""The state of a sequence: the subjects edited so far, at which later gates are to be quiet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from palimpsest.errors import DataError
from palimpsest.files import parse_json
from palimpsest.methods.base import MethodState
from palimpsest.methods.states import foreign_state
from palimpsest.methods.subject_neurons.quiet import Readings, as_words
from palimpsest.models import EditableModel
from palimpsest.requests import EditRequest


@dataclass(frozen=True)
class EditedSubjects(MethodState):
    """What a layer's MLP reads at the subjects edited so far.

    Arguments:
        subjects: their names, as `as_words` writes them.
        vectors: (vectors, width).
        subject_of: (vectors,), index of each one's subject.
    """

    subjects: tuple[str, ...]
    vectors: Tensor
    subject_of: Tensor

    @classmethod
    def of(cls, requests: Sequence[EditRequest], own: Tensor) -> Self:
        """Those of some facts: `own` (facts, contexts, width)."""
        subject_of = torch.arange(len(own), device=own.device).repeat_interleave(own.shape[1])
        return cls(tuple(as_words(request.subject or "") for request in requests), own.flatten(0, 1), subject_of)

    def readings(self) -> Readings:
        """The same as texts that name their subject only."""
        return Readings(self.subjects, self.vectors, self.subject_of)

    def joined(self, later: EditedSubjects) -> EditedSubjects:
        """Both."""
        both = self.readings().joined(later.readings())
        return EditedSubjects(both.texts, both.vectors, both.text_of)

    def tensors(self) -> dict[str, Tensor]:
        """See `MethodState.tensors`."""
        names = torch.tensor(list(json.dumps(self.subjects).encode()), dtype=torch.uint8)
        return {"vectors": self.vectors, "subject_of": self.subject_of, "subjects": names}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> EditedSubjects:
        """See `MethodState.from_tensors`."""
        with suppress(KeyError, ValueError, DataError, RuntimeError):
            subjects = tuple(map(str, parse_json(bytes(tensors["subjects"].tolist()).decode())))
            vectors, subject_of = tensors["vectors"], tensors["subject_of"]
            is_whole = vectors.ndim == 2 and subject_of.shape == vectors.shape[:1] and bool(vectors.isfinite().all())
            if is_whole and bool(((subject_of >= 0) & (subject_of < len(subjects))).all()):
                return cls(subjects, vectors, subject_of)
        raise DataError(
            "The state's tensors are not those of subject-neurons.",
            expected="`subjects`, finite `vectors` of shape (vectors, width), and `subject_of` of shape (vectors,)",
            found=", ".join(f"{name} {tuple(one.shape)}" for name, one in tensors.items()) or "nothing",
            remedy="begin the sequence anew",
        )

    @staticmethod
    def before(state: MethodState | None, model: EditableModel) -> EditedSubjects:
        """The subjects of earlier edits. Raises `ConfigError` for another method's or another model's state."""
        width = model.sites.d_model
        if state is None:
            nothing = torch.zeros(0, width, device=model.device)
            return EditedSubjects((), nothing, torch.zeros(0, dtype=torch.long, device=model.device))
        if not isinstance(state, EditedSubjects) or state.vectors.shape[1] != width:
            found = f" of width {state.vectors.shape[1]}" if isinstance(state, EditedSubjects) else ""
            expected = f"the state that subject-neurons returned, of width {width}"
            raise foreign_state(expected, type(state).__name__ + found, place="on this model")
        return EditedSubjects(state.subjects, state.vectors.to(model.device), state.subject_of.to(model.device))
