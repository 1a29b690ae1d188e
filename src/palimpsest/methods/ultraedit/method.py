"""UltraEdit (arXiv:2505.14679) and StableEdit (arXiv:2605.11836): one gradient pass and one ridge solve per turn.

For a matrix W that reads h and writes y, at the n places that predict a token of the new answers, with g = dL/dy,

    h^ = (h - mean) / deviation        g^ likewise (UltraEdit), or Sigma^-1/2 (g - mean) (StableEdit)
    D  = -learning_rate |h^|^2 g^                                                               (n, out)
    W' = W + D^T (H H^T + ridge I)^-1 H                                                         raw keys H, (n, in)

Means, deviations and Sigma are those of all factors met so far. They are all that a sequence carries: no subject, no
old answer, no second moments, no memory of facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from palimpsest.errors import ConfigError
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig, MethodState
from palimpsest.methods.ultraedit.running_factors import (
    Group,
    Rows,
    RunningFactors,
    begun,
    continued,
    factor_rows,
    group_names,
    met,
    require_spread,
    with_keys_of,
)
from palimpsest.methods.ultraedit.warm_up import WarmUp
from palimpsest.models import EditableModel, Encoded, layer_numbers
from palimpsest.models.sites import factors_to_storage, features
from palimpsest.patches import LowRank, Manifest, WeightPatch
from palimpsest.requests import EditRequest
from palimpsest.solve import Solution, null_space_projected
from palimpsest.statistics import OWN_WRITING
from palimpsest.training import WeightPlace, losses_and_margins, places, spared_directions


class UltraEditConfig(MethodConfig):
    """Options of `ultraedit` and `stableedit`."""

    sites: list[str] = ["mlp.down"]
    """Sites whose weights are changed."""
    layers: list[int] | Literal["all", "auto", "lower", "early"] = "auto"
    """Layers of these sites; negative numbers count from the last. `auto` is one layer at 0.69 of the depth, `lower`
    one at 0.2 of it, `early` are those from 0.15 to 0.5 of it."""
    normaliser: Literal["entry", "whitened", "shrunk"] = "entry"
    """What is made of the gradients: every entry by its own mean and deviation (UltraEdit); whitened, from as many
    tokens on as they have entries (StableEdit); or whitened by a covariance that is drawn to its diagonal while there
    are few of them (ours)."""
    by_shape: bool = False
    """Whether weights of one shape share their statistics, as published."""
    learning_rate: float | None = Field(default=None, ge=0)
    """Factor of D; 1e-6 as published. Left out, `step` says it in units of each matrix."""
    step: float = Field(default=0.3, ge=0)
    """If there is no `learning_rate`: what a typical token's output is to move by, as a share of the length of what
    the matrix writes."""
    ridge: float | None = Field(default=None, gt=0)
    """The ridge; 1 as published. Left out, `relative_ridge` says it."""
    relative_ridge: float = Field(default=0.1, gt=0)
    """If there is no `ridge`: the same as a share of the keys' mean squared length."""
    rounds: int = Field(default=10, ge=1)
    """Gradient passes, at most; 1 as published. Each further one takes the facts that do not hold yet. Ours."""
    stop_margin: float = Field(default=1.0, ge=0)
    """A fact takes no part in a further pass once each token of its answer is more probable than any other token, by so
    many nats."""
    warm_up: int = Field(default=4096, ge=0)
    """Tokens of ordinary text whose factors are counted before the first edit, which writes nothing; 0, as published:
    none, and then the first call needs two answer tokens at least. Ours."""
    text: str = OWN_WRITING
    """That text: `own`, what the model itself writes, or another one as for second moments; or a data set of edits
    such as `world-counterfact`, whose training prompts are read with their old answers."""
    spare: bool = False
    """Whether the change is kept orthogonal to what each matrix reads of the edit's own prompt about other subjects and
    of ordinary text. Ours."""
    history: bool = False
    """Whether what the matrices read at the places of earlier edits is asked to stay, in every solve. Ours."""
    forward_batch_size: int = Field(default=64, ge=1)
    """Facts in one pass, forward and backward; smaller needs less memory and gives the same edit."""


@final
class UltraEdit(Method[UltraEditConfig]):
    """Pass the state that an edit returns to the next one; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = UltraEditConfig
    State: ClassVar[type[MethodState] | None] = RunningFactors
    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._warm_up = WarmUp()

    def check_model(self, model: EditableModel, config: UltraEditConfig) -> None:
        _places(model, config)

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: UltraEditConfig, run: EditRun
    ) -> WeightPatch:
        where = _places(model, config)
        groups = group_names(model, where, by_shape=config.by_shape)
        fresh = begun(model, where, groups, with_products=config.normaliser != "entry")
        state = continued(run.state, fresh, where, model.device)
        if state is None:
            with run.clock.stage("statistics"):
                state = self._warm_up.of(
                    model,
                    where,
                    groups,
                    fresh,
                    text=config.text,
                    max_tokens=config.warm_up,
                    forward_batch_size=config.forward_batch_size,
                    progress=run.progress,
                )
        with run.clock.stage("sparing"):
            spared = _spared(model, requests, where, config)
        encoded = [model.encode(request.prompt, request.target_new) for request in requests]
        patch, facts = WeightPatch({}, Manifest(label=self.name)), list(range(len(encoded)))
        first: Rows = {}
        for number in range(config.rounds):
            run.progress("passes", number, config.rounds)
            with model.patched(patch), run.clock.stage("gradients"):
                facts = [at for at in facts if number == 0 or not _holds(model, encoded[at], config)]
                if not facts:
                    break
                rows = factor_rows(
                    model, [encoded[at] for at in facts], where, forward_batch_size=config.forward_batch_size
                )
            if number == 0:
                state = met(model, where, groups, state, rows)
                require_spread(state)
            with run.clock.stage("solving"):
                solved = solutions(rows, state, groups, spared, config)
                patch = patch + _as_patch(model, where, solved, self.name)
            first = rows if number == 0 else first
        run.progress("passes", config.rounds, config.rounds)
        run.state = with_keys_of(state, first) if config.history else state
        run.diagnostics.facts |= {"passes": number + 1, "norm": patch.norm(), "weights": [one.name for one in where]}
        return patch


def solutions(
    rows: Rows,
    state: RunningFactors,
    groups: dict[str, str],
    spared: dict[str, Tensor],
    config: UltraEditConfig,
) -> dict[str, Solution]:
    """The change of every weight, by its name: all of them against the weights as they are before this pass.

    Arguments:
        rows: the pass's factors.
        state: what is known of the factors met so far, these included.
        groups: weight to the name of its group.
        spared: weight to a basis (in, directions) of what is to be left alone.
    """
    found = {}
    for name, (keys, gradients) in rows.items():
        basis, earlier = spared[name], state.keys.get(name)
        found[name] = null_space_projected(
            basis,
            keys,
            wanted_changes(keys, gradients, state.groups[groups[name]], state.lengths[name], config),
            strength=config.ridge or config.relative_ridge * float(keys.double().square().sum(dim=1).mean()),
            previous=None if earlier is None else earlier.past(basis),
        )
    return found


def wanted_changes(keys: Tensor, gradients: Tensor, group: Group, length: float, config: UltraEditConfig) -> Tensor:
    """D, (n, out): what each token's output is to change by.

    Arguments:
        keys: (n, in).
        gradients: (n, out).
        group: the statistics.
        length: how long what the matrix writes is.
    """
    lengths = group.inputs.normalised(keys).square().sum(dim=1, keepdim=True)
    if config.normaliser == "entry":
        directions = group.gradients.normalised(gradients)
    else:
        directions = group.gradients.whitened(gradients, shrinks=config.normaliser == "shrunk")
    rate = config.learning_rate
    if rate is None:
        # A normalised key is as long as the root of its number of entries, and so is a gradient.
        rate = config.step * length / (keys.shape[1] * gradients.shape[1] ** 0.5)
    return -rate * lengths * directions


def _places(model: EditableModel, config: UltraEditConfig) -> list[WeightPlace]:
    layers = [layer_numbers(config.layers, model.sites.layers_of(site)) for site in config.sites]
    found = places(model, config.sites, layers)
    if not found:
        raise ConfigError("There is nothing to change.", expected="at least one site", where="option sites")
    return found


def _holds(model: EditableModel, encoded: Encoded, config: UltraEditConfig) -> bool:
    with torch.no_grad():
        _, _, margins = losses_and_margins(model, [encoded], loss_on="answer")
    return float(margins) >= config.stop_margin


def _spared(
    model: EditableModel, requests: Sequence[EditRequest], where: Sequence[WeightPlace], config: UltraEditConfig
) -> dict[str, Tensor]:
    """Weight to a basis (in, directions) of what is to be left alone: of nothing, unless it is asked for."""
    names = [place.name for place in where]
    modules = [name.removesuffix(".weight") for name in names]
    found = spared_directions(model, requests, modules, seed=config.seed) if config.spare else {}
    widths = {place.name: features(model.sites.module(place.site, place.layer))[1] for place in where}
    nothing = {name: torch.zeros(widths[name], 0, device=model.device) for name in names}
    return nothing | {f"{name}.weight": basis for name, basis in found.items()}


def _as_patch(
    model: EditableModel, where: Sequence[WeightPlace], solved: Mapping[str, Solution], label: str
) -> WeightPatch:
    deltas = {}
    for place in where:
        left, right = (one.float() for one in (solved[place.name].left, solved[place.name].right))
        if left.ne(0).any():
            module = model.sites.module(place.site, place.layer)
            deltas[place.name] = LowRank(*factors_to_storage(module, left.contiguous(), right.contiguous()))
    return WeightPatch(deltas, Manifest(label=label))
