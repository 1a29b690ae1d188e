"""What SERAC's two models are trained on and for: prompts in and out of the scope of edits."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from palimpsest.loading import load
from palimpsest.models import EditableModel, NgramEncoder, inner_products, load_encoder, most_similar
from palimpsest.models.scoped import (
    ClassifierForm,
    EncoderPooling,
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
from palimpsest.requests import EditRequest, normalise
from palimpsest.training import EditExample, MetaTrainingOptions

SMALL, DECODER = "small", "decoder"
_ROWS = 1024


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
    """`embedding` compares one vector a text; `cross-attention` reads both texts together, for every entry."""
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


@dataclass(frozen=True)
class ScopeExample(EditExample):
    """An edit with other edits' prompts of similar wording, each with its similarity."""

    similar: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Positive:
    """A prompt in the scope of an edit.

    Arguments:
        edit: the edit's prompt.
        new: its new answer.
        prompt: what is asked.
        answer: what is to be answered.
    """

    edit: str
    new: str
    prompt: str
    answer: str


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


def positives(example: EditExample, options: ScopeTraining) -> list[Positive]:
    """All prompts in the scope of an edit: its own, rephrasings, and those whose answers follow from it."""
    request = example.request
    own = [(prompt, request.target_new) for prompt in (request.prompt, *example.rephrasings)]
    implied = [(one.prompt, str(one.expected)) for one in request.probes if one.kind.startswith("portability")]
    pairs = own + (implied if options.has_implications else [])
    return [Positive(request.prompt, request.target_new, prompt, answer) for prompt, answer in pairs]


def drawn_statement(example: EditExample, draw: random.Random, options: ScopeTraining) -> str:
    """The prompt at which an edit is made: its own, or, in a share of the draws, one of its rephrasings."""
    return draw.choice(example.rephrasings) if draw.random() < options.reworded_share else example.request.prompt


def drawn_positives(
    example: EditExample, others: Sequence[EditExample], draw: random.Random, options: ScopeTraining
) -> list[Positive]:
    """Some prompts in the scope of an edit, a share of them with the new answer of one of the other edits."""
    found = positives(example, options)
    drawn = draw.sample(found, min(options.positives_per_edit, len(found)))
    for place, one in enumerate(drawn):
        if one.answer == one.new and draw.random() < options.swapped_share:
            other = draw.choice(others).request.target_new
            drawn[place] = replace(one, new=other, answer=other)
    return drawn


def negatives(example: EditExample, options: ScopeTraining, draw: random.Random) -> list[str]:
    """Prompts drawn out of the scope of an edit: its locality probes, and other edits' prompts of similar wording."""
    similar = example.similar if isinstance(example, ScopeExample) else ()
    drawn = []
    for _ in range(options.negatives_per_edit):
        if similar and draw.random() < options.hard_share:
            weights = [math.exp(one / options.temperature) for _, one in similar]
            drawn += [prompt for prompt, _ in draw.choices(similar, weights)]
        else:
            drawn.append(draw.choice(example.unrelated)[0])
    return drawn


def with_similar(examples: Sequence[EditExample], options: ScopeTraining) -> list[EditExample]:
    """The examples with the prompts of other edits, about other facts, that are most similar to their own."""
    prompts = [one.request.prompt for one in examples]
    vectors = NgramEncoder().encode(prompts)
    count = min(len(examples), options.skipped + options.nearest)
    found: list[EditExample] = []
    for start in range(0, len(examples), _ROWS):
        similarities = inner_products(vectors[start : start + _ROWS], vectors)
        for example, values in zip(examples[start : start + _ROWS], similarities, strict=True):
            near = [
                (prompts[other], float(values[other]))
                for other in most_similar(values, prompts, count)
                if not _is_one_fact(example.request, examples[other].request)
            ]
            kept = {field.name: getattr(example, field.name) for field in fields(example)}
            found.append(ScopeExample(**{**kept, "similar": tuple(near[options.skipped :])}))
    return found


def _is_one_fact(first: EditRequest, second: EditRequest) -> bool:
    """Whether two edits may be about one fact; where facts have no name, those about one subject may be."""
    if first.fact is not None and second.fact is not None:
        return first.fact == second.fact
    if first.subject is not None and second.subject is not None:
        return normalise(first.subject) == normalise(second.subject)
    return normalise(first.prompt) == normalise(second.prompt)


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
