"""Progress display: bars on a terminal, an occasional line if stderr goes to a file or a pipe.

Work that takes less than a few seconds says nothing there. Only stderr is written to, so stdout holds nothing but the
result; no line has a carriage return or an escape sequence.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from palimpsest.stopwatch import Progress

FIRST_LINE = 10.0
"""Seconds before the first line of redirected output."""
EVERY = 30.0
"""Seconds between its further lines."""


class Shown(Protocol):
    """How far a work is: the whole of it, and the parts that somebody is at."""

    def whole(self, stage: str, done: int, total: int) -> None:
        """How far the whole is."""

    def part(self, name: str, stage: str, done: int, total: int) -> None:
        """How far a part is."""

    def end(self, name: str) -> None:
        """A part is done."""


class Bars:
    """A bar for the whole of a work, and one under it for each part that somebody is at.

    Arguments:
        shown: rich's bars.
        title: what the whole is called.
    """

    def __init__(self, shown: Any, title: str) -> None:
        self._shown = shown
        self._whole = shown.add_task("", total=None, title=title)
        self._parts: dict[str, Any] = {}

    def whole(self, stage: str, done: int, total: int) -> None:
        """How far the whole is."""
        self._shown.update(self._whole, description=stage, completed=done, total=total)

    def part(self, name: str, stage: str, done: int, total: int) -> None:
        """How far a part is; its bar appears when it is first told of."""
        if name not in self._parts:
            self._parts[name] = self._shown.add_task("", total=None, title=f"  {name}")
        self._shown.update(self._parts[name], description=stage, completed=done, total=total)

    def end(self, name: str) -> None:
        """Takes the bar of a part away."""
        if name in self._parts:
            self._shown.remove_task(self._parts.pop(name))


@dataclass(frozen=True)
class _Stage:
    """A stage of a work: how far it was when first heard of, and when, and how far it is."""

    name: str
    since: float
    at_first: int
    done: int
    total: int

    def told(self, name: str, done: int, total: int, now: float) -> _Stage:
        """The stage after a report."""
        if (name, total) != (self.name, self.total) or done < self.done:
            return _Stage(name, now, done, done, total)
        return _Stage(name, self.since, self.at_first, done, total)

    def line(self, now: float) -> str:
        """How far it is, how fast it goes and how long it will take."""
        text = f"{self.name} {self.done:,} of {self.total:,}".strip()
        seconds, made = now - self.since, self.done - self.at_first
        if made > 0 and seconds > 0:
            rate = made / seconds
            text += f", {rate:,.1f} per second" if rate >= 1 else f", {1 / rate:,.1f} s each"
            if self.total > self.done:
                text += f", about {duration((self.total - self.done) / rate)} left"
        return text


class Lines:
    """How far a work is, as lines.

    Arguments:
        title: what the whole is called.
        clock: seconds, for tests.
    """

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._clock = title, clock
        self._start = clock()
        self._lock = threading.Lock()
        self._stages: dict[str, _Stage] = {}

    def whole(self, stage: str, done: int, total: int) -> None:
        """How far the whole is."""
        self._tell("", stage, done, total)

    def part(self, name: str, stage: str, done: int, total: int) -> None:
        """How far a part is."""
        self._tell(name, stage, done, total)

    def end(self, name: str) -> None:
        """A part is done: no further line speaks of it."""
        with self._lock:
            self._stages.pop(name, None)

    def line(self) -> str:
        """How far the whole is, and each part in brackets."""
        now = self._clock()
        with self._lock:
            stages = dict(self._stages)
        whole = stages.pop("", None)
        parts = "; ".join(f"{name}: {stage.line(now)}" for name, stage in stages.items())
        text = f"{self._title}: {whole.line(now) if whole else 'at work'}, {duration(now - self._start)} so far"
        return f"{text} ({parts})" if parts else text

    def _tell(self, part: str, stage: str, done: int, total: int) -> None:
        now = self._clock()
        with self._lock:
            known = self._stages.get(part) or _Stage(stage, now, done, done, total)
            self._stages[part] = known.told(stage, done, total, now)


def duration(seconds: float) -> str:
    """Seconds as people say them: `8 s`, `3 min`, `2 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A bar on a terminal's stderr, lines elsewhere; yields the function the library reports its progress to."""
    with progress_bars(title) as bars:
        yield bars.whole


@contextmanager
def progress_bars(title: str) -> Iterator[Shown]:
    """Bars on a terminal's stderr, lines elsewhere."""
    if not sys.stderr.isatty():
        lines = Lines(title)
        with _now_and_then(lines.line, sys.stderr):
            yield lines
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Drawn

    with Drawn(
        TextColumn("{task.fields[title]}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.description}", style="dim"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(file=sys.stderr, highlight=False),
        transient=True,
    ) as shown:
        yield Bars(shown, title)


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner on a terminal while something without a count is going on; elsewhere lines, if it takes long."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(file=sys.stderr, highlight=False).status(text):
            yield
        return
    start = time.monotonic()
    with _now_and_then(lambda: f"{text}: {duration(time.monotonic() - start)} so far", sys.stderr):
        yield


@contextmanager
def _now_and_then(line: Callable[[], str], stream: TextIO) -> Iterator[None]:
    """Inside the block a line is written after `FIRST_LINE` seconds, and then every `EVERY` seconds."""
    is_over = threading.Event()

    def write() -> None:
        pause = FIRST_LINE
        while not is_over.wait(pause):
            pause = EVERY
            try:
                stream.write(f"{line()}\n")
                stream.flush()
            except (OSError, ValueError):
                # Nobody reads it any more; that is no reason to stop the work.
                return

    writer = threading.Thread(target=write, name="progress", daemon=True)
    writer.start()
    try:
        yield
    finally:
        is_over.set()
        writer.join()
