"""One look at an edited model or at a patch: changes, suspects, answers, the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from palimpsest.inspecting.answers import Flip, changed_answers
from palimpsest.inspecting.changes import WeightChange, described, patch_between
from palimpsest.inspecting.reversal import Reversal, reversal_of
from palimpsest.inspecting.suspects import (
    CandidateKeys,
    Direction,
    Suspect,
    candidates_from,
    likely_subjects,
    strongest_directions,
)
from palimpsest.models import EditableModel
from palimpsest.patches import Patch, WeightPatch
from palimpsest.stopwatch import Progress, silent

VOCABULARY = 10_000
"""Default number of candidate words of the vocabulary."""
_ASKED = 5


@dataclass(frozen=True)
class Inspection:
    """The findings.

    Arguments:
        changes: tensor by tensor.
        subjects: what the changes may be about.
        directions: what the strongest of them read and write.
        answers: what is answered otherwise about the subjects.
        reversal: the way back; None for a patch, which is taken off.
        kind: of the patch, or `model`.
        said: the edits that a patch's manifest states outright.
    """

    changes: tuple[WeightChange, ...]
    subjects: tuple[Suspect, ...]
    directions: tuple[Direction, ...]
    answers: tuple[Flip, ...]
    reversal: Reversal | None
    kind: str
    said: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON-ready, without the patch itself."""
        back = self.reversal
        return {
            "kind": self.kind,
            "changes": [asdict(one) for one in self.changes],
            "subjects": [asdict(one) for one in self.subjects],
            "directions": [asdict(one) for one in self.directions],
            "answers": [asdict(one) for one in self.answers],
            "reversal": None if back is None else {"entries_off": back.entries_off, "largest": back.largest},
            "said": list(self.said),
        }


def inspect_model(
    base: EditableModel,
    edited: EditableModel,
    *,
    candidates: Sequence[str] = (),
    vocabulary: int = VOCABULARY,
    progress: Progress = silent,
) -> Inspection:
    """Inspects the weights of an edited model against those of its base model.

    Arguments:
        candidates: texts that the changes may be about, beside words of the vocabulary.
        vocabulary: how many of these.

    Raises `ModelError` for two models of different parameters.
    """
    progress("inspecting", 0, 4)
    change = patch_between(base, edited)
    progress("inspecting", 1, 4)
    changes = described(base, change.deltas, is_rounded=True)
    subjects, directions = _suspects(base, change, candidates, vocabulary)
    progress("inspecting", 2, 4)
    asked = [one.text for one in subjects[:_ASKED]]
    answers = changed_answers(base, asked, edited=edited) if change.deltas else []
    progress("inspecting", 3, 4)
    back = reversal_of(base, edited, change)
    progress("inspecting", 4, 4)
    return Inspection(tuple(changes), tuple(subjects), tuple(directions), tuple(answers), back, "model")


def inspect_patch(
    base: EditableModel, patch: Patch, *, candidates: Sequence[str] = (), vocabulary: int = VOCABULARY
) -> Inspection:
    """The same of a patch on its base model; of one that changes no weights, what its manifest says."""
    said = tuple(patch.manifest.edits)
    if not isinstance(patch, WeightPatch):
        return Inspection((), (), (), (), None, patch.kind, said)
    changes = described(base, patch.deltas, is_rounded=False)
    subjects, directions = _suspects(base, patch, candidates, vocabulary)
    asked = [one.text for one in subjects[:_ASKED]]
    answers = changed_answers(base, asked, changed=base.patched(patch)) if patch.deltas else []
    return Inspection(tuple(changes), tuple(subjects), tuple(directions), tuple(answers), None, patch.kind, said)


def _suspects(
    base: EditableModel, patch: WeightPatch, candidates: Sequence[str], vocabulary: int
) -> tuple[list[Suspect], list[Direction]]:
    if not patch.deltas or base.is_encoder_decoder:
        return [], []
    texts = [*dict.fromkeys([*candidates, *candidates_from(base, vocabulary)])]
    with base.weights.without_changes():
        keys = CandidateKeys(base, texts)
        return likely_subjects(base, patch.deltas, keys), strongest_directions(base, patch.deltas, keys)
