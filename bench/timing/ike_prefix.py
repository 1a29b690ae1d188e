"""What IKE's questions cost when the demonstrations before them are read once, and when they are read with each.

    python bench/timing/ike_prefix.py        two minutes on one core

An untrained decoder of 1,024 tokens of context, with the bundled decoder's tokenizer: time does not depend on what a
model knows. Result: `bench/results/ike_prefix.json`.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import palimpsest as ps
from common import Timings, median_seconds, one_thread

SIZES = {"n_positions": 1024, "n_embd": 256, "n_layer": 6, "n_head": 4}
QUESTIONS, NEW_TOKENS, REPEATS = 32, 8, 3
SETTINGS = {"model": {"model_type": "gpt2", **SIZES}, "questions": QUESTIONS, "tokens": NEW_TOKENS, "repeats": REPEATS}


def measured() -> dict[str, float | int]:
    """Scoring and generating: seconds of all questions together, whole and from the shared beginning."""
    tokenizer = ps.load("world").tokenizer
    torch.manual_seed(0)
    model = ps.load(
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **SIZES)), tokenizer
    )
    data = ps.dataset("world-counterfact").requests
    patch = ps.method("ike", preset="none", corpus="world-counterfact", encoder="ngrams").edit(model, data[:1]).patch
    [entry] = patch.entries
    prompts = [request.prompt for request in data[:QUESTIONS]]
    answers = [str(request.target_old) for request in data[:QUESTIONS]]
    texts = [patch.route(model, entry, prompt).prompt for prompt in prompts]
    row: dict[str, float | int] = {"tokens_before": len(model.encode(texts[0])) - len(model.encode(prompts[0]))}
    whole = model.score(texts, answers)
    for name, asked in (("whole", texts), ("shared", prompts)):
        with model.patched(patch) if name == "shared" else nullcontext():
            score, generate = (
                partial(model.score, asked, answers),
                partial(model.generate, asked, max_new_tokens=NEW_TOKENS),
            )
            row[f"score_{name}"], row[f"generate_{name}"] = (median_seconds(ask, REPEATS) for ask in (score, generate))
    with model.patched(patch):
        shared = model.score(prompts, answers)
    row["largest_difference"] = max(
        abs(a - b) for one, other in zip(whole, shared, strict=True)
        for a, b in zip(one.log_probs, other.log_probs, strict=True)
    )  # fmt: skip
    return row


if __name__ == "__main__":
    one_thread()
    Timings("ike_prefix", SETTINGS).add({}, measured)
