"""Options of `wise`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from palimpsest.locating import ContextOptions
from palimpsest.methods.base import MethodConfig
from palimpsest.statistics import OWN_WRITING


class WiseConfig(MethodConfig):
    """Options of `wise`."""

    layer: int | Literal["auto"] = "auto"
    """The layer; negative numbers count from the last. `auto` is the one at 0.69 of the depth."""
    learning_rate: float = Field(default=1.0, gt=0)
    """Step size of plain gradient descent."""
    steps: int = Field(default=70, ge=1)
    """Steps of one edit, at most."""
    stop_loss: float = Field(default=0.02, ge=0)
    """An edit is done when its whole loss is below this,"""
    stop_change: float = Field(default=1e-4, ge=0)
    """and has changed by no more than this in the last step."""
    largest_change: float = Field(default=1.0, gt=0)
    """Bound on every entry of W' - W."""
    alpha: float = Field(default=5.0, ge=0)
    """Where D of ordinary text is to stay below."""
    beta: float = Field(default=20.0, ge=0)
    """Where D of the edit is to rise above."""
    gamma: float = Field(default=10.0, ge=0)
    """How far apart the two are to be."""
    threshold_share: float = Field(default=0.88, gt=0, le=1)
    """The threshold, as a share of the smallest D of a memory's edits."""
    mask_ratio: float = Field(default=0.2, gt=0, le=1)
    """Share of the entries that a knowledge shard may change."""
    edits_per_shard: int = Field(default=500, ge=1)
    """Edits before the next shard begins."""
    shards_per_merge: int = Field(default=2, ge=1)
    """Full shards that become one memory; 1 keeps each as it is."""
    density: float = Field(default=0.53, gt=0, le=1)
    """Share of each shard's entries that TIES keeps."""
    memories: Literal["retrieve", "merge"] = "retrieve"
    """Whether merged memories stand side by side, or each merger takes the former one in, so that there is one."""
    contexts: ContextOptions = ContextOptions(starts=["I", "You", "Because", "Yes", "Q:"], lengths=[5, 10], top_k=1)
    """Texts before the prompt."""
    text: str = OWN_WRITING
    """What D_out is measured on: `own`, what the model itself writes; `wikipedia`, `wikitext`, `world`; a text file, a
    .jsonl, a .parquet, or a folder of them; owner/name of a data set on the hub; or a data set of edits, such as
    `world-counterfact`: its training prompts with their old answers."""
    max_tokens: int = Field(default=4000, ge=2)
    """Tokens of that text to draw from."""
    row_length: int = Field(default=32, ge=2)
    """Tokens of its longest row."""
    rows_outside: int = Field(default=1, ge=1)
    """Rows of it that each edit is held against, drawn anew."""
    spare: int = Field(default=8, ge=0)
    """Other subjects about which the edit's prompt is asked, to be held against it like those rows; ordinary beginnings
    of sentences where it has no subject. 0: none, as published."""
