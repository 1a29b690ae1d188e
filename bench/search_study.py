"""Gauss-Newton against Adam: where does which search for target vectors win?

    python bench/search_study.py --real real        about an hour on one core; goes on where it was stopped

On random models of every decoder family: how likely the answer becomes, in how many passes, with how long a vector;
answers of one to eight tokens, two seeds, float32 and bfloat16. One vector in a small random model does little, so this
is about the searches alone. On models that know facts: what an edit with the vector is worth, with ROME for
single edits (three seeds, bfloat16, and by the answer's length on the model of ZsRE that `make real` makes) and with
MEMIT for a sequence. Results: `bench/results/search_study.json`.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import palimpsest as ps
from choose_batch_presets import ADAM, gauss_newton
from common import Results, one_thread, row
from palimpsest.evaluation import BaseAnswers
from palimpsest.locating.target_vector import TargetOptions, find_target_vectors
from real_edits import editor_of, taught_text
from real_facts import real_folder, records

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny

LENGTHS, SEEDS, DTYPES = (1, 4, 8), (0, 1), ("float32", "bfloat16")
LAYER = 1
SEARCHES: dict[str, dict[str, Any]] = {
    "adam": {"search": "adam"},
    "adam, relative rate 0.1": {"search": "adam", "learning_rate": 0.1, "learning_rate_unit": "relative"},
    "gauss-newton": {"search": "gauss-newton"},
}
PUBLISHED = {**ADAM, "targets": {"search": "adam", "steps": 60}}
WORLD_EDITS, WORLD_SEEDS, REAL_EDITS, SEQUENCE = 50, (0, 1, 2), 150, 100
SETTINGS = {
    "families": list(tiny.FAMILIES),
    "lengths": LENGTHS,
    "seeds": SEEDS,
    "dtypes": DTYPES,
    "layer": LAYER,
    "searches": SEARCHES,
    "world_edits": WORLD_EDITS,
    "world_seeds": WORLD_SEEDS,
    "real_edits": REAL_EDITS,
    "sequence": SEQUENCE,
}


def asked(model: ps.EditableModel, length: int, seed: int) -> list[ps.EditRequest]:
    """The tiny facts with random answers of so many tokens."""
    draw = torch.Generator().manual_seed(seed)
    words = ["Lyon", "Milan", "Lima", "people", "river", "German", "trumpet", "city", "laws", "old", "rain", "stone"]
    made = []
    for request in tiny.requests():
        text = ""
        # Words are added until there are enough tokens, then dropped letter by letter.
        while len(model.encode(request.prompt, text or "a").target_ids) < length or not text:
            text = f"{text} {words[int(torch.randint(len(words), (1,), generator=draw))]}".strip()
        while len(model.encode(request.prompt, text).target_ids) > length and len(text) > 1:
            text = text[:-1].rstrip()
        made.append(ps.EditRequest(request.prompt, subject=request.subject, target_new=text, id=request.id))
    return made


def searched(labels: dict[str, Any]) -> dict[str, Any]:
    """One search on a family's random models: means over all facts, by the answer's length."""
    by_length = {}
    for length in LENGTHS:
        parts = [_searched(labels, length, seed) for seed in SEEDS]
        by_length[str(length)] = {name: fmean(part[name] for part in parts) for name in parts[0]}
    return {**labels, "by_length": by_length}


def _searched(labels: dict[str, Any], length: int, seed: int) -> dict[str, float]:
    model = tiny.tiny_model(labels["family"], dtype=getattr(torch, labels["dtype"]), seed=seed)
    requests = asked(model, length, seed)
    options = TargetOptions(**SEARCHES[labels["search"]])
    # Where a norm stands behind the MLP, what the stream would need cannot be written by it.
    site = "resid" if model.sites.architecture.mlp_writes_residual else "mlp.down"
    start = time.process_time()
    found = find_target_vectors(model, requests, layer=LAYER, site=site, options=options)
    spent = time.process_time() - start
    return {
        "nll_before": fmean(found.nlls[one][0] for one in found.ids),
        "nll_after": fmean(found.nlls[one][-1] for one in found.ids),
        "passes": fmean(found.passes),
        "share_of_initial": float((found.deltas.norm(dim=-1) / found.initial.norm(dim=-1)).mean()),
        "seconds_per_fact": spent / len(found.ids),
    }


def edited(
    model: ps.EditableModel, editor: Any, data: ps.Dataset, labels: dict[str, Any], **run: Any
) -> dict[str, Any]:
    """Edits with one search, as a row; with reliability by the length of the answer."""
    record = ps.evaluate(model, editor, data, scorings=("generate", "teacher_forced"), **run)
    lengths: dict[str, list[float]] = {}
    sizes = {one.id: len(model.encode(one.prompt, one.target_new).target_ids) for one in data.requests}
    for probe in record.probes:
        value = probe.values.get("generate")
        if probe.kind == "reliability" and probe.phase == "final" and value is not None:
            size = sizes[probe.edit_id]
            lengths.setdefault(str(size) if size < 8 else "8 or more", []).append(value)
    by_length = {size: [fmean(values), len(values)] for size, values in sorted(lengths.items())}
    return {**row(record, **labels), "by_length": by_length}


def on_random_models(results: Results) -> None:
    """Every family, in both dtypes, with every search."""
    for family in tiny.FAMILIES:
        for dtype in DTYPES:
            for search in SEARCHES:
                labels = {"part": "random", "family": family, "dtype": dtype, "search": search}
                results.get(labels, partial(searched, labels))


def on_the_world(results: Results) -> None:
    """Single edits with ROME over seeds and in bfloat16, a sequence with MEMIT."""
    data, searches = ps.dataset("world-counterfact").with_probes(2), {"adam": PUBLISHED, "gauss-newton": {}}
    for dtype in DTYPES:
        model, answers = ps.load("world", dtype=dtype), BaseAnswers()
        for seed in WORLD_SEEDS if dtype == "float32" else WORLD_SEEDS[:1]:
            for search, options in searches.items():
                labels = {"part": "world, single", "dtype": dtype, "seed": seed, "search": search}
                editor = ps.method("rome", **{name: one for name, one in options.items() if name != "pooling"})
                run = {"num_edits": WORLD_EDITS, "seed": seed, "base": answers, "neutral_text": ()}
                results.get(labels, partial(edited, model, editor, data, labels, **run))
        if dtype == "float32":
            for search, options in searches.items():
                labels = {"part": "world, sequence", "search": search}
                run = {"num_edits": SEQUENCE, "protocol": ps.Sequential((1, 10, SEQUENCE)), "base": answers}
                results.get(labels, partial(edited, model, ps.method("memit", **options), data, labels, **run))


def on_real_facts(results: Results, real: Path) -> None:
    """ZsRE's answers are long: one edit with ROME each."""
    if not (real / "zsre").is_dir():
        sys.stderr.write(f"There is no model in {real / 'zsre'}: real facts are left out.\n")
        return
    model, answers, text = ps.load(str(real / "zsre")), BaseAnswers(), taught_text(real, "zsre")
    data = records(real, "zsre", for_choosing=False).with_probes(1)
    published = {name: one for name, one in PUBLISHED.items() if name != "pooling"}
    ours = gauss_newton(5)["targets"]
    searches = {
        "adam": published,
        "gauss-newton": {"search_in": "prompt", "targets": ours},
        "gauss-newton, 60 passes": {"search_in": "prompt", "targets": {**ours, "steps": 60}},
    }
    for search, options in searches.items():
        labels = {"part": "zsre, single", "search": search}
        editor = editor_of("rome", {"layers": [1], **options}, text)
        run = {"num_edits": REAL_EDITS, "base": answers, "max_new_tokens": 16}
        results.get(labels, partial(edited, model, editor, data, labels, **run))


def main() -> None:
    """All three parts."""
    real = real_folder().parse_args().real
    one_thread()
    results = Results("search_study", SETTINGS)
    on_the_world(results)
    on_real_facts(results, real)
    on_random_models(results)


if __name__ == "__main__":
    main()
