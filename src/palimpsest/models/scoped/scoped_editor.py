"""The editor that SERAC trains: a scope classifier and a counterfactual model, saved and loaded together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from palimpsest.models.editable import EditableModel
from palimpsest.models.scoped.counterfactual import config_from, new_module
from palimpsest.models.scoped.scope import ClassifierForm, EncoderPooling, ScopeClassifier, scope_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ScopedEditorRecord(BaseModel):
    """The two parts as plain data: with the tensors, everything needed to rebuild them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: ClassifierForm
    """The scope classifier's; see `models.scoped.scope`."""
    pooling: EncoderPooling
    encoder: dict[str, Any]
    """The config of its encoder, as `to_dict` gives it."""
    encoder_tokenizer: dict[str, Any] | None
    """Its tokenizer, see `tokenizer_record`; `None` for that of the model which is edited."""
    counterfactual: dict[str, Any]
    """The counterfactual model's config."""


class ScopedEditor(nn.Module):
    """The two parts, as one module.

    Arguments:
        scope: the scope classifier.
        counterfactual: the counterfactual model, a transformers module.
        tokenizer: that of the model which is edited, and so of the counterfactual model.
        record: what they are.
    """

    def __init__(self, scope: ScopeClassifier, counterfactual: Any, tokenizer: Any, record: ScopedEditorRecord) -> None:
        super().__init__()
        self.scope = scope
        self.counterfactual = counterfactual
        self.record = record
        self.reader = EditableModel(counterfactual, tokenizer, name="the counterfactual model")
        self.register_state_dict_post_hook(_leave_out_tied)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_put_tied_back)  # type: ignore[no-untyped-call]

    @classmethod
    def from_record(cls, record: ScopedEditorRecord, tensors: Mapping[str, Tensor], model: EditableModel) -> Self:
        """The parts with their weights, on the device of the model that they are for.

        Raises `RuntimeError` when the tensors are not those of the record.
        """
        from transformers import AutoModel

        encoder = AutoModel.from_config(config_from(record.encoder), dtype=torch.float32)
        kept = record.encoder_tokenizer
        tokenizer = model.tokenizer if kept is None else tokenizer_from(kept)
        scope = scope_classifier(record.form, encoder, tokenizer, record.pooling)
        editor = cls(scope, new_module(config_from(record.counterfactual)), model.tokenizer, record)
        editor.load_state_dict(dict(tensors))
        return editor.to(model.device).eval()


def tokenizer_record(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A fast tokenizer as plain data."""
    named = {name: getattr(tokenizer, name) for name in ("sep_token", "eos_token", "pad_token")}
    return {"text": tokenizer.backend_tokenizer.to_str(), **named}


def tokenizer_from(record: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a `tokenizer_record`."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    named = {name: value for name, value in record.items() if name != "text" and value is not None}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(record["text"]), **named)


def _leave_out_tied(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Of weights that share a storage, one is saved."""
    for _, other in _tied(module):
        state.pop(prefix + other, None)


def _put_tied_back(module: nn.Module, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
    for name, other in _tied(module):
        if prefix + name in state:
            state.setdefault(prefix + other, state[prefix + name])


def _tied(module: nn.Module) -> list[tuple[str, str]]:
    """(name, other name) of parameters that are one."""
    first: dict[int, str] = {}
    pairs = []
    for name, parameter in module.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            pairs.append((known, name))
    return pairs
