"""The state of a sequence: the subjects edited so far, at which later gates are to be quiet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.errors import DataError
from palimpsest.files import parse_json
from palimpsest.methods.base import MethodState
from palimpsest.methods.states import foreign_state
from palimpsest.methods.subject_neurons.quiet import Readings
from palimpsest.models import EditableModel


@dataclass(frozen=True)
class EditedSubjects(MethodState):
    """What a layer's MLP reads at the subjects edited so far, as of texts that name these only."""

    readings: Readings

    @property
    def subjects(self) -> tuple[str, ...]:
        """Their names, as `as_words` writes them."""
        return self.readings.texts

    def tensors(self) -> dict[str, Tensor]:
        """See `MethodState.tensors`."""
        names = torch.tensor(list(json.dumps(self.subjects).encode()), dtype=torch.uint8)
        return {"vectors": self.readings.vectors, "subject_of": self.readings.text_of, "subjects": names}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> EditedSubjects:
        """See `MethodState.from_tensors`."""
        with suppress(KeyError, ValueError, DataError, RuntimeError):
            subjects = tuple(map(str, parse_json(bytes(tensors["subjects"].tolist()).decode())))
            vectors, subject_of = tensors["vectors"], tensors["subject_of"]
            is_whole = vectors.ndim == 2 and subject_of.shape == vectors.shape[:1] and bool(vectors.isfinite().all())
            if is_whole and bool(((subject_of >= 0) & (subject_of < len(subjects))).all()):
                return cls(Readings(subjects, vectors, subject_of))
        raise DataError(
            "The state's tensors are not those of subject-neurons.",
            expected="`subjects`, finite `vectors` of shape (vectors, width), and `subject_of` of shape (vectors,)",
            found=", ".join(f"{name} {tuple(one.shape)}" for name, one in tensors.items()) or "nothing",
            remedy="begin the sequence anew",
        )

    @staticmethod
    def before(state: MethodState | None, model: EditableModel) -> Readings:
        """Those of earlier edits. Raises `ConfigError` for another method's or another model's state."""
        width = model.sites.d_model
        if state is None:
            return Readings.none(model)
        found = state.readings if isinstance(state, EditedSubjects) else None
        if found is None or found.vectors.shape[1] != width:
            of_width = "" if found is None else f" of width {found.vectors.shape[1]}"
            expected = f"the state that subject-neurons returned, of width {width}"
            raise foreign_state(expected, type(state).__name__ + of_width, place="on this model")
        return Readings(found.texts, found.vectors.to(model.device), found.text_of.to(model.device))
