"""CrispEdit (arXiv:2602.15823): fine-tuning in directions along which a text's loss hardly curves.

    min over dW  of  the new answers' loss     subject to   tr(B dW A dW^T) small

A = E[u u^T] is the second moment of what a matrix reads of a text, B = E[g g^T] that of the loss's gradients at what
it writes. The change is Ub Q Ua^T in their eigenbases, where Q is zero in the steepest directions, which hold a share
`energy` of the curvature. Adam moves Q, so no step leaves the others. In a sequence the texts of the edits before count
as text too, by their tokens:

    A <- (n A + history n' A') / (n + history n')        B likewise
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, final

import torch
from pydantic import Field
from torch import Tensor

from palimpsest.files import shaped
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig, MethodState
from palimpsest.methods.fine_tuned import (
    FineTuningConfig,
    check_text,
    fine_tuned,
    projection_for,
    require_projectable,
    spared_inputs,
    trained_layers,
    trained_names,
)
from palimpsest.methods.states import foreign_state
from palimpsest.models import EditableModel
from palimpsest.models.sites import features
from palimpsest.patches import WeightPatch
from palimpsest.requests import EditRequest
from palimpsest.training import CurvatureFactors, LowCurvature, Projection, WeightPlace, joined, places, text_factors


class CrispEditConfig(FineTuningConfig):
    """Options of `crispedit`."""

    project: Literal["none", "inputs", "curvature"] = "curvature"
    """`curvature`: the change stays in the directions in which the text's loss curves least. `inputs`: it writes
    nothing for the strongest directions of what each matrix reads, the same with B = I. `none`: plain fine-tuning."""
    history: float = Field(default=1.0, ge=0)
    """Weight of a token of an earlier edit's prompt and answer, against one of the text; 0: earlier edits are held by
    nothing. Under `curvature` alone."""


@dataclass(frozen=True, eq=False)
class EditFactors(MethodState):
    """The contribution of the edits so far to the factors.

    Arguments:
        sums: by weight, the sums of u u^T, (in, in), and of g g^T, (out, out), over the tokens of all edits' prompts
            and answers that predict another, as the model read them after the edit.
        counts: by weight, how many tokens.
    """

    sums: dict[str, tuple[Tensor, Tensor]]
    counts: dict[str, int]

    def tensors(self) -> dict[str, Tensor]:
        """See `MethodState.tensors`."""
        found: dict[str, Tensor] = {}
        for name, (inputs, gradients) in self.sums.items():
            found |= {f"{name}|inputs": inputs, f"{name}|gradients": gradients}
            found[f"{name}|count"] = torch.tensor(self.counts[name])
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """See `MethodState.from_tensors`."""
        names = dict.fromkeys(name.rpartition("|")[0] for name in tensors)
        sums = {name: (tensors[f"{name}|inputs"], tensors[f"{name}|gradients"]) for name in names}
        for name, pair in sums.items():
            for what, one in zip(("inputs", "gradients"), pair, strict=True):
                shaped(one, len(one), len(one), name=f"{name}|{what}")
        return cls(sums, {name: int(shaped(tensors[f"{name}|count"], name="count")) for name in names})

    @classmethod
    def before(cls, state: MethodState | None, widths: Mapping[str, tuple[int, int]]) -> EditFactors:
        """The state to go on from, empty at first. Raises `ConfigError` for another method's, or of other weights.

        Arguments:
            widths: weight to (out, in).
        """
        if state is None:
            zeros = {
                name: (torch.zeros(into, into).double(), torch.zeros(out, out).double())
                for name, (out, into) in widths.items()
            }
            return cls(zeros, dict.fromkeys(widths, 0))
        found = {n: (len(g), len(u)) for n, (u, g) in state.sums.items()} if isinstance(state, EditFactors) else {}
        if found != dict(widths):
            shown = ", ".join(sorted(found)) or type(state).__name__
            expected = f"a state of crispedit for {', '.join(sorted(widths))}"
            raise foreign_state(expected, shown, remedy="give the same layers, or begin anew")
        return state  # type: ignore[return-value]

    def with_rows(self, rows: Mapping[str, tuple[Tensor, Tensor]]) -> EditFactors:
        """These and some tokens more: by weight u, (n, in), and g, (n, out)."""
        sums, counts = {}, {}
        for name, before in self.sums.items():
            both = [one.cpu().double() for one in rows[name]]
            sums[name] = tuple(total + one.T @ one for total, one in zip(before, both, strict=True))
            counts[name] = self.counts[name] + len(both[0])
        return EditFactors(sums, counts)  # type: ignore[arg-type]

    def added_to(self, factors: Mapping[str, CurvatureFactors], weight: float) -> dict[str, CurvatureFactors]:
        """A text's factors with those of the edits."""
        found = {}
        for name, one in factors.items():
            (inputs, gradients), count = self.sums[name], self.counts[name]
            if not count or not weight:
                found[name] = one
                continue
            found[name] = CurvatureFactors(
                joined(one.inputs, one.tokens[0], inputs, count, weight=weight),
                joined(one.outputs, one.tokens[1], gradients, count, weight=weight),
                one.tokens,
            )
        return found


@final
class CrispEdit(Method[CrispEditConfig]):
    """Pass the state that an edit returns to the next one; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = CrispEditConfig
    State: ClassVar[type[MethodState] | None] = EditFactors
    capabilities: ClassVar[Capabilities] = Capabilities(edits_encoder_decoders=False)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._projection: Projection | None = None

    def check_model(self, model: EditableModel, config: CrispEditConfig) -> None:
        trained_names(model, config)
        require_projectable(model, config)

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: CrispEditConfig, run: EditRun
    ) -> WeightPatch:
        projection = self._projection = projection_for(self._projection, config)
        run.diagnostics.notes += check_text(model, projection, config, is_asked_for="text" in self.options)
        spared = spared_inputs(model, requests, config, projection, run)
        if config.project != "curvature":
            return fine_tuned(model, requests, config, run, projection, spared=spared, projectors={})
        layers = trained_layers(model, config)
        where = places(model, [config.parameters], [layers])
        state = EditFactors.before(run.state, _widths(model, where))
        with run.clock.stage("statistics"):
            factors = projection.factors(model, config.parameters, layers, progress=run.progress)
            projectors: Mapping[str, LowCurvature] = projection.projectors(
                state.added_to(factors, config.history), spared
            )
        patch = fine_tuned(model, requests, config, run, projection, spared=spared, projectors=projectors)
        if config.history:
            texts = [model.encode(request.prompt, request.target_new).ids for request in requests]
            with run.clock.stage("state"), model.patched(patch):
                for start in range(0, len(texts), config.forward_batch_size):
                    state = state.with_rows(
                        text_factors(model, texts[start : start + config.forward_batch_size], where)
                    )
        run.state = state
        return patch


def _widths(model: EditableModel, where: Sequence[WeightPlace]) -> dict[str, tuple[int, int]]:
    return {one.name: features(model.sites.module(one.site, one.layer)) for one in where}
