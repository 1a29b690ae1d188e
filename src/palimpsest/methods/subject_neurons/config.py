"""Options of `subject-neurons`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from palimpsest.locating import ContextOptions
from palimpsest.locating.target_vector import TargetOptions
from palimpsest.methods.base import MethodConfig
from palimpsest.methods.subject_neurons.gates import GateOptions
from palimpsest.statistics import OWN_WRITING


class SubjectNeuronsConfig(MethodConfig):
    """Options of `subject-neurons`."""

    layer: int | Literal["auto"] = "auto"
    """The layer whose MLP the neurons stand beside; negative numbers count from the last. `auto`: the one at a seventh
    of the model's depth, the same for all facts."""
    targets: TargetOptions = TargetOptions()
    """The search for values."""
    contexts: ContextOptions = ContextOptions()
    """Texts put in front of the prompts: a gate opens behind these too."""
    search_in: Literal["all-contexts", "prompt"] = "all-contexts"
    """Where the search looks for the answer: behind every context, or at the prompts alone."""
    gate: GateOptions = GateOptions()
    """How the gates are fitted, and where they open."""
    others: int = Field(default=8, ge=1)
    """Well-known subjects about which each prompt is asked, for its gate to be quiet there."""
    alike: int = Field(default=48, ge=0)
    """Names that begin or end as the subject does, if that has several words, for the same."""
    text: str = OWN_WRITING
    """Ordinary text, for the same: `own`, what the model itself writes; `wikipedia`, `wikitext`, `world`; a text file,
    a .jsonl, a .parquet, or a folder of them; owner/name of a data set on the hub."""
    max_tokens: int | None = Field(default=None, ge=100)
    """Tokens of it to read. Left out, 7,500; 16,000 where ten facts or more stand together, those of earlier edits
    included: the more gates there are, the likelier one of them opens where it should not."""
    damping: float = Field(default=0.01, gt=0)
    """Ridge of the text's covariance, as a share of its mean eigenvalue."""

    @model_validator(mode="after")
    def _is_one_value(self) -> Self:
        if self.targets.chunk:
            raise ValueError("a gate has one value, at the subject: set targets.chunk = 0")
        return self
