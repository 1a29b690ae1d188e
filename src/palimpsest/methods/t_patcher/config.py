"""Options of `t-patcher`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from palimpsest.methods.base import MethodConfig
from palimpsest.methods.memory import MemoryConfig
from palimpsest.statistics import OWN_WRITING


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
    spare: int = Field(default=32, ge=0)
    """Other subjects about which the edit's prompt is asked, for its neurons to be silent there; ordinary beginnings of
    sentences where it has no subject. 0: none, as published."""
    spare_alike: float = Field(default=0.5, ge=0, le=1)
    """Of these, the share that begin or end as the edit's own subject does, if that has several words."""
    min_gain: float = Field(default=0.001, ge=0)
    """An edit that is right goes on while the loss on held-out memory falls by more than this from look to look."""
    text: str = OWN_WRITING
    """What is left alone: `own`, what the model itself writes; `wikipedia`, `wikitext`, `world`; a text file, a .jsonl,
    a .parquet, or a folder of them; owner/name of a data set on the hub; or a data set of edits, such as
    `world-counterfact`: its training prompts with their old answers."""
    memory: MemoryConfig = MemoryConfig()
    """How much of it."""
