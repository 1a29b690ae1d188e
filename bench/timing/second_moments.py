"""What second moments and the solves with them cost at GPT-2 small's dimensions, and how many tokens they need.

    python bench/timing/second_moments.py        about five minutes on one core

Random weights stand in for GPT-2's: time does not depend on their values. How many tokens are needed does, so that is
measured on the bundled model, which was trained. Results: `bench/results/second_moments.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch

import palimpsest as ps
from common import Timings, cpu_seconds, one_thread
from palimpsest.models.hooks import Point
from palimpsest.solve.factorised import Factorised
from palimpsest.solve.least_squares import ridge
from palimpsest.statistics.catalogue import open_text
from palimpsest.statistics.collecting import collect
from palimpsest.statistics.moments import SecondMoment
from palimpsest.statistics.text import GivenText
from speed import build

LAYERS = [2, 3, 4, 5, 6]
WIDTH = 3072
TOKENS = 18 * WIDTH
FACTS = (1, 10, 100, 1000)
MULTIPLES = (8, 16, 24, 32, 64, 128)
SETTINGS = {
    "model": "GPT-2 small dimensions (12 layers, d 768), random weights, float32",
    "layers": LAYERS,
    "tokens": TOKENS,
    "row_length": 1024,
}


def articles() -> GivenText:
    """Texts that fill the longest row, as articles do."""
    lines = list(open_text("world").texts())
    return GivenText("articles", [" ".join(lines[start : start + 60]) for start in range(0, len(lines), 60)])


def clocked(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The function, with its CPU seconds noted down."""

    def call(*args: Any, **kwargs: Any) -> Any:
        seconds, found = cpu_seconds(partial(function, *args, **kwargs))
        spent.append(seconds)
        return found

    return call


def one_pass(model: ps.EditableModel, layers: list[int]) -> dict[str, Any]:
    """CPU seconds of one pass, and how they divide."""
    points = [Point("mlp.down", layer, "input") for layer in layers]
    adding: list[float] = []
    text = articles()
    collecting = partial(collect, model, points, text, max_tokens=TOKENS, row_length=1024, tolerance=None)
    with mock.patch.object(SecondMoment, "add", clocked(SecondMoment.add, adding)):
        total, found = cpu_seconds(collecting)
    return {
        "part": "pass",
        "layers": layers,
        "tokens": [one.moment.count for one in found.values()],
        "cpu_seconds": total,
        "tokens_per_second": TOKENS / total,
        "share_of_moments": sum(adding) / total,
        "errors": [one.error for one in found.values()],
    }


def solves() -> dict[str, Any]:
    """CPU seconds of the factorisation and of MEMIT's solve with it, beside a dense solve of the same equation."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(4 * WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    moment = text.T @ text / len(text)
    spent, factor = cpu_seconds(partial(Factorised, moment))
    seconds: dict[str, Any] = {"factorise": spent, "ridge": {}, "dense": {}}
    differences = {}
    for n in FACTS:
        keys = torch.randn(n, WIDTH, generator=generator, dtype=torch.float64)
        residuals = torch.randn(n, 768, generator=generator, dtype=torch.float64)
        seconds["ridge"][n], found = cpu_seconds(partial(ridge, factor, keys, residuals, strength=5000.0))
        system = partial(torch.linalg.solve, 5000.0 * moment + keys.T @ keys, keys.T)
        seconds["dense"][n], dense = cpu_seconds(system)
        differences[n] = float((found.right - dense.T).norm() / dense.norm())
    return {"part": "solves", "width": WIDTH, "cpu_seconds": seconds, "relative_differences": differences}


def convergence(multiple: int) -> dict[str, Any]:
    """The error estimate on the bundled model, by layer, after so many tokens for every dimension."""
    model = ps.load("world")
    points = [Point("mlp.down", layer, "input") for layer in (1, 2, 3, 4)]
    width = 1024
    found = collect(model, points, open_text("world"), max_tokens=multiple * width, tolerance=None)
    return {"part": "convergence", "multiple": multiple, "errors": {p.layer: one.error for p, one in found.items()}}


def main() -> None:
    """Runs every part."""
    one_thread()
    results = Timings("second_moments", SETTINGS)
    model = build("gpt2-small", "cpu")
    for layers in (LAYERS, LAYERS[-1:]):
        results.add({"part": "pass", "layers": layers}, partial(one_pass, model, layers))
    results.add({"part": "solves"}, solves)
    for multiple in MULTIPLES:
        results.add({"part": "convergence", "multiple": multiple}, partial(convergence, multiple))


if __name__ == "__main__":
    main()
