"""The neurons of one edit, trained by the loss of T-Patcher's equations 8 to 12."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from palimpsest.locating import AnswerPlaces
from palimpsest.methods.memory import Memory
from palimpsest.methods.t_patcher.config import TPatcherConfig
from palimpsest.models import activation
from palimpsest.patches import Neurons
from palimpsest.training import require_finite


class NeuronTraining:
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
        self.memory = torch.cat([memory.training, before.to(memory.training)])
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
