"""The problem of a locate-then-edit method: facts in contexts, in layers of a model, against the keys of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import Field, model_validator
from torch import Tensor

from palimpsest.locating import ContextOptions, SubjectRows, chunk_rows, subject_rows, subject_vectors
from palimpsest.locating.target_vector import TargetOptions, TargetVectors, anchored_vectors, find_target_vectors
from palimpsest.methods.base import EditRun, MethodConfig
from palimpsest.models import EditableModel, Point
from palimpsest.models.sites import MLP_DOWN
from palimpsest.requests import EditRequest
from palimpsest.solve import Solution
from palimpsest.statistics import OWN_WRITING, StatisticsConfig


class LocateThenEditConfig(MethodConfig):
    """Options that locate-then-edit methods share."""

    layers: list[int] | Literal["auto"] = "auto"
    """Layers whose MLP is changed; negative numbers count from the last. `auto`: those that end at a seventh of the
    model's depth, the same for all facts."""
    num_layers: int | None = Field(default=None, ge=1)
    """How many layers `auto` takes; left out, all up to that depth, at most five."""
    targets: TargetOptions = TargetOptions()
    """The search for target vectors."""
    contexts: ContextOptions = ContextOptions()
    """Texts put in front of the prompts."""
    anchor: float | Literal["unedited"] | None = None
    """Length to which what the MLP writes with a target vector is brought, so that vectors do not grow with the edits
    before (NAS, arXiv:2602.02543): a number, or `unedited`, the mean over the call's facts of what they need in the
    model without any edit. Left out: each vector as it was found."""
    anchor_limit: float = Field(default=2.0, gt=1)
    """With an anchor: a fact whose vector is longer than this multiple of it is left out, and a note says so."""
    search_in: Literal["all-contexts", "prompt"] = "all-contexts"
    """Where the search looks for the answer: behind every context, as published, or at the prompts alone."""
    text: str = OWN_WRITING
    """Text whose keys stay what they are: `own`, what the model itself writes; `wikipedia`, `wikitext`, `world`; a text
    file, a .jsonl, a .parquet, or a folder of them; owner/name of a data set on the hub; or a folder of .npz files as
    published with ROME and MEMIT."""
    statistics: StatisticsConfig = StatisticsConfig()
    """How the second moments of that text's keys are taken."""

    @model_validator(mode="after")
    def _are_vectors_of_one_kind(self) -> Self:
        if self.anchor is not None and self.targets.chunk:
            raise ValueError("an anchor is for one vector at each subject: leave out anchor, or set targets.chunk = 0")
        return self


ConfigT = TypeVar("ConfigT", bound=LocateThenEditConfig)
ConfigOfProblem = TypeVar("ConfigOfProblem", bound=LocateThenEditConfig, covariant=True)
Solutions = dict[int, list[Solution]]
"""By layer, changes of its matrix, which add up."""


@dataclass(frozen=True)
class Problem(Generic[ConfigOfProblem]):
    """Everything that the mathematics of a method reads.

    Arguments:
        model: without the edits; whatever is put on it has to be taken off again.
        requests: the facts, distinct, with subjects unless their answers are written in chunks.
        layers: layers whose `mlp.down` is changed, ascending.
        templates: contexts, each ending with `{}` for the prompt; the first is `{}` alone.
        config: the method's options.
        metrics: by layer, what is known of a text's keys: a `Factorised` second moment or its `Spectrum`.
        run: where the time, the losses and what a user should read go.
    """

    model: EditableModel
    requests: Sequence[EditRequest]
    layers: Sequence[int]
    templates: Sequence[str]
    config: ConfigOfProblem
    metrics: Mapping[int, Any]
    run: EditRun

    def targets(self, layer: int, *, site: str = MLP_DOWN, companions: Sequence[str] = ()) -> TargetVectors:
        """The facts' target vectors at a layer; their records go to the diagnostics.

        Arguments:
            layer: where they are added.
            site: what writes them there.
            companions: sites that get a vector of their own in the search, which is dropped.
        """
        run = self.run
        with run.clock.stage("targets"):
            found = self._search(layer, site, companions)
            if self.config.anchor is not None:
                found = self._anchored(found, layer, site=site, companions=companions)
        run.diagnostics.losses |= found.losses
        run.diagnostics.notes += found.notes()
        searches = run.diagnostics.facts.setdefault("targets", [])
        searches.append({"layer": layer, "site": site, "edits": list(found.ids), **found.facts()})
        return found

    def rows(self) -> SubjectRows:
        """Where the vectors are, in all contexts: at the subjects, or in front of the chunks of the answers."""
        size = self.config.targets.chunk
        if size:
            return chunk_rows(self.model, self.requests, size, self.templates)
        return subject_rows(self.model, self.requests, self.templates)

    def _search(self, layer: int, site: str, companions: Sequence[str]) -> TargetVectors:
        is_behind_contexts = self.config.search_in == "all-contexts"
        return find_target_vectors(
            self.model,
            self.requests,
            layer=layer,
            site=site,
            companions=companions,
            options=self.config.targets,
            templates=self.templates if is_behind_contexts else self.templates[:1],
            progress=self.run.progress,
        )

    def _anchored(self, found: TargetVectors, layer: int, *, site: str, companions: Sequence[str]) -> TargetVectors:
        """The vectors at the anchor's length; what was done goes to the diagnostics."""
        anchor, written = self.config.anchor, self._written(layer)
        if anchor == "unedited":
            with self.model.weights.without_changes():
                vectors = self._written(layer) + self._search(layer, site, companions).deltas
            anchor = float(vectors.norm(dim=1).mean())
        if anchor is None:
            return found
        anchored, skipped = anchored_vectors(found, written, float(anchor), limit=self.config.anchor_limit)
        self.run.diagnostics.facts.setdefault("anchored", []).append(
            {"layer": layer, "length": float(anchor), "skipped": list(skipped)}
        )
        if skipped:
            self.run.diagnostics.notes.append(
                f"{len(skipped)} edit(s) were left out, for their vectors are longer than"
                f" {self.config.anchor_limit:g} times the anchor: {', '.join(skipped[:3])}"
                f"{' ...' if len(skipped) > 3 else ''}"
            )
        return anchored

    def _written(self, layer: int) -> Tensor:
        """(facts, width), what the layer's MLP writes at the subjects' last tokens of the prompts alone."""
        point = Point(MLP_DOWN, layer)
        return subject_vectors(self.model, subject_rows(self.model, self.requests), [point])[point][:, 0]
