"""CaliNET (Dong et al., arXiv:2210.03329): a few slots beside the last MLP, trained on many facts in several phrasings.

    FFN'(x) = FFN(x) + act(x K^T) V            (eq. 4; K and V of m slots, no bias)

K starts from small random numbers and V from zero, so that nothing changes before the first step. Only they are
trained, on the cross-entropy of the answers behind every phrasing of every fact. What the last MLP reads there is
computed once, and a step runs the final norm and the head in these places alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from pydantic import Field
from torch import Tensor, nn

from palimpsest.errors import ConfigError
from palimpsest.locating import AnswerPlaces, answer_places
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig
from palimpsest.methods.memory import MemoryConfig, QueryMemory
from palimpsest.methods.ordinary import ordinary_rows
from palimpsest.models import EditableModel, activation, activation_of, frozen_parameters
from palimpsest.patches import ModulePatch, Neurons, Patch
from palimpsest.provenance import digest
from palimpsest.requests import EditRequest
from palimpsest.statistics import OWN_WRITING
from palimpsest.training import require_finite

SLOTS_PER_FACT = 0.64
"""Default number: the paper's 64 slots for 100 facts."""

MOST_FACTS_PER_SLOT = 4
"""The paper's 1,000 facts in 256 slots are the densest that it reports."""


class CaliNetConfig(MethodConfig):
    """Options of `calinet`."""

    slots: int | None = Field(default=None, ge=1)
    """How many; left out, 64 for every 100 facts, and 16 at least."""
    prompts: dict[str, list[str]] = {}
    """More phrasings with the same answer, by request id. A request's probes are never used: they are its tests."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Step size of Adam; the paper's 0.01 is Adafactor's."""
    steps: int = Field(default=5000, ge=1)
    """Steps, at most."""
    places_per_step: int = Field(default=512, ge=1)
    """Answer tokens in one step."""
    stop_loss: float = Field(default=0.0, ge=0)
    """Training ends when the loss over all phrasings, looked at every 50 steps, is below this. 0: never."""
    memory_weight: float = Field(default=0.0, ge=0)
    """Weight of what the slots write where ordinary text is read, squared and relative to what is there. Ours; the
    paper trains without."""
    text: str = OWN_WRITING
    """That text, not read where the weight is zero: `own`, what the model itself writes; `wikipedia`, `wikitext`,
    `world`; a text file, a .jsonl, a .parquet, or a folder of them; owner/name of a data set on the hub; or a data set
    of edits, such as `world-counterfact`: its training prompts with their old answers."""
    memory: MemoryConfig = MemoryConfig()
    """How much of it."""


@final
class CaliNet(Method[CaliNetConfig]):
    """All facts share all slots, so that they come off together; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = CaliNetConfig
    capabilities: ClassVar[Capabilities] = Capabilities(gives_weight_patch=False)

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._memory = QueryMemory()

    def check_model(self, model: EditableModel, config: CaliNetConfig) -> None:
        for site in ("mlp.up", "mlp.down"):
            model.sites.parameter_name(site, model.num_layers - 1)

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: CaliNetConfig, run: EditRun
    ) -> Patch:
        slots, layer = num_slots(len(requests), config), model.num_layers - 1
        phrasings = [(prompt, r) for r in requests for prompt in (r.prompt, *config.prompts.get(r.id, []))]
        with run.clock.stage("targets"):
            name = activation_of(model, layer) or "relu"
            places = answer_places(model, [model.encode(prompt, r.target_new) for prompt, r in phrasings])
        with run.clock.stage("memory"):
            memory = self._ordinary(model, config, run)
        with run.clock.stage("training"), frozen_parameters(model.module):
            keys, values, losses = train(places, memory, slots, name, config, run)
        run.diagnostics.losses = {request.id: losses for request in requests}
        run.diagnostics.facts |= {"slots": slots, "phrasings": len(phrasings), "activation": name, "steps": len(losses)}
        ids = [request.id for request in requests]
        owner = ids[0] if len(ids) == 1 else f"calinet-{digest(ids)[:8]}"
        weight = model.sites.parameter_name("mlp.down", layer)
        added = Neurons(layer, weight, name, keys, None, values, (owner,) * slots)
        return ModulePatch([added])

    def _ordinary(self, model: EditableModel, config: CaliNetConfig, run: EditRun) -> Tensor | None:
        if not config.memory_weight:
            return None
        options = config.memory
        found = self._memory.of(
            model,
            config.text,
            options,
            lambda: ordinary_rows(model, config.text, options, at_least=options.top, progress=run.progress),
            run.progress,
        )
        return found.queries


def num_slots(facts: int, config: CaliNetConfig) -> int:
    """How many slots. Raises `ConfigError` when they were given and are too few."""
    if config.slots is None:
        return max(16, math.ceil(SLOTS_PER_FACT * facts))
    if facts > MOST_FACTS_PER_SLOT * config.slots:
        raise ConfigError(
            "There are too many facts for the slots.",
            expected=f"at most {MOST_FACTS_PER_SLOT * config.slots}, {MOST_FACTS_PER_SLOT} a slot",
            found=f"{facts} facts, {config.slots} slots",
            where="option slots",
            remedy="raise slots, or leave it out so that they grow with the facts",
        )
    return config.slots


def train(
    places: AnswerPlaces, memory: Tensor | None, slots: int, name: str, config: CaliNetConfig, run: EditRun
) -> tuple[Tensor, Tensor, list[float]]:
    """(slots, width) keys and values, and the loss of each step."""
    width, act = places.queries.shape[1], activation(name)
    bound = 1 / math.sqrt(width)
    keys = nn.Parameter(torch.empty(slots, width).uniform_(-bound, bound).to(places.queries))
    values = nn.Parameter(torch.zeros_like(keys))
    adam = torch.optim.Adam([keys, values], lr=config.learning_rate)
    scale = float(places.handed.square().mean())
    losses: list[float] = []
    for step in range(config.steps):
        run.progress("slots", step, config.steps)
        if step % 50 == 0 and config.stop_loss:
            with torch.no_grad():
                if float(answer_loss(places, act(places.queries @ keys.t()) @ values, None)) < config.stop_loss:
                    break
        at = torch.randperm(len(places.labels))[: config.places_per_step].to(places.labels.device)
        # Whole passes compute every place anyway.
        at = at if places.factor is not None else torch.arange(len(places.labels), device=at.device)
        loss = answer_loss(places, act(places.queries[at] @ keys.t()) @ values, at)
        require_finite(loss, step, config.steps, config.learning_rate)
        losses.append(float(loss.detach()))
        if memory is not None:
            some = memory[torch.randint(len(memory), (config.places_per_step,)).to(memory.device)]
            loss = loss + config.memory_weight * (act(some @ keys.t()) @ values).square().mean() / scale
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    run.progress("slots", config.steps, config.steps)
    return keys.detach(), values.detach(), losses


def answer_loss(places: AnswerPlaces, added: Tensor, at: Tensor | None) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens in some places, with `added` written there."""
    logits = places.logits(added, at if places.factor is not None else None)
    return nn.functional.cross_entropy(logits, places.labels if at is None else places.labels[at])
