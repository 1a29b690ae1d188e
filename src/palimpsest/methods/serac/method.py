"""SERAC (Mitchell et al., arXiv:2206.06520): edits in a memory, and a small model that answers what is in their scope.

The base model f never changes. With the edits z_i, their answers y_i, the scope classifier g and the counterfactual
model h, a prompt x is answered by (section 3)

    f(x)  while  b = max_i g(z_i, x) < 1/2,  else  h(z_i, y_i, x),  i = argmax g          hard, as published
    (1 - b) f(x) + b h(z_i, y_i, x)                                                       soft

decided once for a prompt, never within an answer. g and h are trained beforehand, without f, for (section 3.3)

    edit_weight * -log h(y | z, y_z, x)                                       x in the scope of z, y its answer
    + scope_weight * (mean of -log g(z, x)  +  mean of -log(1 - g(z, x')))    x' out of scope, hard ones among them
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from palimpsest.methods.base import Capabilities, EditRun, MethodConfig
from palimpsest.methods.editors import TENSORS, read_record
from palimpsest.methods.serac.scope_examples import with_similar
from palimpsest.methods.serac.scope_options import ScopeTraining
from palimpsest.methods.serac.scope_training import new_editor, scope_losses
from palimpsest.methods.trained import FRESH, TrainableMethod, TrainedConfig
from palimpsest.models import EditableModel
from palimpsest.models.scoped import ScopedEditor
from palimpsest.patches import EditorReference, MemoryEntry, RouterPatch, Routing
from palimpsest.requests import EditRequest
from palimpsest.training import EditExample, MetaTrainingOptions, Objective


class SeracConfig(TrainedConfig):
    """Options of `serac`."""

    threshold: float = Field(default=0.5, gt=0, le=1)
    """Probability from which on a prompt is in an edit's scope."""
    routing: Literal["hard", "soft"] = "hard"
    """`hard`: one of the two models answers. `soft`: every prompt gets a mixture of both, in or out of scope."""
    self_contained: bool = False
    """Whether the editor is saved with the patch, which otherwise refers to its folder."""


@final
class Serac(TrainableMethod[SeracConfig]):
    """A memory, a scope classifier, a counterfactual model; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = SeracConfig
    Training: ClassVar[type[MetaTrainingOptions]] = ScopeTraining
    capabilities: ClassVar[Capabilities] = Capabilities(gives_weight_patch=False)
    has_fresh: ClassVar[bool] = True

    def build(self, model: EditableModel, training: ScopeTraining) -> ScopedEditor:
        return new_editor(model, training)

    def prepared(self, examples: Sequence[EditExample], training: ScopeTraining) -> list[EditExample]:
        return with_similar(examples, training)

    def stored(self, module: nn.Module, training: ScopeTraining) -> dict[str, Tensor]:
        kept = torch.bfloat16 if training.stored_as == "bfloat16" else torch.float32
        return {name: tensor.detach().to(kept) for name, tensor in module.state_dict().items()}

    def objective(self, model: EditableModel, module: ScopedEditor, training: ScopeTraining) -> Objective[EditExample]:
        def losses(examples: Sequence[EditExample], draw: random.Random) -> Mapping[str, Tensor]:
            return scope_losses(module, examples, draw, training)

        return Objective(module, losses)

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: SeracConfig, run: EditRun
    ) -> RouterPatch:
        editor: Any = self.trained(model, config)
        run.progress("encoding", 0, len(requests))
        with run.clock.stage("encoding"):
            index = editor.scope.index([request.prompt for request in requests]).cpu()
        run.progress("encoding", len(requests), len(requests))
        is_fresh = config.editor == FRESH
        routing = Routing(
            EditorReference("", "") if is_fresh else self._reference(model, config),
            editor.record,
            threshold=config.threshold,
            is_soft=config.routing == "soft",
            # What has not been trained lies in no folder that a patch could refer to.
            is_self_contained=config.self_contained or is_fresh,
        )
        entries = [MemoryEntry.of(request) for request in requests]
        return RouterPatch(entries, index, routing=routing, editor=editor)

    def _reference(self, model: EditableModel, config: SeracConfig) -> EditorReference:
        folder = self.folder(model, config).resolve()
        return EditorReference(str(folder / TENSORS), str(read_record(folder).tensors_sha256))
