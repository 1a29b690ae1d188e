"""CPU seconds a fact of the search for target vectors, at GPT-2 small's dimensions with random weights, one thread.

    python bench/timing/target_vectors.py        about ten minutes; results: bench/results/target_vectors.json

Adam takes 20 passes and never stops early. Random weights know nothing, so this is only about time; how many facts
each search brings to its threshold is measured on the bundled model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

import palimpsest as ps
from common import Timings, cpu_seconds, one_thread
from palimpsest.locating.subject_vectors import subject_rows, subject_vectors
from palimpsest.locating.target_vector import TargetOptions, TargetVectors, find_target_vectors
from palimpsest.models.hooks import Point
from speed import build

LAYER, FACTS, REPEATS = 6, 50, 3
TEMPLATES = (
    "{}",
    "The book was written long ago by a person from Italy. {}",
    "Therefore the river runs through the city and on. {}",
    "Because the laws of the country are written in German. {}",
    "I know that the capital of Egypt is old and large. {}",
    "You can hear the music of the trumpet in the street. {}",
)
ADAM = {"steps": 20, "stop_loss": 0.0, "learning_rate": 0.5, "clamp_norm_factor": 4.0}
SEARCHES: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "adam": (ADAM, TEMPLATES),
    "adam, bfloat16 above the layer": ({**ADAM, "compute_dtype": "bfloat16"}, TEMPLATES),
    "gauss-newton": ({"search": "gauss-newton"}, TEMPLATES[:1]),
    "gauss-newton, 4 passes": ({"search": "gauss-newton", "steps": 4}, TEMPLATES[:1]),
    "gauss-newton, 4 passes, bfloat16 above the layer": (
        {"search": "gauss-newton", "steps": 4, "compute_dtype": "bfloat16"},
        TEMPLATES[:1],
    ),
}
WORLD_FACTS, WORLD_LAYER = 100, 1
REACH: dict[str, tuple[str, dict[str, Any]]] = {
    "adam at `mlp.down`": ("mlp.down", {}),
    "adam at `resid`": ("resid", {}),
    "adam at `resid`, relative rate 0.1": ("resid", {"learning_rate": 0.1, "learning_rate_unit": "relative"}),
    "gauss-newton": ("mlp.down", {"search": "gauss-newton"}),
}
SETTINGS = {
    "model": "GPT-2 small dimensions (12 layers, width 768, vocabulary 50,257), random weights, float32",
    "layer": LAYER,
    "facts": FACTS,
    "repeats": REPEATS,
    "templates": list(TEMPLATES),
    "searches": {name: options for name, (options, _) in SEARCHES.items()},
}


def facts(model: ps.EditableModel) -> list[ps.EditRequest]:
    """Facts of the world, each behind a sentence about another, with prompts of 10 to 25 tokens."""
    found = ps.dataset("world-counterfact").sample(4 * FACTS, 0).requests
    before = [f"{one.prompt} {one.target_new}. " for one in found]
    placed = [
        replace(one, prompt=text + one.prompt, probes=())
        for one, text in zip(found, before[1:] + before[:1], strict=True)
    ]
    return [one for one in placed if 10 <= len(model.encode(one.prompt)) <= 25][:FACTS]


def searched(model: ps.EditableModel, requests: Sequence[ps.EditRequest], name: str) -> dict[str, Any]:
    """All facts in one call, several times."""
    options, templates = SEARCHES[name]
    call = partial(
        find_target_vectors, model, requests, layer=LAYER, options=TargetOptions(**options), templates=templates
    )
    runs = [cpu_seconds(call) for _ in range(REPEATS)]
    found: TargetVectors = runs[0][1]
    return {
        "seconds_per_fact": min(seconds for seconds, _ in runs) / len(requests),
        "all_seconds": [seconds for seconds, _ in runs],
        "mean_passes": mean(found.passes),
        "mean_nll_after": mean(found.nlls[identity][-1] for identity in found.ids),
    }


def reach(name: str) -> dict[str, Any]:
    """How many facts of the bundled model come below the threshold, from the prompt alone."""
    model = ps.load("world")
    requests = ps.dataset("world-counterfact").sample(WORLD_FACTS, 0).requests
    site, options = REACH[name]
    call = partial(find_target_vectors, model, requests, layer=WORLD_LAYER, site=site, options=TargetOptions(**options))
    seconds, found = cpu_seconds(call)
    (stream,) = subject_vectors(model, subject_rows(model, requests), [Point("resid", WORLD_LAYER)]).values()
    return {
        "site": site,
        "options": options,
        "facts": WORLD_FACTS,
        "layer": WORLD_LAYER,
        "seconds_per_fact": seconds / WORLD_FACTS,
        "mean_passes": mean(found.passes),
        "below_nll": sum(found.nlls[identity][-1] < TargetOptions().stop_loss for identity in found.ids),
        "mean_norm_of_initial": float(found.initial.norm(dim=1).mean()),
        "mean_share_of_stream": float((found.deltas.norm(dim=1) / stream[:, 0].norm(dim=1)).mean()),
    }


def main() -> None:
    """Times every search, then asks what each reaches."""
    one_thread()
    model = build("gpt2-small", "cpu")
    requests = facts(model)
    results = Timings("target_vectors", SETTINGS)
    for name in SEARCHES:
        results.add({"search": name}, partial(searched, model, requests, name))
    for name in REACH:
        results.add({"reach": name}, partial(reach, name))


if __name__ == "__main__":
    main()
