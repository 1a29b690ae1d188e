"""Models beside the edited one: which remembered edit a prompt is about, and a small model that reads it."""

from palimpsest.models.scoped.counterfactual import (
    edited_prompt,
    new_module,
    require_same_tokenizer,
    small_decoder,
    smaller_config,
)
from palimpsest.models.scoped.scope import (
    ClassifierForm,
    EncoderPooling,
    balanced_cross_entropy,
    scope_classifier,
    small_encoder,
)
from palimpsest.models.scoped.scoped_editor import ScopedEditor, ScopedEditorRecord, tokenizer_record

__all__ = [
    "ClassifierForm",
    "EncoderPooling",
    "ScopedEditor",
    "ScopedEditorRecord",
    "balanced_cross_entropy",
    "edited_prompt",
    "new_module",
    "require_same_tokenizer",
    "scope_classifier",
    "small_decoder",
    "small_encoder",
    "smaller_config",
    "tokenizer_record",
]
