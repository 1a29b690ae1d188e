"""How long a prompt waits for SERAC's memory, by the number of its entries.

    python bench/timing/serac_memory.py        a minute on one core

The bundled decoder's editor; entries beyond the first hundred are made up, and their vectors drawn at random: the
search does not depend on what they say. Result: `bench/results/serac_memory.json`.
"""

from __future__ import annotations

from functools import partial

import torch

import palimpsest as ps
from common import Timings, median_seconds, one_thread
from palimpsest.patches.base import Manifest
from palimpsest.patches.memory import MemoryEntry
from palimpsest.patches.routers import RouterPatch

ENTRIES = (1, 100, 10_000, 100_000)
PROMPTS, REPEATS = 64, 5
SETTINGS = {"model": "world", "entries": ENTRIES, "prompts": PROMPTS, "repeats": REPEATS, "seed": 0}


def measured(model: ps.EditableModel, seed: RouterPatch, number: int) -> dict[str, float | int]:
    """Seconds per prompt of the routing and nothing else, for one prompt and for many together."""
    entries = [MemoryEntry(str(place), f"The capital of place {place} is", f"City {place}") for place in range(number)]
    drawn = torch.randn(number, seed.index.shape[1], generator=torch.Generator().manual_seed(0))
    vectors = seed.index.mean(0) + seed.index.std(0) * drawn
    patch = RouterPatch(entries, vectors, Manifest(label="memory"), routing=seed.routing, editor=seed.editor_for(model))
    prompts = [request.prompt for request in ps.dataset("world-counterfact").requests[:PROMPTS]]
    row: dict[str, float | int] = {"patch_bytes": patch.num_bytes}
    with model.patched(patch):
        [router] = model.weights.routers
        for name, asked in (("alone", prompts[:1]), ("together", prompts)):
            router(asked)
            row[name] = median_seconds(partial(router, asked), REPEATS) / len(asked)
    return row


def main() -> None:
    """Measures every size."""
    one_thread()
    model = ps.load("world")
    results = Timings("serac_memory", SETTINGS)
    requests = ps.dataset("world-counterfact", split="train").requests[:100]
    seed = ps.method("serac").edit(model, requests).patch
    for number in ENTRIES:
        results.add({"entries": number}, partial(measured, model, seed, number))


if __name__ == "__main__":
    main()
