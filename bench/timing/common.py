"""What the timing scripts share: clocks, and a file of results that grows row by row."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from palimpsest.files import write_text
from palimpsest.provenance import hardware, now, versions

RESULTS = Path(__file__).parents[1] / "results"


class Timings:
    """A result file, written anew with every row that is measured.

    Arguments:
        name: of the file in `bench/results`.
        settings: what holds for all rows.
    """

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.path, self.settings = RESULTS / f"{name}.json", settings
        self.rows: list[dict[str, Any]] = []

    def add(self, labels: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measures a row with these labels, writes the file and returns the row."""
        start = time.perf_counter()
        row = {**labels, **measure()}
        sys.stderr.write(f"{json.dumps(labels)}  {time.perf_counter() - start:.1f} s\n")
        self.rows.append(row)
        head = {"settings": self.settings, "created": now(), "versions": versions(), "hardware": hardware()}
        write_text(self.path, json.dumps({**head, "rows": self.rows}, indent=1) + "\n")
        return row


def one_thread() -> None:
    """Small models are fastest on one thread, and their timings do not depend on who else uses the cores."""
    torch.set_num_threads(1)


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of a call, which others on the machine do not change much, and what it returned."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Wall time of a call, the median of some."""
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return median(spent)
