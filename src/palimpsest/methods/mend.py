"""MEND (Mitchell et al., arXiv:2110.11309): a network that turns the gradient of a new answer into an edit.

The gradient of a weight is a sum over tokens of rank-one terms, delta u^T (`training/gradient_factors.py`). A network g
maps each pair to another one, and with the learned step a of the weight

    W' = W - a sum over t of  delta~_t u~_t^T,      (u~, delta~) = g(u, delta)                            (section 3.1)

g normalises u and delta entry by entry, by means and deviations of the factors met in training, z = [u; delta], and has
blocks  z <- z + relu(s * (U V z + c) + o)  of low rank, with U = 0 at the start, so that g begins as the identity.
Weights of one shape share g, each with its own s and o. It is trained for

    edit_weight * -log p_W'(new answer | rephrasing)  +  locality_weight * KL(p_W || p_W')  on unrelated prompts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor, nn

from palimpsest.methods.base import Capabilities, EditRun, MethodConfig
from palimpsest.methods.trained import HypernetworkConfig, TrainableMethod, hypernetwork_patch
from palimpsest.models import EditableModel
from palimpsest.models.sites import features
from palimpsest.patches import WeightPatch
from palimpsest.requests import EditRequest
from palimpsest.statistics import RunningMoments
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


class MendTraining(HypernetworkOptions):
    """Options of training `mend`; the defaults are the published ones."""

    rank: int = Field(default=1920, ge=1)
    """Rank of the network's matrices; never more than the width of what they map."""
    num_blocks: int = Field(default=2, ge=0)
    """Blocks of the network."""
    initial_deviation: float = Field(default=1.0, ge=0)
    """Standard deviation of V at the start."""
    normalise: bool = True
    """Whether factors are normalised by the statistics of those met in training."""
    step_size: float = 1e-4
    """The learned steps at the start: a."""
    step_rate: float = Field(default=1e-4, ge=0)
    """Step size of Adam for the learned steps."""
    edit_weight: float = Field(default=0.1, ge=0)
    """Weight of the loss on rephrasings."""
    locality_weight: float = Field(default=1.0, ge=0)
    """Weight of the divergence on unrelated prompts."""


@final
class Mend(TrainableMethod[HypernetworkConfig]):
    """Gradient factors, a network that maps them, low-rank changes; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = HypernetworkConfig
    Training: ClassVar[type[MetaTrainingOptions]] = MendTraining
    capabilities: ClassVar[Capabilities] = Capabilities()
    has_fresh: ClassVar[bool] = True

    def build(self, model: EditableModel, training: MendTraining) -> FactorNetwork:
        return FactorNetwork(model, training).to(model.device)

    def objective(self, model: EditableModel, module: FactorNetwork, training: MendTraining) -> Objective[EditExample]:
        def losses(examples: Sequence[EditExample], draw: random.Random) -> dict[str, Tensor]:
            found = editing_losses(model, module, examples, draw, training)
            total = training.edit_weight * found["edit"] + training.locality_weight * found["locality"]
            return {"loss": total, **found}

        others = [one for name, one in module.named_parameters() if name != "steps"]
        groups: list[dict[str, Any]] = [{"params": [module.steps], "lr": training.step_rate}, {"params": others}]
        return Objective(module, losses, groups)

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: HypernetworkConfig, run: EditRun
    ) -> WeightPatch:
        return hypernetwork_patch(model, self.trained(model, config), requests, config, run)


class FactorNetwork(Hypernetwork):
    """g for all edited weights: one `ShapeNetwork` per shape, one learned step per weight."""

    def __init__(self, model: EditableModel, training: MendTraining) -> None:
        super().__init__()
        self.places = chosen_places(model, training)
        shapes = {place.name: features(model.sites.module(place.site, place.layer)) for place in self.places}
        self.rows: dict[str, tuple[str, int]] = {}
        names: dict[str, list[str]] = {}
        for name, (wide, narrow) in shapes.items():
            same = names.setdefault(f"{wide}x{narrow}", [])
            self.rows[name] = (f"{wide}x{narrow}", len(same))
            same.append(name)
        self.shapes = nn.ModuleDict(
            {shape: ShapeNetwork(shapes[same[0]], len(same), training) for shape, same in names.items()}
        )
        self.steps = nn.Parameter(torch.full((len(self.places),), training.step_size))

    def propose(self, model: EditableModel, requests: Sequence[EditRequest]) -> dict[str, Update]:
        """-a g(u, delta) of each request's own gradient."""
        encoded = [model.encode(request.prompt, request.target_new) for request in requests]
        factors = gradient_factors(model, encoded, self.places)
        updates = {}
        for step, place in zip(self.steps, self.places, strict=True):
            shape, row = self.rows[place.name]
            found = factors[place.name]
            inputs, gradients = self.shapes[shape](found, row)
            updates[place.name] = Update(-step * gradients, inputs)
        return updates


class ShapeNetwork(nn.Module):
    """g for the weights of one shape.

    Arguments:
        size: (out, in) of the weights.
        count: how many there are.
        training: rank, number of blocks, beginning.
    """

    def __init__(self, size: tuple[int, int], count: int, training: MendTraining) -> None:
        super().__init__()
        out_features, in_features = size
        self.inputs, self.gradients = SeenInTraining(in_features), SeenInTraining(out_features)
        self.normalises = training.normalise
        width = in_features + out_features
        rank = min(training.rank, width)
        self.blocks = nn.ModuleList(
            Block(width, rank, count, training.initial_deviation) for _ in range(training.num_blocks)
        )

    def forward(self, factors: Factors, row: int) -> tuple[Tensor, Tensor]:
        """(u~, delta~) in the shape of the factors, zero where no token takes part; of the weight with that number."""
        device = next(self.buffers()).device
        inputs, gradients, mask = (one.to(device) for one in (factors.inputs, factors.gradients, factors.mask))
        if self.training and self.normalises:
            self.inputs.update(inputs[mask])
            self.gradients.update(gradients[mask])
        z = torch.cat([self.inputs.normalised(inputs), self.gradients.normalised(gradients)], dim=-1)
        for block in self.blocks:
            z = block(z, row)
        z = z * mask[..., None]
        return z[..., : inputs.shape[-1]], z[..., inputs.shape[-1] :]


class Block(nn.Module):
    """z <- z + relu(s * (U V z + c) + o), U (width, rank), V (rank, width); s and o of each weight its own."""

    def __init__(self, width: int, rank: int, count: int, deviation: float) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.zeros(width, rank))
        self.right = nn.Parameter(torch.randn(rank, width) * deviation)
        self.shift = nn.Parameter(torch.zeros(width))
        self.scales = nn.Parameter(torch.ones(count, width))
        self.offsets = nn.Parameter(torch.zeros(count, width))

    def forward(self, z: Tensor, row: int) -> Tensor:
        """The same shape, (..., width)."""
        mapped = z @ self.right.t() @ self.left.t() + self.shift
        # All begins at zero, where relu passes no gradient and a clamp does.
        return z + (self.scales[row] * mapped + self.offsets[row]).clamp(min=0)


class SeenInTraining(nn.Module):
    """Mean and deviation of every entry over all tokens seen in training."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Takes in some more tokens, (tokens, width)."""
        found = self._moments().joined(rows)
        self.count, self.mean, self.squares = self.count.new_tensor(found.count), found.mean, found.squares

    def normalised(self, tensor: Tensor) -> Tensor:
        """(x - mean) / deviation along the last axis; x itself before two tokens have been seen."""
        if self.count < 2:
            return tensor
        return (tensor - self.mean.to(tensor)) / self._moments().deviations().to(tensor)

    def _moments(self) -> RunningMoments:
        return RunningMoments(int(self.count), self.mean, self.squares)
