"""Context templates: short texts before a prompt, so that an edit holds in more than one place.

ROME and MEMIT let the model write them, from a seed of their own; they belong in the patch's manifest. What a model
without patches wrote is kept in the cache, under everything that determines it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from palimpsest.config import Config
from palimpsest.errors import ConfigError
from palimpsest.models import EditableModel, Encoded, encode, logits_by_step
from palimpsest.requests import EditRequest
from palimpsest.statistics import Cache, CacheEntry, whole_identity

SAMPLER_VERSION = 1
"""Goes up when the same model, seed and options would give other texts."""

CLEAN = ("{}",)
"""Only the prompt: the first context of every fact."""


class ContextOptions(Config):
    """Which texts stand before a prompt. The defaults are MEMIT's (arXiv:2210.07229, code): five of ten tokens."""

    given: list[str] | None = None
    """Templates, each ending with its only {}, instead of generated ones; an empty list for none."""
    starts: list[str] = ["The", "Therefore", "Because", "I", "You"]
    """What the generated texts begin with; the empty text is the beginning of a sequence (ROME)."""
    lengths: list[int] = [10]
    """Tokens of a generated text, its start included; ROME's are 5 and 10."""
    per_start: int = Field(default=1, ge=1)
    """Texts of each length for each start; ROME has 10 for its one start."""
    top_k: int = Field(default=5, ge=1)
    """How many of the most probable tokens are sampled from."""

    @model_validator(mode="after")
    def _are_usable(self) -> ContextOptions:
        for template in self.given or ():
            if not _is_template(template):
                raise ValueError(f"the template {template!r} does not end with its only {{}}")
        if any(length < 1 for length in self.lengths):
            raise ValueError("a text has at least one token")
        return self


ROME = ContextOptions(starts=[""], lengths=[5, 10], per_start=10)
"""ROME's (arXiv:2202.05262, code): ten texts of five and ten of ten tokens."""
MEMIT = ContextOptions()
NO_CONTEXTS = ContextOptions(given=[])
"""The prompt alone."""


def context_templates(
    model: EditableModel, options: ContextOptions, *, seed: int, cache: Cache | None = None
) -> tuple[str, ...]:
    """`{}` alone, then the given or generated templates, without repetitions.

    Arguments:
        seed: of the sampling, which draws from no other generator.
        cache: where generated ones are kept; left out, the default folder.

    Raises `ConfigError` when texts are to begin where a sequence does and the tokenizer has no token for that.
    """
    texts = _generated(model, options, seed, cache or Cache()) if options.given is None else options.given
    return tuple(dict.fromkeys((*CLEAN, *texts)))


def _generated(model: EditableModel, options: ContextOptions, seed: int, cache: Cache) -> list[str]:
    """The model's own texts as templates: from the cache where no patch is on it, or written now."""
    # What a patched model writes is its own, and asked for once.
    known = {**whole_identity(model), **_what(model, options, seed)} if model.weights.is_bare else None
    kept = None if known is None else cache.read(known, _templates_in)
    if kept is not None:
        return kept
    generator = torch.Generator().manual_seed(seed)
    texts = [
        f"{text}. {{}}"
        for length in options.lengths
        for text in _continued(model, options.starts * options.per_start, length, options.top_k, generator)
        if text
    ]
    if known is not None:
        cache.write(known, {}, templates=texts)
    return texts


def _what(model: EditableModel, options: ContextOptions, seed: int) -> dict[str, Any]:
    """Returns everything but the model that determines the generated texts."""
    dtype = str(model.module.dtype).removeprefix("torch.")
    return {"kind": "contexts", "sampler": SAMPLER_VERSION, **options.model_dump(), "dtype": dtype, "seed": seed}


def _templates_in(entry: CacheEntry) -> list[str]:
    """The templates that were kept. Raises `ValueError` for what is damaged."""
    found = entry.record.get("templates")
    if not isinstance(found, list) or not all(isinstance(one, str) and _is_template(one) for one in found):
        raise ValueError("field `templates`: texts that end with their only {} are missing")
    return found


def check_templates(templates: Sequence[str]) -> None:
    """Raises `ConfigError` unless all are templates and the first one is the prompt alone."""
    for template in templates:
        if not _is_template(template):
            raise ConfigError(
                "A context template is invalid.",
                expected="text that ends with {}, the place of the prompt, and has no other",
                found=repr(template),
                where="the context templates",
            )
    if tuple(templates[:1]) != CLEAN:
        raise ConfigError(
            "The prompt alone is not the first context.",
            expected="'{}' as the first template: initial vectors are read there",
            found=repr(list(templates[:1])),
            where="the context templates",
        )


def in_context(request: EditRequest, template: str) -> EditRequest:
    """The request with its prompt placed in a template."""
    return replace(request, prompt=template.replace("{}", request.prompt))


def encode_in_context(model: EditableModel, request: EditRequest, template: str, target: str | None = None) -> Encoded:
    """Ids of a request's prompt placed in a template, and of a target after it.

    Raises `DataError` that names the request's own prompt where that does not fit the model's context.
    """
    return model.encode(in_context(request, template).prompt, target, own=request.prompt)


def _is_template(text: str) -> bool:
    return text.count("{}") == 1 and text.endswith("{}")


@torch.no_grad()
def _continued(
    model: EditableModel, starts: Sequence[str], length: int, top_k: int, generator: torch.Generator
) -> list[str]:
    """Sampled texts of `length` tokens, one a start, on one line and without braces or special tokens."""
    rows = [list(_start_ids(model, start)[:length]) for start in starts]
    if min(map(len, rows)) < length:
        batch = model.batch(rows, side="left")
        with model.reads(batch):
            steps = logits_by_step(model, batch)
            logits = next(steps)
            while True:
                chosen = _sampled(logits, top_k, generator)
                for row, token in zip(rows, chosen, strict=True):
                    if len(row) < length:
                        row.append(token)
                if min(map(len, rows)) == length:
                    break
                logits = steps.send(torch.tensor(chosen, device=model.device))
    return [_cleaned(model.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


def _sampled(logits: Tensor, top_k: int, generator: torch.Generator) -> list[int]:
    """One token a row, from the `top_k` most probable ones by their probabilities; the same on every device."""
    best, ids = logits.float().cpu().topk(min(top_k, logits.shape[-1]), dim=-1)
    picked = torch.multinomial(best.softmax(-1), 1, generator=generator)
    chosen: list[int] = ids.gather(1, picked)[:, 0].tolist()
    return chosen


def _start_ids(model: EditableModel, start: str) -> tuple[int, ...]:
    if start:
        # Never in a chat: the text goes into the user's words, before the prompt.
        return encode(model.tokenizer, start).prompt_ids
    tokenizer: Any = model.tokenizer
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return (int(token),)
    raise ConfigError(
        "The tokenizer has no token that a text could begin with.",
        expected="a beginning-of-sequence or end-of-sequence token",
        found="neither",
        where="option starts",
        remedy="give a word to start with, or templates of your own",
    )


def _cleaned(text: str) -> str:
    return " ".join(text.replace("{", " ").replace("}", " ").split())
