"""Seconds an edit and peak memory at GPT-J-6B's dimensions (random weights, bfloat16), on a CUDA device.

    python bench/gpu_speed.py         a few minutes; does nothing but say so where there is no device

Only methods that touch a few tensors are timed: full fine-tuning of six billion weights needs more than one device.
Results: `bench/results/gpu_speed.json`.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial
from typing import Any

import torch
from transformers import GPTJConfig, GPTJForCausalLM

import palimpsest as ps
from common import Results
from palimpsest.world import bundled_path

REPEATS = 5
METHODS: dict[str, dict[str, Any]] = {
    "ft-l": {"radius": 5e-5, "learning_rate": 5e-4, "epochs": 25},
    "locft": {"learning_rate": 5e-4, "epochs": 25},
    "lora": {"learning_rate": 1e-3, "epochs": 25},
}
SETTINGS = {"model": "GPT-J-6B dimensions, random weights, bfloat16", "repeats": REPEATS, "methods": METHODS}


def build() -> ps.EditableModel:
    """GPT-J-6B's shape with the world's tokenizer: ids stay in the vocabulary, answers mean nothing."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundled_path("world"))
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        module = GPTJForCausalLM(GPTJConfig())
        torch.set_default_dtype(torch.float32)
    return ps.load(module, tokenizer)


def timed(model: ps.EditableModel, name: str, num_edits: int) -> dict[str, Any]:
    """Median seconds of one call with `num_edits` facts, and the device's peak memory."""
    requests = ps.dataset("world-counterfact").sample(num_edits, 0).requests
    seconds = []
    for _ in range(REPEATS):
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        start = time.perf_counter()
        ps.method(name, preset="none", **METHODS[name]).edit(model, requests)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "method": name,
        "num_edits": num_edits,
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(),
    }


def main() -> None:
    """Times every method at 1, 10 and 100 facts."""
    if not torch.cuda.is_available():
        sys.stderr.write("There is no CUDA device: nothing was measured.\n")
        return
    model = build()
    results = Results("gpu_speed", SETTINGS)
    for name in METHODS:
        for num_edits in (1, 10, 100):
            results.get({"method": name, "num_edits": num_edits}, partial(timed, model, name, num_edits))


if __name__ == "__main__":
    main()
