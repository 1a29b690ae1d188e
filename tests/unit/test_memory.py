"""A large model's weights are never held twice. `bench/timing/memory.py` says what the bounds consist of."""

import importlib
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "timing"


@pytest.mark.slow
def test_loading_and_editing_some_layers_never_holds_the_model_twice(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    rows = list(importlib.import_module("memory").rows(2, ["load", "ft-l", "lora"]))
    assert [row["case"] for row in rows] == ["load", "ft-l", "lora"]
    for row in rows:
        assert row["weights"] > 1.3e9 and row["peak"] < row["bound"] < row["imported"] + 2 * row["weights"], row
