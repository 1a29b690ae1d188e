"""SERAC's two models before training, and the losses that they are trained by."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.loading import load
from palimpsest.methods.serac.scope_examples import Positive, drawn_positives, drawn_statement, negatives
from palimpsest.methods.serac.scope_options import DECODER, SMALL, ScopeTraining
from palimpsest.models import EditableModel, load_encoder
from palimpsest.models.scoped import (
    ScopedEditor,
    ScopedEditorRecord,
    balanced_cross_entropy,
    edited_prompt,
    new_module,
    require_same_tokenizer,
    scope_classifier,
    small_decoder,
    small_encoder,
    smaller_config,
    tokenizer_record,
)
from palimpsest.training import EditExample


def new_editor(model: EditableModel, options: ScopeTraining) -> ScopedEditor:
    """The two models before training, on the device of the model that they are for.

    Raises `ModelError` for a counterfactual model with another tokenizer.
    """
    encoder, tokenizer = _encoder(model, options)
    counterfactual = _counterfactual(model, options)
    record = ScopedEditorRecord(
        form=options.scope,
        pooling=options.pooling,
        encoder=encoder.config.to_dict(),
        encoder_tokenizer=None if tokenizer is model.tokenizer else tokenizer_record(tokenizer),
        counterfactual=counterfactual.config.to_dict(),
    )
    scope = scope_classifier(options.scope, encoder, tokenizer, options.pooling)
    editor = ScopedEditor(scope, counterfactual, model.tokenizer, record)
    for module in editor.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return editor.to(model.device)


def scope_losses(
    editor: ScopedEditor, examples: Sequence[EditExample], draw: random.Random, options: ScopeTraining
) -> dict[str, Tensor]:
    """`loss`, and its parts: `edit`, the counterfactual model's, and `scope`, the classifier's."""
    inside: list[Positive] = []
    outside: list[tuple[str, str]] = []
    for example in examples:
        statement = drawn_statement(example, draw, options)
        inside += [replace(one, edit=statement) for one in drawn_positives(example, examples, draw, options)]
        outside += [(statement, prompt) for prompt in negatives(example, options, draw)]
    edit = answer_loss(editor.reader, inside)
    # One call for both, so that an edit's prompt is encoded once.
    found = editor.scope.log_probs(
        [*(one.edit for one in inside), *(statement for statement, _ in outside)],
        [*(one.prompt for one in inside), *(prompt for _, prompt in outside)],
    )
    scope = balanced_cross_entropy(found[: len(inside)], found[len(inside) :])
    return {"loss": options.edit_weight * edit + options.scope_weight * scope, "edit": edit, "scope": scope}


def answer_loss(reader: EditableModel, asked: Sequence[Positive]) -> Tensor:
    """-log p of each answer and of its end, behind the edit and the prompt: mean over tokens, then over answers.

    Arguments:
        reader: the counterfactual model.
        asked: prompts in the scope of edits.
    """
    end = () if reader.end_id is None else (reader.end_id,)
    rows = [reader.encode(edited_prompt(one.edit, one.new, one.prompt), one.answer) for one in asked]
    rows = [replace(row, target_ids=row.target_ids + end) for row in rows]
    batch = reader.batch(rows)
    places, columns, labels = reader.answer_places(rows, batch)
    losses = nn.functional.cross_entropy(reader.logits_at(batch, places, columns).float(), labels, reduction="none")
    lengths = torch.tensor([len(row.target_ids) for row in rows], device=losses.device)
    return (losses / lengths[places]).sum() / len(rows)


def _encoder(model: EditableModel, options: ScopeTraining) -> tuple[Any, Any]:
    """The scope classifier's encoder and its tokenizer."""
    if options.encoder != SMALL:
        return load_encoder(options.encoder)
    width, layers, heads = options.encoder_width, options.encoder_layers, options.heads
    rows = int(model.module.get_input_embeddings().weight.shape[0])
    return small_encoder(rows, width=width, layers=layers, heads=heads), model.tokenizer


def _counterfactual(model: EditableModel, options: ScopeTraining) -> Any:
    sizes = {"width": options.width, "layers": options.layers, "heads": options.heads}
    if options.counterfactual == SMALL:
        return new_module(smaller_config(model.module.config, **sizes))
    if options.counterfactual == DECODER:
        rows = int(model.module.get_input_embeddings().weight.shape[0])
        return new_module(small_decoder(model.tokenizer, rows, **sizes))
    chosen = load(options.counterfactual, dtype="float32", device="cpu")
    require_same_tokenizer(chosen.tokenizer, model, name=options.counterfactual)
    return chosen.module
