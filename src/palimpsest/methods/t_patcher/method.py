"""T-Patcher (Huang et al., arXiv:2301.09785): one mistake, one neuron in the last MLP.

With q what the last MLP reads, every answer token that the model gets wrong adds one neuron,

    FFN'(q) = FFN(q) + act(q k + b) v                                                        (eq. 6, 7)

and nothing else changes. k, b and v are trained, k from q_s / |q_s|^2, so that the neuron stands at one in its place s:

    l_e + alpha l_a + beta (l_m1 + l_m2)                                                      (eq. 8 to 12)
    l_e    label-smoothed cross-entropy of the answer
    l_a    exp(-(q_s k + b)): it fires in its own place
    l_m2   exp(q k + b - margin_low), the mean of the largest over what ordinary text reads: it is silent there
    l_m1   exp(q k + b - (q_s k + b) + margin_own): and well below its own place

The edit's own wording is what other facts share, so the same two terms are taken of what the prompt asked about other
subjects reads (`spare`, ours): ordinary text seldom comes that close.

No attention follows the last MLP, so that a step runs the final norm and the head in the answer's places only (and the
last block, where a norm stands behind its MLP).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from palimpsest.locating import answer_places
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig, MethodState
from palimpsest.methods.memory import QueryMemory
from palimpsest.methods.ordinary import ordinary_rows
from palimpsest.methods.states import EditedQueries
from palimpsest.methods.t_patcher.config import TPatcherConfig
from palimpsest.methods.t_patcher.neuron_training import NeuronTraining
from palimpsest.models import EditableModel, activation_of, frozen_parameters, to_be_answered
from palimpsest.patches import ModulePatch, Neurons, Patch
from palimpsest.requests import EditRequest
from palimpsest.training import prompts_apart_from


@final
class TPatcher(Method[TPatcherConfig]):
    """Several requests are edited one after another, each with the neurons of those before it in place."""

    Config: ClassVar[type[MethodConfig]] = TPatcherConfig
    State: ClassVar[type[MethodState] | None] = EditedQueries
    capabilities: ClassVar[Capabilities] = Capabilities(gives_weight_patch=False)

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._memory = QueryMemory()

    def check_model(self, model: EditableModel, config: TPatcherConfig) -> None:
        for site in ("mlp.up", "mlp.down"):
            model.sites.parameter_name(site, model.num_layers - 1)

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: TPatcherConfig, run: EditRun
    ) -> Patch:
        layer = model.num_layers - 1
        before = EditedQueries.before(run.state, model)
        with run.clock.stage("memory"):
            memory = self._memory.of(
                model,
                config.text,
                config.memory,
                lambda: ordinary_rows(
                    model, config.text, config.memory, at_least=config.memory.top, progress=run.progress
                ),
                run.progress,
            )
            name = config.activation if config.activation != "auto" else activation_of(model, layer) or "relu"
        with run.clock.stage("targets"):
            places = answer_places(model, [model.encode(r.prompt, r.target_new) for r in requests])
        added: Neurons | None = None
        steps, right = {}, []
        for index, request in enumerate(requests):
            run.progress("neurons", index, len(requests))
            one = places.of_fact(index)
            kept = memory.apart_from(request)
            others = _others(model, request, config)
            with run.clock.stage("training"), frozen_parameters(model.module):
                training = NeuronTraining(one, _written(added, one.queries), kept, before, others, name, config)
                neurons, losses = training.run(request.id)
            before = torch.cat([before, one.queries])
            if neurons is None:
                right.append(request.id)
                continue
            steps[request.id], run.diagnostics.losses[request.id] = training.steps, losses
            added = neurons if added is None else added.joined(neurons)
            if not training.is_right:
                run.diagnostics.notes.append(f"After {training.steps} steps the edit {request.id} is still wrong.")
        run.progress("neurons", len(requests), len(requests))
        if right:
            run.diagnostics.notes.append(f"{len(right)} edit(s) were right before, and nothing was added for them.")
        run.state = EditedQueries(before)
        run.diagnostics.facts |= {"activation": name, "steps": steps, "memory": memory.num_tokens}
        run.diagnostics.facts["neurons"] = 0 if added is None else len(added.edits)
        return ModulePatch([] if added is None else [added])


def _others(model: EditableModel, request: EditRequest, config: TPatcherConfig) -> Tensor:
    """(`spare`, width), what the last MLP reads where the request's prompt about other subjects is to be answered."""
    texts = prompts_apart_from(
        request, config.spare, torch.Generator().manual_seed(config.seed), alike=config.spare_alike
    )
    return (
        answer_places(model, to_be_answered(model, texts)).queries if texts else torch.empty(0, 0, device=model.device)
    )


def _written(neurons: Neurons | None, queries: Tensor) -> Tensor:
    return torch.zeros_like(queries) if neurons is None else neurons.output(queries)
