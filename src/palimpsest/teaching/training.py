"""Training a small model on sentences until it knows what they say; with the world's, the bundled ones.

Everything is seeded, nothing touches a global random generator, and an interrupted run leaves nothing behind.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from palimpsest.errors import ConfigError, unknown_name
from palimpsest.files import new_folder, require_absent
from palimpsest.provenance import versions
from palimpsest.stopwatch import Progress
from palimpsest.teaching.auditing import audit
from palimpsest.teaching.bars import bar
from palimpsest.teaching.card import write_card
from palimpsest.teaching.decoder import DecoderRecipe
from palimpsest.teaching.encoder_decoder import EncoderDecoderRecipe
from palimpsest.teaching.muon import Muon
from palimpsest.teaching.recipe import TrainingBatch, TrainingRecipe
from palimpsest.teaching.results import TrainingResult
from palimpsest.world import Knowledge, Sentence, build, training_sentences

RECIPES: dict[str, type[TrainingRecipe]] = {kind.architecture: kind for kind in (DecoderRecipe, EncoderDecoderRecipe)}
CARD_FACTS = 2500
"""Of how many facts, and as many two-hop ones, a card is made: all of the bundled world, a sample of a larger one."""


def default_recipe(architecture: str) -> TrainingRecipe:
    """The recipe of the bundled model of this architecture: "decoder" or "encoder-decoder".

    Raises:
        ConfigError: there is no such architecture.
    """
    if architecture not in RECIPES:
        raise unknown_name("architecture", architecture, RECIPES)
    return RECIPES[architecture]()  # type: ignore[call-arg]  # every leaf gives all its numbers a default


def train(
    out: str | Path,
    *,
    seed: int = 0,
    progress: bool | Progress = True,
    recipe: TrainingRecipe | None = None,
    knowledge: Knowledge | None = None,
    max_steps: int | None = None,
    dtype: str = "float16",
    card: bool = True,
) -> TrainingResult:
    """Train a model on a world and write it to `out` as an ordinary Hugging Face folder.

    The folder appears complete or not at all. Same seed, recipe, thread count and kind of processor: same
    bits.

    Arguments:
        out: a folder that does not exist yet.
        seed: of the world (unless `knowledge` is given), the initial weights and the order of the sentences.
        progress: True for a bar on stderr, or a function called as `(stage, done, total)`.
        recipe: the default is the bundled decoder's.
        max_steps: stop early after so many steps (the schedules stay those of the whole training).
        dtype: what the weights are stored in: "float32", "float16" or "bfloat16".
        card: audit the model as stored, on `CARD_FACTS` facts of a larger world, and write card.md and card.json
            beside it (a minute or two).

    Raises:
        ConfigError: an option is out of range.
        OutputError: `out` exists already, or cannot be written to.
    """
    recipe = recipe or DecoderRecipe()
    recipe.check()
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ConfigError("Unknown storage type.", expected="float32, float16 or bfloat16", found=repr(dtype))
    target = Path(out)
    require_absent(target)
    knowledge = knowledge or build(seed)
    with new_folder(target) as folder:
        model, tokenizer, result = fit(
            training_sentences(knowledge), recipe, seed=seed, progress=progress, max_steps=max_steps
        )
        result = replace(result, people=knowledge.people)
        save(model, tokenizer, folder, dtype)
        if card:
            with _threads(recipe.threads):
                audited = audit(folder, knowledge=knowledge, max_facts=CARD_FACTS, progress=progress)
            write_card(folder, result, audited, _versions())
    return result


def fit(
    sentences: Sequence[Sentence],
    recipe: TrainingRecipe,
    *,
    seed: int = 0,
    progress: bool | Progress = True,
    max_steps: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, TrainingResult]:
    """Sentences in, model and tokenizer out: one epoch reads each sentence once.

    Arguments:
        sentences: what the model shall know, each with its subject, by whose name the curriculum chooses.
        seed: of the initial weights and the order of the sentences.
        progress: True for a bar on stderr, or a function called as `(stage, done, total)`.
        max_steps: stop early after so many steps (the schedules stay those of the whole training).

    Raises:
        ConfigError: a number of the recipe is out of range.
        DataError: there are no sentences, or one cannot be told apart into prompt and object.
    """
    recipe.check()
    started = time.perf_counter()
    tokenizer = recipe.learn_tokenizer(sentence.text for sentence in sentences)
    # The weights are drawn on the CPU, so that the start does not depend on the device.
    model = recipe.new_model(tokenizer, seed).train().to(recipe.device)
    kind = torch.device(recipe.device).type
    low = _bf16(recipe.precision, kind)
    hidden = [p for name, p in model.named_parameters() if recipe.is_hidden_matrix(name, p)]
    others = [p for name, p in model.named_parameters() if not recipe.is_hidden_matrix(name, p)]
    muon = Muon(hidden, weight_decay=recipe.weight_decay, dtype=torch.bfloat16 if low else torch.float32)
    adam = torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0)

    total = recipe.epochs * len(sentences)
    losses: list[float] = []
    done = tokens = 0
    batches = _batches(sentences, recipe, tokenizer, seed)
    with _threads(recipe.threads), bar(progress, "training the world", total) as report:
        while done < total and (max_steps is None or len(losses) < max_steps):
            batch, done = next(batches)
            rate = _rate(done / total, recipe)
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=low):
                loss = recipe.loss(model, _moved(batch, recipe.device))
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(others, recipe.gradient_clip)
            adam.param_groups[0]["lr"] = recipe.other_rate * rate
            adam.step()
            muon.step(recipe.matrix_rate * rate)
            model.zero_grad(set_to_none=True)
            losses.append(loss.item())
            tokens += batch.num_tokens
            report(min(done, total), f"loss {losses[-1]:.3f}")
    parameters = sum(p.numel() for p in model.parameters())
    seconds = time.perf_counter() - started
    few = math.ceil(len(losses) / 100)
    ends = fmean(losses[:few]), fmean(losses[-few:])
    result = TrainingResult(recipe.architecture, seed, recipe, len(losses), tokens, seconds, parameters, *ends)
    return model.eval().cpu(), tokenizer, result


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, dtype: str) -> None:
    """Write a model as an ordinary folder: weights stored in `dtype`, loaded in float32 unless asked
    otherwise.
    """
    # Tied tensors are stored once, under the name that the library keeps.
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    weights = {name: tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in kept.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    (folder / "model.safetensors").chmod(0o644)
    # Half precision only halves the file. What is computed with is the loader's choice, float32 if it makes
    # none.
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batches(
    sentences: Sequence[Sentence], recipe: TrainingRecipe, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[tuple[TrainingBatch, int]]:
    """Batches and the number of sentences read after each: the curriculum's few subjects first, then
    everything.
    """
    examples = recipe.encode(sentences, tokenizer)
    total = recipe.epochs * len(examples)
    rng = random.Random(f"rows|{seed}")
    subjects = sorted({example.name for example in examples})
    few = set(rng.sample(subjects, math.ceil(recipe.curriculum_subjects * len(subjects))))
    done = number = 0
    stages = (
        ([example for example in examples if example.name in few], recipe.curriculum_share * total),
        (examples, math.inf),
    )
    for pool, until in stages:
        batches = recipe.batches(pool, tokenizer, rng, number + 1)
        while done < until:
            batch = next(batches)
            number += 1
            done += batch.num_sentences
            yield batch, done


def _rate(share: float, recipe: TrainingRecipe) -> float:
    """The learning rate's factor after this share of the training: up, flat, and linearly down to zero."""
    if share < recipe.warmup_share:
        return share / recipe.warmup_share
    if share < recipe.decay_from:
        return 1.0
    return max(0.0, (1 - share) / (1 - recipe.decay_from))


def _bf16(precision: str, kind: str) -> bool:
    """Whether to compute in bfloat16; "auto" does where the processor or the device has instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    return bool(torch.cuda.is_bf16_supported() if kind == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _moved(batch: Any, device: str) -> Any:
    """The batch with its tensors on the device."""
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: one.to(device) for name, one in tensors.items() if isinstance(one, torch.Tensor)})


def _versions() -> dict[str, str]:
    return {name: found for name, found in versions().items() if name in ("torch", "transformers", "tokenizers")}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
