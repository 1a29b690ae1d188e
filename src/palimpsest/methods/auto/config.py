"""Options of `auto`."""

from __future__ import annotations

from pydantic import Field

from palimpsest.methods.auto.ladder import Attempt
from palimpsest.methods.base import MethodConfig


class AutoConfig(MethodConfig):
    """Options of `auto`."""

    ladder: list[Attempt] | None = None
    """What is tried, in order: tables of `method`, `options` and `preset`. Left out, what measured best."""
    weights_only: bool | None = None
    """Whether only changes of weights are tried, as an adapter or an edited GGUF file needs them. More of what is near
    the facts changes then, and of many facts fewer hold. Left out: true for a model read from a GGUF file."""
    keep: float = Field(default=0.95, ge=0, le=1)
    """Share of the answers about other subjects and other things that must stay as they were, as a whole number rounded
    down (26 of 28 for 0.95); an attempt that keeps fewer is not taken."""
    most_moved: float = Field(default=0.2, gt=0)
    """Nats per token by which ordinary sentences, and texts that the model itself wrote, may move on average; an
    attempt that moves them further is not taken. 0.2 is a perplexity of ordinary text that is up or down by a fifth."""
    elsewhere: float = Field(default=0.75, ge=0, le=1)
    """Share of the prompts beside its own, rephrasings and the prompt behind other texts, in which a fact must hold;
    below it further attempts are made."""
    own_words: bool = True
    """Whether the answer to a question or to a turn of a chat is edited into the sentence that the model itself replies
    with: `The capital of Japan is Oslo.` for `Oslo`. What a model writes behind an answer that it would not begin with
    is often nonsense."""
    max_seconds: float | None = Field(default=None, gt=0)
    """No attempt goes on beyond this time; left out, all attempts may be made. What is found then depends on the
    machine's speed."""
    num_contexts: int = Field(default=3, ge=0)
    """Texts, of the model's own, that each prompt is tested behind."""
    num_neighbours: int = Field(default=8, ge=0)
    """Other subjects that each prompt is asked about to see what the edit reaches, for up to twenty facts; of more
    facts each has fewer, at least two."""
