"""How much memory editing takes beside the model: a model with Llama-2-7B's dimensions and fewer layers, in bfloat16.

    python bench/timing/memory.py [--layers 2]

Every row is a process of its own, and its memory is the process's peak (getrusage), not a sum of what is known.
The weights are random: memory does not depend on what they say.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import palimpsest as ps
from common import Timings, one_thread
from palimpsest.patches.export import write_merged
from palimpsest.provenance import peak_memory_bytes
from palimpsest.world import bundled_path

# arXiv:2307.09288 and the published config of Llama-2-7B.
DIMENSIONS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
CASES: dict[str, dict[str, Any]] = {
    "load": {},
    "ft-l": {"layers": [1], "radius": 1e-3, "epochs": 3},
    "locft": {"layers": [1], "epochs": 3},
    "lora": {"epochs": 3},
    "merge": {"layers": [1], "epochs": 1},
}
# What a trained number takes at most beside the model: its bfloat16 copy (2 bytes), the float32 master and gradient
# (4 + 4), AdamW's two moments (8), and on the way to a gradient or a bounded step a part of that again.
TRAINING_BYTES = 24
# A patch on the model: a changed weight in its new value (2 bytes) beside the old one, and what is changed last also as
# float32 change and float32 sum (4 + 4).
CHANGED_BYTES, CHANGING_BYTES = 2, 8
# Activations, and buffers of libraries that grow with the model.
ELSE = 150e6


def make_model(folder: Path, layers: int) -> None:
    """Writes a random model with the bundled model's tokenizer."""
    torch.set_default_dtype(torch.bfloat16)
    config = AutoConfig.for_model("llama", num_hidden_layers=layers, **DIMENSIONS)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled_path("world")).save_pretrained(folder)


def measure(folder: Path, case: str) -> dict[str, Any]:
    """Peak bytes of this process after importing, after loading and after the case."""
    one_thread()
    requests = [ps.EditRequest("The capital of France is", "Lyon"), ps.EditRequest("The capital of Italy is", "Milan")]
    # What is imported when it is first used is there before the model is.
    ps.method("lora", epochs=1).edit(ps.load("world"), requests)
    imported = peak_memory_bytes()
    model = ps.load(folder)
    loaded = peak_memory_bytes()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.module.parameters())
    trained = changed = largest = 0
    with tempfile.TemporaryDirectory() as scratch:
        if case != "load":
            editor = ps.method("locft" if case == "merge" else case, preset="none", **CASES[case])
            patch = editor.edit(model, requests).patch
            patch.save(Path(scratch) / "patch")
            trained = patch.num_parameters
            sizes = [model.module.get_parameter(name).numel() for name in patch.touched()]
            changed, largest = sum(sizes), max(sizes)
            with model.patched(patch):
                model.score(["The capital of France is"], ["Lyon"])
            if case == "merge":
                write_merged(model, [patch], Path(scratch) / "merged")
    patched = 4 * trained + CHANGED_BYTES * changed + CHANGING_BYTES * largest
    beside = max(TRAINING_BYTES * trained, patched)
    return {
        "case": case,
        "weights": weights,
        "trained": trained,
        "changed": changed,
        "imported": imported,
        "loaded": loaded,
        "peak": peak_memory_bytes(),
        "bound": imported + weights + beside + ELSE,
    }


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function in a new process, whose peak is nobody else's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def rows(layers: int, cases: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every case in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        apart(make_model, Path(scratch) / "model", layers)
        for case in cases:
            yield apart(measure, Path(scratch) / "model", case)


def main() -> None:
    """Measures every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    layers = parser.parse_args().layers
    results = Timings("memory", {"layers": layers, "dtype": "bfloat16", **DIMENSIONS, "cases": CASES})
    for row in rows(layers, list(CASES)):
        results.add({"case": row["case"]}, lambda row=row: row)


if __name__ == "__main__":
    main()
