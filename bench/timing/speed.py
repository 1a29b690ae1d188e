"""Seconds an edit by stage, peak memory, and the share of the machine's own matrix-product rate, at real dimensions.

    python bench/timing/speed.py                          GPT-2 small's dimensions, one CPU thread, about half an hour
    python bench/timing/speed.py --shape gpt-j-6b         on a CUDA device, as `make gpu` runs it; or llama-2-7b

Weights are random (bfloat16 on a device, vectors and solves in float32 and float64), so answers mean nothing and early
stops are off: 20 passes of `adam` as published, with MEMIT's six contexts, for every fact. `gauss-newton` stops when it
is there, as it does in use. Second moments and the contexts are prepared before the clock starts; what they take is a
row of its own. Facts are the world's. Results: `bench/results/speed_cpu.json`, `speed_gpu.json`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import palimpsest as ps
from common import Timings, one_thread
from palimpsest.files import write_text
from palimpsest.models.sites.linear import features
from palimpsest.provenance import peak_memory_bytes
from palimpsest.world import build as world_facts
from palimpsest.world import bundled_path
from palimpsest.world.text import training_sentences

REPEATS = {"cpu": 1, "cuda": 3}
FACTS = {
    "gpt2-small": (1, 10, 50),
    "gpt-j-6b": (1, 10, 100, 1000),
    "llama-2-7b": (1, 10, 100, 1000),
}
SHAPES: dict[str, tuple[Any, Any]] = {
    "gpt2-small": (GPT2LMHeadModel, GPT2Config),
    "gpt-j-6b": (GPTJForCausalLM, GPTJConfig),
    "llama-2-7b": (LlamaForCausalLM, partial(LlamaConfig, max_position_embeddings=4096)),
}
LAYERS = {
    "gpt2-small": [2, 3, 4, 5, 6],
    "gpt-j-6b": [3, 4, 5, 6, 7, 8],
    "llama-2-7b": [4, 5, 6, 7, 8],
}
# Ours stops at its aim; the published search goes on to its last step, as it does on weights that know nothing.
ADAM = {"targets": {"search": "adam", "steps": 20, "stop_loss": 0.0}, "search_in": "all-contexts"}
NEWTON = {"targets": {"search": "gauss-newton"}, "search_in": "prompt"}
HALF = {"targets": {**ADAM["targets"], "compute_dtype": "bfloat16"}, "search_in": "all-contexts"}  # type: ignore[dict-item]
# Random weights have neurons that hardly vary; the fewest tokens that are taken are enough to time a solve.
DAMPING, TOKENS_PER_DIMENSION = 1e-3, 5
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rome, adam": ("rome", ADAM),
    "rome, gauss-newton": ("rome", NEWTON),
    "memit, adam": ("memit", ADAM),
    "memit, adam in bfloat16": ("memit", HALF),
    "memit, gauss-newton": ("memit", NEWTON),
    "memit, gauss-newton, 4 passes": ("memit", {**NEWTON, "targets": {**NEWTON["targets"], "steps": 4}}),  # type: ignore[dict-item]
    "alphaedit, gauss-newton": ("alphaedit", NEWTON),
    "ft-l": ("ft-l", {"radius": 5e-4, "learning_rate": 5e-4, "epochs": 25, "layers": [0]}),
    "locft": ("locft", {"learning_rate": 5e-4, "epochs": 25}),
    "lora": ("lora", {"learning_rate": 1e-3, "epochs": 25}),
}
LARGE_BATCHES_OF_ONE = {"rome, adam", "rome, gauss-newton", "memit, adam in bfloat16"}


def build(shape: str, device: str) -> ps.EditableModel:
    """The shape with random weights and the world's tokenizer: ids stay in the vocabulary."""
    kind, config = SHAPES[shape]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    with torch.device(device):
        module = kind(config())
    torch.set_default_dtype(torch.float32)
    return ps.load(module, AutoTokenizer.from_pretrained(bundled_path("world")))


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of this machine's product of two square matrices; the best of five."""
    size = 8192 if device == "cuda" else 2048
    one = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        _ = one @ one
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def text_of(model: ps.EditableModel) -> dict[str, Any]:
    """What the second moments are collected on: the sentences that the bundled models are trained on."""
    file = Path(tempfile.gettempdir()) / "palimpsest-speed.txt"
    if not file.exists():
        write_text(file, "\n".join(sentence.text for sentence in training_sentences(world_facts(0))))
    width = features(model.sites.module("mlp.down", 0))[1]
    limits = {"damping": DAMPING, "tolerance": None, "max_tokens": TOKENS_PER_DIMENSION * width}
    return {"text": str(file), "statistics": limits}


def timed(model: ps.EditableModel, shape: str, case: str, num_edits: int, device: str) -> dict[str, Any]:
    """The median of a few calls, its stages, and one more call in which operations are counted."""
    name, options = CASES[case]
    if name in ("rome", "memit", "alphaedit"):
        layers = LAYERS[shape][-1:] if name == "rome" else LAYERS[shape]
        options = {**options, "layers": layers, **text_of(model)}
    method = ps.method(name, preset="none", **options)
    requests = ps.dataset("world-counterfact").sample(num_edits, 0).requests
    started = time.perf_counter()
    method.edit(model, requests[:1])
    first = time.perf_counter() - started
    runs = []
    for _ in range(REPEATS[device]):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _wait(device)
        wall, processor = time.perf_counter(), time.process_time()
        outcome = method.edit(model, requests)
        _wait(device)
        runs.append((time.perf_counter() - wall, time.process_time() - processor, outcome.diagnostics.seconds))
    wall, processor, stages = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
    with FlopCounterMode(display=False) as counter:
        method.edit(model, requests)
    return {
        "case": case,
        "num_edits": num_edits,
        "seconds": wall,
        "cpu_seconds": processor,
        "all_seconds": [run[0] for run in runs],
        "stages": stages,
        "preparation_seconds": first,
        "operations": counter.get_total_flops(),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory_bytes(),
    }


def against(timed: dict[str, Any], rate: float) -> dict[str, Any]:
    """A case's timings beside what this machine's matrix product gives."""
    return {**timed, "matrix_rate": rate, "share_of_rate": timed["operations"] / timed["seconds"] / rate}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Times every case at every number of facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-small")
    parser.add_argument("--cases", nargs="*", choices=CASES, help="only these")
    options = parser.parse_args()
    shape = options.shape
    device = "cpu" if shape == "gpt2-small" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("There is no CUDA device: nothing was measured.\n")
        return
    if device == "cpu":
        one_thread()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    settings = {"shape": shape, "dtype": str(dtype), "repeats": REPEATS[device], "cases": CASES}
    results = Timings("speed_cpu" if device == "cpu" else f"speed_gpu_{shape.replace('-', '_')}", settings)
    model = build(shape, device)
    rate = statistics.median(matrix_rate(device, dtype) for _ in range(3))
    for case in options.cases or CASES:
        for num_edits in FACTS[shape]:
            if num_edits > 10 and case in LARGE_BATCHES_OF_ONE:
                continue
            results.add(
                {"case": case, "num_edits": num_edits},
                lambda case=case, num_edits=num_edits: against(timed(model, shape, case, num_edits, device), rate),
            )


if __name__ == "__main__":
    main()
