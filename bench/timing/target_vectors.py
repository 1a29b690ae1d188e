"""CPU seconds a fact of the search for target vectors, at GPT-2 small's dimensions with random weights, one thread.

    python bench/timing/target_vectors.py        about ten minutes; results: bench/results/target_vectors.json

The rival is the plain way to write it: one fact at a time, its seven rows through the whole model, the head at every
position (once, as ROME's code computes it, or twice, as MEMIT's does: `head_twice`). Both take 20 passes, never stop
early, and end at the same vectors, which is checked. Random weights do not know anything, so this is about time alone.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import palimpsest as ps
from common import Timings, one_thread
from palimpsest.locating.subject_vectors import subject_vectors
from palimpsest.locating.target_vector import TargetOptions, TargetVectors, find_target_vectors
from palimpsest.models.hooks import Point
from palimpsest.models.tokens import subject_last_token
from speed import build

LAYER, FACTS, NAIVE_FACTS, REPEATS = 6, 50, 3, 3
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
    "naive_facts": NAIVE_FACTS,
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


def naive(model: ps.EditableModel, request: ps.EditRequest, options: TargetOptions, *, head_twice: bool) -> Tensor:
    """The whole model over all rows of one fact, twenty times."""
    rows = [model.encode(text.replace("{}", request.prompt), request.target_new) for text in TEMPLATES]
    texts = [text.replace("{}", request.prompt) for text in TEMPLATES] + [f"{request.subject} is a"]
    columns = [subject_last_token(model.tokenizer, replace(request, prompt=text), chat=None) for text in texts]
    batch = model.batch([row.ids[:-1] for row in rows] + [model.encode(texts[-1]).ids])
    places, tokens, labels = model.answer_places(rows, batch)
    point, last = Point("mlp.down", LAYER), Point("resid", model.num_layers - 1)
    norm, head = model.sites.module("final_norm"), model.sites.module("unembed")
    delta = torch.zeros(model.sites.d_model, requires_grad=True)
    optimizer, seen = torch.optim.Adam([delta], lr=options.learning_rate), {}

    def add(hidden: Tensor) -> Tensor:
        seen.setdefault("initial", hidden[0, columns[0]].detach().norm())
        spot = torch.zeros_like(hidden)
        spot[range(len(texts)), columns] = 1
        return hidden + spot * delta

    def keep(hidden: Tensor) -> Tensor:
        seen["last"] = hidden
        return hidden

    for step in range(options.steps):
        with model.intervene({point: add, last: keep}):
            logits = model.forward(batch).logits
        answers = head(norm(seen["last"][:-1])) if head_twice else logits[:-1]
        log_probs = answers.log_softmax(-1)[places, tokens, labels]
        lengths = torch.bincount(places)
        nll = -(log_probs / lengths[places]).sum() / len(rows)
        now = logits[-1, columns[-1]].log_softmax(-1)
        kept = seen.setdefault("kept", now.detach())
        divergence = (now.exp() * (now - kept)).sum()
        loss = nll + options.kl_factor * divergence + options.weight_decay * delta.norm() / seen["initial"] ** 2
        if step == options.steps - 1:
            return delta.detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            bound = options.clamp_norm_factor * seen["initial"]
            delta.mul_(bound / delta.norm()) if delta.norm() > bound else None
    raise AssertionError("no step")


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def all_naive(model: ps.EditableModel, requests: Sequence[ps.EditRequest], *, head_twice: bool) -> dict[str, Any]:
    """A few facts one after another."""
    for parameter in model.module.parameters():
        parameter.requires_grad_(False)
    options = TargetOptions(**ADAM)
    seconds, deltas = [], []
    for request in requests[:NAIVE_FACTS]:
        spent, delta = cpu_seconds(partial(naive, model, request, options, head_twice=head_twice))
        seconds.append(spent)
        deltas.append(delta)
    ours = find_target_vectors(model, requests[:NAIVE_FACTS], layer=LAYER, options=options, templates=TEMPLATES).deltas
    naive_deltas = torch.stack(deltas)
    return {
        "seconds_per_fact": statistics.mean(seconds),
        "all_seconds": seconds,
        "largest_relative_difference_to_ours": float(
            ((ours - naive_deltas).norm(dim=1) / naive_deltas.norm(dim=1)).max()
        ),
    }


def ours(model: ps.EditableModel, requests: Sequence[ps.EditRequest], name: str) -> dict[str, Any]:
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
        "mean_passes": statistics.mean(found.passes),
        "unreached": len(found.unreached),
        "mean_nll_after": statistics.mean(found.nlls[identity][-1] for identity in found.ids),
    }


def reach(name: str) -> dict[str, Any]:
    """How many facts of the bundled model come below the threshold, from the prompt alone."""
    model = ps.load("world")
    requests = ps.dataset("world-counterfact").sample(WORLD_FACTS, 0).requests
    site, options = REACH[name]
    call = partial(find_target_vectors, model, requests, layer=WORLD_LAYER, site=site, options=TargetOptions(**options))
    seconds, found = cpu_seconds(call)
    (stream,) = subject_vectors(model, requests, [Point("resid", WORLD_LAYER)]).values()
    return {
        "site": site,
        "options": options,
        "facts": WORLD_FACTS,
        "layer": WORLD_LAYER,
        "seconds_per_fact": seconds / WORLD_FACTS,
        "mean_passes": statistics.mean(found.passes),
        "unreached": len(found.unreached),
        "below_nll": sum(found.nlls[identity][-1] < TargetOptions().stop_loss for identity in found.ids),
        "mean_norm_of_initial": float(found.initial.norm(dim=1).mean()),
        "mean_share_of_stream": float((found.deltas.norm(dim=1) / stream[:, 0].norm(dim=1)).mean()),
    }


def main() -> None:
    """Measures what is not measured yet, and says the ratios."""
    one_thread()
    model = build("gpt2-small", "cpu")
    requests = facts(model)
    results = Timings("target_vectors", SETTINGS)
    for head_twice in (False, True):
        label = {"search": "naive adam", "head_twice": head_twice}
        results.add(label, lambda label=label: {**label, **all_naive(model, requests, head_twice=label["head_twice"])})
    for name in SEARCHES:
        results.add({"search": name}, lambda name=name: {"search": name, **ours(model, requests, name)})
    for name in REACH:
        results.add({"reach": name}, lambda name=name: {"reach": name, **reach(name)})
    plain, twice = (row["seconds_per_fact"] for row in results.rows[:2])
    for row in results.rows[: 2 + len(SEARCHES)]:
        spent = row["seconds_per_fact"]
        sys.stdout.write(f"{row['search']:45} {spent:8.3f} s/fact  {plain / spent:6.1f}x  {twice / spent:6.1f}x\n")


if __name__ == "__main__":
    main()
