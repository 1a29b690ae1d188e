"""What the recipes share: where results go, how a run becomes one row of JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from palimpsest.answers import VERSION
from palimpsest.checkpoints.locating import BUNDLED
from palimpsest.evaluation import RunRecord
from palimpsest.files import write_text
from palimpsest.provenance import hardware, now, versions

RESULTS = Path(__file__).parent / "results"


def row(record: RunRecord, **labels: Any) -> dict[str, Any]:
    """One run as a flat row: its labels, its scores with intervals, its cost."""
    full = record.to_json()
    kept = ("seconds_per_edit", "patch_bytes", "perplexity", "counts", "status")
    return {**labels, "scores": full["scores"], **{key: full[key] for key in kept}}


def balance(values: Iterable[float | None]) -> float:
    """What options are chosen by: the harmonic mean of the criteria; zero when one of them is, or was not asked."""
    found = list(values)
    return len(found) / sum(1 / value for value in found if value) if all(found) else 0.0


class Results:
    """A result file that grows row by row, so that a recipe killed in the middle goes on where it stopped."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.path = RESULTS / f"{name}.json"
        self.settings = settings
        self.rows: list[dict[str, Any]] = []
        self.earlier: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        is_same_rule = self.earlier.get("scoring_version", 1) == VERSION
        if is_same_rule and self.earlier.get("settings") == json.loads(json.dumps(settings)):
            self.rows = self.earlier["rows"]

    def require_same_conditions(self) -> None:
        """Stops the recipe when its rows could not stand beside the earlier ones."""
        conditions = {
            "scoring_version": VERSION,
            "settings": self.settings,
            "versions": versions(),
            "hardware": hardware(),
        }
        for name, value in conditions.items():
            if self.earlier and self.earlier.get(name) != json.loads(json.dumps(value)):
                sys.exit(
                    f"{self.path}: its rows were measured with other {name}.\n"
                    f"there: {self.earlier.get(name)}\nhere:  {value}\n"
                    "Remove the file and measure all methods again."
                )

    def get(
        self, labels: dict[str, Any], compute: Callable[[], dict[str, Any]], *, again: bool = False
    ) -> dict[str, Any]:
        """The row with these labels, computed when it is not there yet or when asked to."""
        there = [done for done in self.rows if all(done.get(key) == value for key, value in labels.items())]
        if there and not again:
            return there[0]
        start = time.perf_counter()
        computed = compute()
        sys.stderr.write(f"{json.dumps(labels)}  {time.perf_counter() - start:.1f} s\n")
        self.rows = [done for done in self.rows if done not in there] + [computed]
        self.save()
        return computed

    def save(self) -> None:
        """Writes all rows so far."""
        record = {
            "scoring_version": VERSION,
            "settings": self.settings,
            "created": now(),
            "versions": versions(),
            "hardware": hardware(),
            "rows": self.rows,
        }
        write_text(self.path, json.dumps(record, indent=1) + "\n")


def recipe_parser(description: str | None) -> argparse.ArgumentParser:
    """Options of a recipe that works on a bundled model: `--model`, by default the decoder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=BUNDLED, default=BUNDLED[0])
    return parser


def results_name(recipe: str, model: str) -> str:
    """The result file of a recipe: plain for the bundled decoder, with the model's name for another."""
    return recipe if model == BUNDLED[0] else f"{recipe}_{model.replace('-', '_')}"


def one_thread() -> None:
    """Small models are fastest on one thread, and their timings do not depend on who else uses the cores."""
    torch.set_num_threads(1)
