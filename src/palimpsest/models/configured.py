"""Writing as a model's generation config says: what its users will see, where probes are greedy and plain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palimpsest.checkpoints import refused_by_transformers
from palimpsest.errors import ModelError
from palimpsest.models import tokens
from palimpsest.wording import Reply, parted

if TYPE_CHECKING:
    from palimpsest.models.editable import EditableModel

# What changes the text, with the values at which it does not.
_PLAIN: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "sequence_bias": None,
    "min_length": 0,
    "min_new_tokens": None,
}
_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")


def departures(model: EditableModel) -> dict[str, Any]:
    """Lists the settings of a generation config that make texts differ from plain greedy decoding."""
    config = getattr(model.module, "generation_config", None)
    found = {}
    for name, plain in _PLAIN.items():
        value = getattr(config, name, None)
        if value is not None and value != plain:
            found[name] = value
    if getattr(config, "do_sample", False):
        found["do_sample"] = True
        found |= {name: value for name in _OF_SAMPLING if (value := getattr(config, name, None)) is not None}
    return found


@torch.no_grad()
def generate_as_configured(
    model: EditableModel, prompts: Sequence[str], *, max_new_tokens: int, seed: int = 0
) -> list[str]:
    """Generates with the model's own `generate` after each prompt, up to the end of the sequence.

    Arguments:
        max_new_tokens: at most so many tokens of the answer; a thought before it has the chat's own number.
        seed: of the sampling, where the config samples.

    Raises `ModelError` under a patch that sends prompts elsewhere, which is not in the module's own weights, and for a
    generation config that transformers cannot write with.
    """
    if model.weights.routers:
        raise ModelError(
            "A patch on the model changes what is read, so the module cannot write by itself.",
            expected="patches of weights or modules",
            found=", ".join(model.weights.labels),
            remedy="leave --as-configured out",
        )
    texts = []
    thinking = model.chat.thinking if model.chat is not None else None
    length = max_new_tokens + (thinking.tokens if thinking is not None else 0)
    for prompt in prompts:
        batch = model.batch([model.asked(prompt)])
        with model.reads(batch), torch.random.fork_rng():
            torch.manual_seed(seed)
            ids = _written_ids(model, batch.input_ids, batch.attention_mask, max_new_tokens=length)
        text = str(model.tokenizer.decode(ids, skip_special_tokens=thinking is None)).strip()
        texts.append(text if thinking is None else _plain(parted(text, thinking.opened), model))
    return texts


@torch.no_grad()
def written_as_configured(
    model: EditableModel, input_ids: Tensor, attention_mask: Tensor, *, max_new_tokens: int, **options: Any
) -> str:
    """Generates with the module's own `generate` after one prompt.

    Arguments:
        input_ids: of the prompt, of shape (1, tokens), as its mask.
        max_new_tokens: most tokens to generate.
        options: instead of what the generation config says.

    Raises `ModelError` for a generation config that transformers cannot write with.
    """
    ids = _written_ids(model, input_ids, attention_mask, max_new_tokens=max_new_tokens, **options)
    return str(model.tokenizer.decode(ids, skip_special_tokens=True))


def _written_ids(
    model: EditableModel, input_ids: Tensor, attention_mask: Tensor, *, max_new_tokens: int, **options: Any
) -> Tensor:
    """(tokens,), what the module's own `generate` adds."""
    place = f"model {model.name!r}"
    with refused_by_transformers(model.name, where=place, what="generation config", remedy="correct that file"):
        ids = model.module.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokens.pad_id(model.tokenizer),
            # transformers sizes an encoder-decoder's cache by its encoder, which may have fewer blocks.
            use_cache=not model.is_encoder_decoder,
            **options,
        )
    new: Tensor = ids[0] if model.is_encoder_decoder else ids[0, input_ids.shape[1] :]
    return new


def _plain(text: str, model: EditableModel) -> str:
    """A text without the special tokens that stand in it, with its thought."""
    special = re.compile("|".join(map(re.escape, model.tokenizer.all_special_tokens)) or r"(?!)")
    answer = special.sub("", text).strip()
    return Reply(answer, text.thought, is_unfinished=text.is_unfinished) if isinstance(text, Reply) else answer
