"""KE, KnowledgeEditor (De Cao et al., arXiv:2104.08164): a network reads the edit and gates its gradient.

The network reads the condition `old answer >> new answer || prompt` with a bidirectional LSTM, whose last states become
a vector h. For every edited weight W, (m, n), a conditioner makes of h two rows p, p' in R^m, two columns q, q' in R^n
and a number eta, and with the gradient G of the new answer's loss

    W' = W + s * (G . A + B),   A = m softmax(p) q^T,   B = m softmax(p') q'^T,   s = max_scale * sigmoid(eta)   (4.2)

(. is entry by entry). With G = sum_t delta_t u_t^T and p~ = m softmax(p),  G . A = sum_t (p~ . delta_t)(q . u_t)^T, so
that the change has rank tokens + 1 and is never made whole. Training is constrained (section 4.3):

    min  CE(new answer | prompt, rephrasing)   so that   KL(p_W || p_W') <= margin on other prompts,

by a multiplier that rises while the constraint is violated and falls while it holds; the margin shrinks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from palimpsest.methods.base import Capabilities, EditRun, MethodConfig
from palimpsest.methods.trained import HypernetworkConfig, TrainableMethod, hypernetwork_patch
from palimpsest.models import EditableModel
from palimpsest.models.sites import features
from palimpsest.patches import WeightPatch
from palimpsest.requests import EditRequest
from palimpsest.training import (
    EditExample,
    Factors,
    Hypernetwork,
    HypernetworkOptions,
    MetaTrainingOptions,
    Objective,
    Update,
    chosen_places,
    editing_losses,
    gradient_factors,
)

# The share of validation edits that must take before the margin shrinks, and by how much it does.
_FLIPPED, _SHRINKAGE = 0.9, 0.8


class KnowledgeEditorTraining(HypernetworkOptions):
    """Options of training `ke`."""

    learning_rate: float = Field(default=3e-4, ge=0)
    """Step size of Adam, constant over training."""
    with_prompt: bool = True
    """Whether the loss is taken at the edit's own prompt too."""
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing of that loss. The gradient that the network is given is that of the plain one."""
    lstm_width: int = Field(default=256, ge=1)
    """States of the LSTM in each direction."""
    condition_width: int = Field(default=1024, ge=1)
    """Entries of h."""
    hidden_width: int = Field(default=128, ge=1)
    """Hidden units of each weight's conditioner."""
    trains_embeddings: bool = True
    """Whether the LSTM reads a copy of the model's token embeddings that is trained, or these themselves."""
    max_scale: float = Field(default=1.0, ge=0)
    """Largest step: s where sigmoid(eta) is 1."""
    initial_share: float = Field(default=0.5, gt=0, lt=1)
    """sigmoid(eta) at the start."""
    margin: float = Field(default=1e-3, ge=0)
    """Divergence that is allowed at the start, nats per token."""
    least_margin: float = Field(default=1e-5, ge=0)
    """What the margin shrinks to, by a fifth at every validation in which more than 90% of the edits take."""
    multiplier_rate: float = Field(default=0.1, ge=0)
    """Step size of the multiplier."""


@final
class KnowledgeEditor(TrainableMethod[HypernetworkConfig]):
    """A condition, a gated gradient, constrained training; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = HypernetworkConfig
    Training: ClassVar[type[MetaTrainingOptions]] = KnowledgeEditorTraining
    capabilities: ClassVar[Capabilities] = Capabilities(needs_old_answer=True)
    has_fresh: ClassVar[bool] = True

    def build(self, model: EditableModel, training: KnowledgeEditorTraining) -> GateNetwork:
        return GateNetwork(model, training).to(model.device)

    def objective(
        self, model: EditableModel, module: GateNetwork, training: KnowledgeEditorTraining
    ) -> Objective[EditExample]:
        def losses(examples: Sequence[EditExample], draw: random.Random) -> dict[str, Tensor]:
            found = editing_losses(model, module, examples, draw, training)
            excess = found["locality"] - module.margin
            # The second term is zero in value to the network; to the multiplier it is the ascent.
            penalty = module.multiplier.detach() * excess - module.multiplier * excess.detach()
            plain = (found["edit"] + found["locality"]).detach()
            watched = {"plain": plain, "multiplier": module.multiplier.detach(), "margin": module.margin}
            return {"loss": found["edit"] + penalty, **found, **watched}

        others = [one for name, one in module.named_parameters() if name != "multiplier"]
        ascent = {"params": [module.multiplier], "lr": training.multiplier_rate, "is_clipped": False}
        groups: list[dict[str, Any]] = [ascent, {"params": others}]
        return Objective(module, losses, groups, "plain", module.keep_multiplier, module.shrink_margin)

    def examples(self, model: EditableModel, requests: Sequence[EditRequest]) -> list[EditExample]:
        for request in requests:
            condition_text(request)
        return super().examples(model, requests)

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: HypernetworkConfig, run: EditRun
    ) -> WeightPatch:
        return hypernetwork_patch(model, self.trained(model, config), requests, config, run)


class GateNetwork(Hypernetwork):
    """The reader of conditions, a conditioner for each weight, and the state of the constraint."""

    embedding: Tensor
    margin: Tensor

    def __init__(self, model: EditableModel, training: KnowledgeEditorTraining) -> None:
        super().__init__()
        self.places = chosen_places(model, training)
        self.max_scale, self.least_margin = training.max_scale, training.least_margin
        own = model.sites.module("embed").get_parameter("weight").detach().float().clone()
        if training.trains_embeddings:
            self.embedding = nn.Parameter(own)
        else:
            self.register_buffer("embedding", own, persistent=False)
        self.lstm = nn.LSTM(own.shape[1], training.lstm_width, bidirectional=True, batch_first=True)
        self.condition = nn.Linear(2 * training.lstm_width, training.condition_width)
        sizes = [features(model.sites.module(place.site, place.layer)) for place in self.places]
        self.conditioners = nn.ModuleList(Conditioner(size, training) for size in sizes)
        self.multiplier = nn.Parameter(torch.ones(()))
        self.register_buffer("margin", torch.tensor(training.margin))

    def read(self, model: EditableModel, requests: Sequence[EditRequest]) -> Tensor:
        """(requests, condition width), h: from the LSTM's states behind each condition's own last token."""
        texts = [condition_text(request) for request in requests]
        ids = [model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
        device = self.embedding.device
        padded = pad_sequence([torch.tensor(one) for one in ids], batch_first=True).to(device)
        lengths = torch.tensor([len(one) for one in ids])
        packed = pack_padded_sequence(self.embedding[padded], lengths, batch_first=True, enforce_sorted=False)
        _, (states, _) = self.lstm(packed)
        found: Tensor = self.condition(states.transpose(0, 1).flatten(1))
        return found.tanh()

    def propose(self, model: EditableModel, requests: Sequence[EditRequest]) -> dict[str, Update]:
        """Each request's s (G . A + B), G the gradient of its own new answer's loss."""
        encoded = [model.encode(request.prompt, request.target_new) for request in requests]
        factors = gradient_factors(model, encoded, self.places)
        condition = self.read(model, requests)
        return {
            place.name: conditioner(condition, factors[place.name], self.max_scale)
            for place, conditioner in zip(self.places, self.conditioners, strict=True)
        }

    @torch.no_grad()
    def keep_multiplier(self) -> None:
        """A multiplier is never negative."""
        self.multiplier.clamp_(min=0)

    @torch.no_grad()
    def shrink_margin(self, means: Mapping[str, float]) -> None:
        """Asks for more once nearly all edits take."""
        if means["answered"] > _FLIPPED:
            self.margin.copy_((self.margin * _SHRINKAGE).clamp(min=min(self.least_margin, float(self.margin))))


class Conditioner(nn.Module):
    """From h to the change of one weight: p, q, p', q' and eta.

    It begins with A = -1, B = 0: a step of gradient descent, whatever it has read.
    """

    def __init__(self, size: tuple[int, int], training: KnowledgeEditorTraining) -> None:
        super().__init__()
        out_features, in_features = size
        self.sizes = [out_features, in_features, out_features, in_features, 1]
        self.hidden = weight_norm(nn.Linear(training.condition_width, training.hidden_width))
        self.output = weight_norm(nn.Linear(training.hidden_width, sum(self.sizes)))
        row, column, other_row, other_column, eta = self.output.bias.detach().split(self.sizes)
        for part in (row, other_row, other_column):
            part.zero_()
        column.fill_(-1.0)
        eta.fill_(math.log(training.initial_share / (1 - training.initial_share)))
        # The magnitudes of weight normalisation; its directions must not vanish.
        self.output.parametrizations.weight.original0.detach().zero_()

    def gates(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The rows m softmax(p), q, m softmax(p'), q' and sigmoid(eta) for each request, (requests, m or n or 1)."""
        row, column, other_row, other_column, eta = self.output(self.hidden(condition).tanh()).split(self.sizes, -1)
        count = row.shape[-1]
        return count * row.softmax(-1), column, count * other_row.softmax(-1), other_column, eta.sigmoid()

    def forward(self, condition: Tensor, factors: Factors, max_scale: float) -> Update:
        """The change for each request, of rank tokens + 1."""
        row, column, other_row, other_column, share = self.gates(condition)
        gradients, inputs = (one.to(condition.device) for one in (factors.gradients, factors.inputs))
        left = torch.cat([gradients * row[:, None], other_row[:, None]], dim=1)
        right = torch.cat([inputs * column[:, None], other_column[:, None]], dim=1)
        return Update(max_scale * share[:, None] * left, right)


def condition_text(request: EditRequest) -> str:
    """Returns the text of an edit that the network reads. Raises `DataError` if there is no old answer."""
    return f"{request.reversed_to_old().target_new} >> {request.target_new} || {request.prompt}"
