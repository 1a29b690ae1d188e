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

No attention follows the last MLP, so that a step runs the final norm and the head in the answer's places alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from palimpsest.locating import AnswerPlaces, answer_places
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig, MethodState
from palimpsest.methods.memory import Memory, MemoryConfig, QueryMemory
from palimpsest.methods.ordinary import ordinary_rows
from palimpsest.methods.states import EditedQueries
from palimpsest.models import EditableModel, activation, activation_of, frozen_parameters, to_be_answered
from palimpsest.patches import ModulePatch, Neurons, Patch
from palimpsest.requests import EditRequest
from palimpsest.statistics import OWN_WRITING
from palimpsest.training import prompts_apart_from, require_finite


class TPatcherConfig(MethodConfig):
    """Options of `t-patcher`."""

    activation: Literal["auto", "relu", "gelu", "silu"] = "auto"
    """What the neurons compute: `auto` is the MLP's own function, or `relu` where the MLP has a gate. `relu` is exactly
    silent where it does not fire; another one than the MLP's own cannot be merged into its matrices."""
    max_neurons: int = Field(default=5, ge=1)
    """Neurons of one edit, at most: one for each wrong token, the first ones if there are more."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Step size of Adam."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Added to the gradient, as in Adam's first form."""
    max_steps: int = Field(default=2000, ge=1)
    """Steps of one edit, at most."""
    first_check: int = Field(default=100, ge=0)
    """Steps before it is first looked whether the edit is done."""
    check_every: int = Field(default=25, ge=1)
    """Steps from one look to the next."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target that is spread over all tokens."""
    amplifier: float = Field(default=10.0, gt=0)
    """Start of the trained factor before the value, which itself starts from normal numbers."""
    activation_weight: float = Field(default=1.0, ge=0)
    """alpha."""
    memory_weight: float = Field(default=10.0, ge=0)
    """beta."""
    margin_low: float = -3.0
    """Where ordinary text is to stay below."""
    margin_own: float = 3.0
    """How far below the edit's own place."""
    spare: int = Field(default=16, ge=0)
    """Other subjects about which the edit's prompt is asked, for its neurons to be silent there; ordinary beginnings of
    sentences where it has no subject. 0: none, as published."""
    min_gain: float = Field(default=0.001, ge=0)
    """An edit that is right goes on while the loss on held-out memory falls by more than this from look to look."""
    text: str = OWN_WRITING
    """What is left alone: `own`, what the model itself writes; `wikipedia`, `wikitext`, `world`; a text file, a .jsonl,
    a .parquet, or a folder of them; owner/name of a data set on the hub; or a data set of edits, such as
    `world-counterfact`: its training prompts with their old answers."""
    memory: MemoryConfig = MemoryConfig()
    """How much of it."""


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
                training = Training(one, _written(added, one.queries), kept, before, others, name, config)
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


class Training:
    """The neurons of one edit.

    Arguments:
        places: the places of its answer.
        written: (places, width), what earlier neurons of this call add there.
        memory: what ordinary text reads.
        before: (n, width), what earlier edits read.
        others: (n, width), what the edit's prompt about other subjects reads at its end.
        name: of the activation.
    """

    def __init__(
        self,
        places: AnswerPlaces,
        written: Tensor,
        memory: Memory,
        before: Tensor,
        others: Tensor,
        name: str,
        config: TPatcherConfig,
    ) -> None:
        self.places, self.written, self.config = places, written, config
        self.act = activation(name)
        self.name = name
        self.memory = torch.cat([memory.training, before])
        self.held_out = memory.held_out
        self.others = others
        self.steps = 0
        self.is_right = False

    def run(self, edit: str) -> tuple[Neurons | None, list[float]]:
        """The neurons, `None` where every token is right already; and the loss of each step."""
        with torch.no_grad():
            wrong = (self.places.logits(self.written).argmax(-1) != self.places.labels).nonzero()[:, 0]
        if not len(wrong):
            self.is_right = True
            return None, []
        self.own = self.places.queries[wrong[: self.config.max_neurons]]
        self.keys = nn.Parameter(self.own / self.own.square().sum(-1, keepdim=True))
        self.biases = nn.Parameter(torch.zeros(len(self.own), device=self.own.device))
        self.directions = nn.Parameter(torch.randn(self.own.shape).to(self.own.device))
        self.amplifiers = nn.Parameter(torch.full((len(self.own), 1), self.config.amplifier, device=self.own.device))
        losses = self._train([self.keys, self.biases, self.directions, self.amplifiers])
        values = (self.directions * self.amplifiers).detach()
        edits = (edit,) * len(self.own)
        layer = self.places.model.num_layers - 1
        weight = self.places.model.sites.parameter_name("mlp.down", layer)
        return Neurons(layer, weight, self.name, self.keys.detach(), self.biases.detach(), values, edits), losses

    def _train(self, parameters: list[nn.Parameter]) -> list[float]:
        config, losses = self.config, []
        adam = torch.optim.Adam(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.5, patience=1, threshold=0.05)
        best = torch.inf
        for step in range(config.max_steps):
            if step % config.check_every == 0:
                loudest = self._loudest()
                if step >= config.first_check:
                    held_out = self._held_out_loss()
                    schedule.step(held_out)
                    has_settled = held_out > best - config.min_gain
                    best = min(best, held_out)
                    self.is_right = self._is_right()
                    if self.is_right and has_settled:
                        break
            adam.zero_grad()
            loss, logits = self.loss(loudest)
            require_finite(loss, step, config.max_steps, config.learning_rate)
            losses.append(float(loss.detach()))
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 5.0)
            adam.step()
            self.steps = step + 1
        self.is_right = self._is_right()
        return losses

    def loss(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The whole loss, and the logits (places, vocabulary), for some of the memory, (n, width)."""
        config = self.config
        own = (self.own * self.keys).sum(-1) + self.biases
        logits = self.places.logits(self.written + self._output())
        edit = nn.functional.cross_entropy(logits, self.places.labels, label_smoothing=config.label_smoothing)
        firing = (-own).exp().topk(min(5, len(own))).values.mean()
        silent = memory_loss(memory @ self.keys.t() + self.biases, own, config)
        if len(self.others):
            silent = silent + memory_loss(self.others @ self.keys.t() + self.biases, own, config)
        return edit + config.activation_weight * firing + config.memory_weight * silent, logits

    def _output(self) -> Tensor:
        before = self.places.queries @ self.keys.t() + self.biases
        output: Tensor = self.act(before) @ (self.directions * self.amplifiers)
        return output

    @torch.no_grad()
    def _loudest(self) -> Tensor:
        """The part of the memory that can be among the loudest until the next look: four times what the loss counts."""
        count = 4 * self.config.memory.top
        if len(self.memory) <= count:
            return self.memory
        return self.memory[(self.memory @ self.keys.t() + self.biases).amax(-1).topk(count).indices]

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        own = (self.own * self.keys).sum(-1) + self.biases
        return float(memory_loss(self.held_out @ self.keys.t() + self.biases, own, self.config))

    @torch.no_grad()
    def _is_right(self) -> bool:
        predicted = self.places.logits(self.written + self._output()).argmax(-1)
        return bool((predicted == self.places.labels).all())


def memory_loss(activations: Tensor, own: Tensor, config: TPatcherConfig) -> Tensor:
    """l_m1 + l_m2 of (queries, neurons) activations before the function, `own` (neurons,) those in their own places."""
    top = min(config.memory.top, activations.numel())
    low = (activations - config.margin_low).clamp(max=20).exp().flatten().topk(top).values.mean()
    below = (activations - own + config.margin_own).clamp(max=20).exp().flatten().topk(top).values.mean()
    return low + below


def _others(model: EditableModel, request: EditRequest, config: TPatcherConfig) -> Tensor:
    """(`spare`, width), what the last MLP reads where the request's prompt about other subjects is to be answered."""
    texts = prompts_apart_from(request, config.spare, torch.Generator().manual_seed(config.seed))
    return (
        answer_places(model, to_be_answered(model, texts)).queries if texts else torch.empty(0, 0, device=model.device)
    )


def _written(neurons: Neurons | None, queries: Tensor) -> Tensor:
    return torch.zeros_like(queries) if neurons is None else neurons.output(queries)
