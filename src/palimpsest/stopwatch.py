"""Seconds by stage, and progress that someone else may show."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`; the library itself never prints."""


def silent(_stage: str, _done: int, _total: int) -> None:
    """Progress that is not shown."""


class Stopwatch:
    """Adds up seconds under stage names. Stages may nest; an inner stage's time is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the block's seconds under `name`, minus those of stages inside it."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            own = spent - self._inner.pop()
            self._inner[-1] += spent
            self.seconds[name] = self.seconds.get(name, 0.0) + own

    def add(self, seconds: dict[str, float]) -> None:
        """Takes over another stopwatch's stages as stages inside the present one."""
        for name, spent in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            self._inner[-1] += spent
