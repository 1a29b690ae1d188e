"""Options of training `serac`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from palimpsest.models.scoped import ClassifierForm, EncoderPooling
from palimpsest.training import MetaTrainingOptions

SMALL, DECODER = "small", "decoder"


class ScopeTraining(MetaTrainingOptions):
    """Options of training `serac`; the defaults are for two small models that start from nothing."""

    steps: int = Field(default=4000, ge=0)
    """Steps of the optimiser, at most."""
    examples_per_step: int = Field(default=12, ge=1)
    """Edits whose gradients make one step."""
    forward_batch_size: int = Field(default=12, ge=1)
    """Edits in one forward pass; smaller needs less memory, and its negatives and mean are of fewer edits."""
    learning_rate: float = Field(default=2e-3, ge=0)
    """Step size of Adam; 1e-5 as published, constant, for models that are trained already."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the step size rises from nothing."""
    decays: bool = True
    """Whether the step size falls linearly, to a fiftieth at the last step."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of a step's gradient; 100 as published."""
    scope: ClassifierForm = "embedding"
    """`embedding` compares one vector per text; `cross-attention` reads both texts together, for every entry."""
    encoder: str = SMALL
    """Encoder of the scope classifier: a folder or hub id, or `small`, untrained, with the model's tokenizer."""
    pooling: EncoderPooling = "mean"
    """What is a text's vector: the `mean` over its tokens, or its `first` token as published."""
    encoder_width: int = Field(default=128, ge=8)
    """Width of a small encoder."""
    encoder_layers: int = Field(default=2, ge=1)
    """Layers of a small encoder."""
    counterfactual: str = SMALL
    """The counterfactual model: a folder or hub id with the same tokenizer; or `small`, untrained, of the model's own
    architecture; or `decoder`, likewise, but a decoder, which learns sooner to copy than a small encoder-decoder."""
    width: int = Field(default=128, ge=8)
    """Width of a small counterfactual model."""
    layers: int = Field(default=2, ge=1)
    """Layers of a small counterfactual model."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of small models."""
    edit_weight: float = Field(default=1.0, ge=0)
    """Weight of the counterfactual model's loss; 0.1 as published."""
    scope_weight: float = Field(default=1.0, ge=0)
    """Weight of the scope classifier's."""
    positives_per_edit: int = Field(default=2, ge=1)
    """Prompts in scope drawn for an edit at a step."""
    negatives_per_edit: int = Field(default=3, ge=1)
    """Prompts out of scope drawn for an edit at a step."""
    has_implications: bool = True
    """Whether prompts whose answers follow from an edit (portability probes) are in its scope."""
    hard_share: float = Field(default=0.5, ge=0, le=1)
    """Share of prompts out of scope that are other edits' prompts of similar wording; the rest are locality probes."""
    nearest: int = Field(default=100, ge=1)
    """Among how many other edits, by similarity, these are drawn."""
    skipped: int = Field(default=0, ge=0)
    """The most similar ones of them that are left out, as they may be in scope; 25 as published."""
    temperature: float = Field(default=0.1, gt=0)
    """With which they are drawn by similarity."""
    swapped_share: float = Field(default=0.3, ge=0, le=1)
    """Share of prompts, but those whose answers follow from an edit, for which another edit's new answer is taken, in
    the edit and as the answer: what is read is to be copied, also where it makes little sense. 0 as published."""
    reworded_share: float = Field(default=0.5, ge=0, le=1)
    """Share of edits that are stated in one of their rephrasings instead of their own prompt. 0 as published."""
    stored_as: Literal["float32", "bfloat16"] = "float32"
    """In which precision the trained editor is saved."""
